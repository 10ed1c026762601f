"""Text-to-image models: prompts as states, one noising step, and drawing."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers import DDIMScheduler, SchedulerMixin
from torch import Tensor, nn

from lit_insert.errors import InputError


def prompt_ids(tokenizer: Any, prompts: Sequence[str], max_length: int | None = None) -> Tensor:
    """Token ids (B, L) of prompts, padded to the length that the text encoder was made for.

    Args:
        tokenizer: A CLIP tokenizer.
        prompts: B sentences.
        max_length: L; by default the tokenizer's own.

    Raises:
        InputError: If a prompt is longer; its end would be dropped unseen.
    """
    length = max_length or tokenizer.model_max_length
    ids = tokenizer(list(prompts)).input_ids
    longest = max(range(len(ids)), key=lambda i: len(ids[i]))
    if len(ids[longest]) > length:
        raise InputError(
            f"the prompt {prompts[longest]!r} has {len(ids[longest])} tokens, the model takes {length}; shorten it"
        )
    return tokenizer(list(prompts), padding="max_length", max_length=length, return_tensors="pt").input_ids


def prompt_states(tokenizer: Any, text_encoder: nn.Module, prompts: Sequence[str]) -> Tensor:
    """States (B, L, X) of prompts: the text encoder's last hidden state.

    Raises:
        InputError: As `prompt_ids`.
    """
    ids = prompt_ids(tokenizer, prompts)
    return text_encoder(ids.to(next(text_encoder.parameters()).device)).last_hidden_state


class Noised(NamedTuple):
    """Noisy ``latents`` (B,C,h,w), their ``timesteps`` (B,) and what a network should predict, ``wanted``."""

    latents: Tensor
    timesteps: Tensor
    wanted: Tensor


def add_noise(scheduler: SchedulerMixin, latents: Tensor, generator: torch.Generator) -> Noised:
    """Noise latents at t ~ U{0..T-1}; the target is ε or v = √ᾱ ε - √(1-ᾱ) z₀ (Salimans & Ho 2022).

    Args:
        scheduler: Gives ᾱ and ``prediction_type``.
        latents: Scaled latents (B,C,h,w).
        generator: Source of noise and timesteps, on the latents' device.

    Raises:
        InputError: For a prediction type other than epsilon or v_prediction.
    """
    latents = latents.float()
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    steps = scheduler.config.num_train_timesteps
    timesteps = torch.randint(steps, (len(latents),), generator=generator, device=latents.device)
    kind = scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise InputError(f"the scheduler's prediction_type is {kind!r}; use epsilon or v_prediction")
    wanted = noise if kind == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
    return Noised(scheduler.add_noise(latents, noise, timesteps), timesteps, wanted)


@torch.no_grad()
def draw_prompts(
    parts: Any,
    prompts: Sequence[str],
    generator: torch.Generator,
    *,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    size: int | None = None,
) -> Tensor:
    """Pictures (B,3,H,W) in [-1,1] of prompts, by DDIM with classifier-free guidance: for a look while training.

    Args:
        parts: Has ``vae``, ``text_encoder``, ``tokenizer``, ``unet`` and ``scheduler``.
        prompts: B sentences.
        generator: Source of the starting noise, on the UNet's device.
        num_inference_steps: Denoising steps.
        guidance_scale: Weight of the prompt.
        size: Side in pixels; by default that of the UNet's ``sample_size``.

    Raises:
        InputError: As `prompt_ids`.
    """
    states = prompt_states(parts.tokenizer, parts.text_encoder, [*[""] * len(prompts), *prompts])
    factor = 2 ** (len(parts.vae.config["block_out_channels"]) - 1)
    side = size // factor if size else parts.unet.config["sample_size"]
    shape = (len(prompts), parts.unet.config["in_channels"], side, side)
    scheduler = DDIMScheduler.from_config(parts.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(num_inference_steps)
    latents = torch.randn(shape, generator=generator, device=generator.device) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        plain, prompted = parts.unet(latents.repeat(2, 1, 1, 1), t, states).sample.float().chunk(2)
        latents = scheduler.step(plain + guidance_scale * (prompted - plain), t, latents).prev_sample
    return parts.vae.decode(latents / parts.vae.config["scaling_factor"]).sample.float().clamp(-1, 1)
