import pytest
import torch
from diffusers import DDPMScheduler
from tiny_insert import components, seeded

from lit_insert.embedding_optimizer.objective import (
    Denoised,
    denoising_error,
    draw_dropout,
    min_snr_weight,
    snr,
    weighted_loss,
)


class Answer(torch.nn.Module):
    """A "UNet" that gives a fixed answer and remembers its input."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x, t, states):
        self.x, self.t = x, t
        return type("Out", (), {"sample": self.value(x) if callable(self.value) else self.value})


def error(unet, scheduler, seed=0, dtype=torch.float32):
    generator = seeded(seed)
    target = torch.randn(6, 4, 8, 8, generator=seeded(9)).to(dtype)
    scene = torch.randn(6, 4, 8, 8, generator=seeded(8)).to(dtype)
    states = torch.randn(6, 3, 32, generator=seeded(7))
    return denoising_error(
        unet, scheduler, target_latents=target, scene_latents=scene, states=states, generator=generator
    ), target.float()


def test_dropout_frequencies():
    dropped = draw_dropout(100_000, 0.05, seeded(0))
    both = dropped.object & dropped.scene
    for case in (dropped.object & ~both, dropped.scene & ~both, both):
        assert case.float().mean() == pytest.approx(0.05, abs=0.005)
    for p, fraction in ((0.0, 0.0), (1 / 3, 1.0)):
        dropped = draw_dropout(100_000, p, seeded(1))
        assert (dropped.object | dropped.scene).float().mean() == pytest.approx(fraction, abs=1e-4)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_right_answer_has_no_error(kind, zero_snr):
    scheduler = DDPMScheduler(1000, prediction_type=kind, rescale_betas_zero_snr=zero_snr)
    unet = Answer(torch.zeros(6, 4, 8, 8))
    denoised, z = error(unet, scheduler)
    noise = torch.randn(z.shape, generator=seeded(0))
    alpha = scheduler.alphas_cumprod[unet.t][:, None, None, None]
    assert torch.allclose(unet.x[:, :4], alpha.sqrt() * z + (1 - alpha).sqrt() * noise, atol=1e-6)
    wanted = noise if kind == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * z
    assert torch.allclose(denoised.error, wanted.square(), atol=1e-5)
    unet.value = wanted
    assert error(unet, scheduler)[0].error.abs().max() < 1e-10
    assert len(set(unet.t.tolist())) > 1


def test_unknown_prediction_type():
    with pytest.raises(ValueError, match="prediction_type is 'sample'"):
        error(Answer(torch.zeros(6, 4, 8, 8)), DDPMScheduler(1000, prediction_type="sample"))


@torch.no_grad()
def test_error_is_float32_under_autocast_and_from_half_latents():
    unet = components()["unet"]
    with torch.autocast("cpu", torch.bfloat16):
        denoised, _ = error(unet, DDPMScheduler(1000), dtype=torch.bfloat16)
        loss = weighted_loss(denoised, DDPMScheduler(1000), mask=torch.ones(6, 1, 16, 16), mask_weight=4.0)["loss"]
    assert denoised.error.dtype == loss.dtype == torch.float32
    exact, _ = error(unet, DDPMScheduler(1000))
    assert torch.allclose(denoised.error.mean(), exact.error.mean(), rtol=0.05)
    assert torch.allclose(loss, 5 * denoised.error.mean(), rtol=1e-6)


def test_mask_weighting_by_hand():
    denoised = Denoised(torch.ones(1, 4, 2, 2), torch.tensor([5]))
    denoised.error[..., 0] = 3.0
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1  # the left column of cells
    parts = weighted_loss(denoised, DDPMScheduler(10), mask=mask, mask_weight=2.0)
    assert parts["object"] == pytest.approx(3)
    assert parts["background"] == pytest.approx(1)
    assert parts["loss"] == pytest.approx((3 * 3 + 1) / 2)
    assert weighted_loss(denoised, DDPMScheduler(10))["loss"] == pytest.approx(2)
    with pytest.raises(ValueError, match="needs batches with a mask"):
        weighted_loss(denoised, DDPMScheduler(10), mask_weight=1.0)


def test_min_snr_weights():
    scheduler = DDPMScheduler(1000)
    t = torch.tensor([0, 500, 999])
    ratio = snr(scheduler, t)
    alpha = scheduler.alphas_cumprod[t]
    assert torch.allclose(ratio, alpha / (1 - alpha))
    for kind, expected in (("epsilon", ratio.clamp(max=5) / ratio), ("v_prediction", ratio.clamp(max=5) / (ratio + 1))):
        assert torch.allclose(min_snr_weight(ratio, 5.0, kind), expected)
    denoised = Denoised(torch.ones(3, 4, 2, 2), t)
    loss = weighted_loss(denoised, scheduler, snr_gamma=5.0)["loss"]
    assert loss == pytest.approx(float((ratio.clamp(max=5) / ratio).mean()), rel=1e-5)
    zero = DDPMScheduler(1000, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    weight = min_snr_weight(snr(zero, torch.tensor([999])), 5.0, "v_prediction")
    assert torch.isfinite(weight).all()
