"""The training objective: denoise the target, given the scene and the reference's tokens."""

from typing import NamedTuple

import torch
from diffusers import SchedulerMixin, UNet2DConditionModel
from torch import Tensor


class Dropped(NamedTuple):
    """Which conditions are dropped, two boolean vectors (B,)."""

    object: Tensor
    scene: Tensor


def draw_dropout(batch_size: int, p: float, generator: torch.Generator) -> Dropped:
    """Choose what to drop for three-way guidance (Brooks et al. 2023, section 3.2.1).

    With one u ~ U(0,1) a sample: the object alone with probability p, both with p, the scene alone with p.

    Args:
        batch_size: Number of samples.
        p: Probability of each of the three cases, in [0, 1/3].
        generator: Source of u, on the device of the result.
    """
    u = torch.rand(batch_size, generator=generator, device=generator.device)
    return Dropped(object=u < 2 * p, scene=(u >= p) & (u < 3 * p))


def snr(scheduler: SchedulerMixin, timesteps: Tensor) -> Tensor:
    """Signal-to-noise ratio ᾱ/(1-ᾱ) at the given timesteps, float32 (B,)."""
    alphas = scheduler.alphas_cumprod.to(timesteps.device, torch.float32)[timesteps]
    return alphas / (1 - alphas)


def min_snr_weight(ratio: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """Min-SNR-γ weights (Hang et al. 2023): min(SNR,γ)/SNR for ε, min(SNR,γ)/(SNR+1) for v."""
    clipped = ratio.clamp(max=gamma)
    # At zero terminal SNR the ε weight tends to 1.
    return clipped / (ratio + 1) if prediction_type == "v_prediction" else clipped / ratio.clamp(min=1e-8)


class Denoised(NamedTuple):
    """What the network got wrong: squared ``error`` (B,C,h,w), float32, at ``timesteps`` (B,)."""

    error: Tensor
    timesteps: Tensor


def denoising_error(
    unet: UNet2DConditionModel,
    scheduler: SchedulerMixin,
    *,
    target_latents: Tensor,
    scene_latents: Tensor,
    states: Tensor,
    generator: torch.Generator,
) -> Denoised:
    """Squared error of the predicted noise (or v), element by element, in float32.

    (y - UNet([z_t, z_scene], t, h))², t ~ U{0..T-1}, y = ε or v = √ᾱ ε - √(1-ᾱ) z₀ (Salimans & Ho 2022).

    Args:
        unet: Takes 2·C channels.
        scheduler: Gives ᾱ, the noising and ``prediction_type``.
        target_latents: Scaled latents of the target, (B, C, h, w).
        scene_latents: Unscaled posterior mode of the scene, dropped rows already zero, (B, C, h, w).
        states: Conditioning tokens, dropped rows already null, (B, K, X).
        generator: Source of noise and timesteps.

    Raises:
        ValueError: For a prediction type other than epsilon or v_prediction.
    """
    noise = torch.randn(target_latents.shape, generator=generator, device=target_latents.device, dtype=torch.float32)
    timesteps = torch.randint(
        scheduler.config.num_train_timesteps,
        (len(noise),),
        generator=generator,
        device=noise.device,
    )
    latents = target_latents.float()
    noisy = scheduler.add_noise(latents, noise, timesteps)
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "epsilon":
        wanted = noise
    elif prediction_type == "v_prediction":
        wanted = scheduler.get_velocity(latents, noise, timesteps)
    else:
        raise ValueError(f"prediction_type is {prediction_type!r}; use epsilon or v_prediction")
    predicted = unet(torch.cat([noisy, scene_latents.float()], dim=1), timesteps, states).sample.float()
    return Denoised((predicted - wanted).square(), timesteps)


def weighted_loss(
    denoised: Denoised,
    scheduler: SchedulerMixin,
    *,
    mask: Tensor | None = None,
    mask_weight: float = 0.0,
    snr_gamma: float | None = None,
) -> dict[str, Tensor]:
    """Mean of the squared error, weighted by place and noise level.

    Args:
        denoised: From :func:`denoising_error`.
        scheduler: Gives ᾱ and ``prediction_type``.
        mask: Inserted region, (B, 1, H, W) in {0,1}.
        mask_weight: Extra weight of latent cells under the mask: weight is 1 + mask_weight·coverage.
        snr_gamma: γ of the min-SNR weighting; none by default.

    Returns:
        "loss", and with a mask also "object" and "background", the unweighted error in and outside it.

    Raises:
        ValueError: For mask_weight without a mask.
    """
    error = denoised.error
    weight = torch.ones_like(error[:, :1])
    parts: dict[str, Tensor] = {}
    if mask is not None:
        coverage = torch.nn.functional.adaptive_avg_pool2d(mask.float(), (error.shape[-2], error.shape[-1]))
        per_cell = error.detach().mean(1, keepdim=True)
        parts["object"] = (per_cell * coverage).sum() / coverage.sum().clamp(min=1e-6)
        parts["background"] = (per_cell * (1 - coverage)).sum() / (1 - coverage).sum().clamp(min=1e-6)
        weight = weight + mask_weight * coverage
    elif mask_weight:
        raise ValueError("mask_weight needs batches with a mask")
    if snr_gamma is not None:
        ratio = snr(scheduler, denoised.timesteps)
        per_sample = min_snr_weight(ratio, snr_gamma, scheduler.config.prediction_type)
        weight = weight * per_sample[:, None, None, None]
    return {"loss": (error * weight).mean(), **parts}
