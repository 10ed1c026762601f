import pytest
import tiny_text
import torch
from diffusers import DDIMScheduler

from lit_insert.mifo.attention import layers_of
from lit_insert.mifo.boxes import Box
from lit_insert.mifo.guidance import GuidanceSettings
from lit_insert.mifo.prompts import PromptTokens
from lit_insert.mifo.regions import RefinementSettings
from lit_insert.mifo.sampling import Control, default_spots, denoise, plus_plus_step, split_prediction

BOXES = [Box("a", 0, 0, 0.5, 1), Box("b", 0.5, 0.25, 1, 1)]
TOKENS = PromptTokens(torch.zeros(1, 8, dtype=torch.long), ((2,), (4, 5)), (1, 3), 6)


@pytest.fixture(scope="module")
def unet():
    return tiny_text.unet().requires_grad_(False)


def scheduler(prediction="epsilon", steps=5, **options):
    made = DDIMScheduler(1000, clip_sample=False, prediction_type=prediction, **options)
    made.set_timesteps(steps)
    return made


def given(batch=2):
    draw = torch.Generator().manual_seed(0)
    return torch.randn(batch, 4, 16, 16, generator=draw), torch.randn(2, 8, 32, generator=draw)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("last", [True, False])
def test_plus_plus_with_one_prediction_is_ddim(prediction, last):
    ddim = scheduler(prediction, set_alpha_to_one=last)
    latents, _ = given()
    predicted = latents.flip(0) * 0.7
    for t in ddim.timesteps:
        wanted = ddim.step(predicted, t, latents).prev_sample
        assert torch.allclose(plus_plus_step(ddim, predicted, predicted, t, latents), wanted, atol=1e-5)


def test_plus_plus_adds_the_plain_noise_to_the_mixed_picture():
    ddim = scheduler()
    latents, _ = given()
    plain, mixed = latents.flip(0), latents * 0.5
    t = ddim.timesteps[1]
    level, later = ddim.alphas_cumprod[t], ddim.alphas_cumprod[ddim.timesteps[2]]
    clean = (latents - (1 - level).sqrt() * mixed) / level.sqrt()
    wanted = later.sqrt() * clean + (1 - later).sqrt() * plain
    assert torch.allclose(plus_plus_step(ddim, plain, mixed, t, latents), wanted, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_prediction_splits_into_what_was_mixed(prediction):
    ddim = scheduler(prediction)
    clean, _ = given()
    noise, t = clean.flip(-1), torch.tensor([400, 400])
    latents = ddim.add_noise(clean, noise, t)
    target = {"epsilon": noise, "v_prediction": ddim.get_velocity(clean, noise, t), "sample": clean}[prediction]
    found = split_prediction(ddim, target, t[0], latents)
    assert torch.allclose(found[0], clean, atol=1e-5)
    assert torch.allclose(found[1], noise, atol=1e-5)


def test_without_control_it_is_the_stock_loop(unet):
    latents, states = given(1)
    ddim = scheduler()
    found = denoise(unet, ddim, latents, states, guidance_scale=3.0)
    with torch.no_grad():
        for t in ddim.timesteps:
            plain, full = unet(latents.repeat(2, 1, 1, 1), t, states).sample.chunk(2)
            latents = ddim.step(plain + 3 * (full - plain), t, latents).prev_sample
    assert torch.allclose(found, latents, atol=1e-5)
    single = denoise(unet, ddim, *given(1), guidance_scale=1.0)
    assert not torch.allclose(single, found)


def test_guidance_ends_when_it_should_and_sampling_goes_on(unet):
    latents, states = given()
    guidance = GuidanceSettings(layers=["mid"], until=0.4, iterations=2, step_size=(30, 30), stop_below=0)
    control = Control(unet, TOKENS, BOXES, masks=False, guidance=guidance)
    seen = []
    before = control.before

    def watch(latents, *rest):
        after = before(latents, *rest)
        seen.append(torch.equal(after, latents))
        return after

    control.before = watch
    with control.attention.attached(unet):
        denoise(unet, scheduler(), latents, states, guidance_scale=3.0, control=control)
    assert seen == [False, False, True, True, True]
    assert len(control.losses) == 2
    assert all(loss.shape == (2, 2) for loss in control.losses)


def test_regions_are_refined_from_what_was_seen(unet):
    latents, states = given()
    refinement = RefinementSettings(layers=["up:8"], start=0.4, every=0.2, restarts=2, min_score=0.0)
    control = Control(unet, TOKENS, BOXES, refinement=refinement)
    with control.attention.attached(unet):
        denoise(unet, scheduler(), latents, states, guidance_scale=3.0, control=control)
    assert control.regions.refined.shape == (2, 2, 8, 8)
    assert not control.attention.maps  # nothing is kept from step to step
    boxes = control.regions.refined & ~torch.stack([torch.zeros(8, 8, dtype=torch.bool)] * 2)
    assert not boxes.all(1).any()


def test_where_attention_is_looked_at_by_default(unet):
    assert default_spots(unet, "guidance") == ["mid", "up:16"]
    assert default_spots(unet, "refinement") == ["up:16"]
    sd = tiny_text.unet(
        64,
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )
    assert default_spots(sd, "guidance") == ["mid", "up:16"]
    assert {layer.resolution for layer in layers_of(sd)} == {8, 16, 32, 64}
