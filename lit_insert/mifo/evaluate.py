"""Where tokens look: their attention maps over a picture, measured and drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_insert.diffusion.text import prompt_ids
from lit_insert.metrics.attention import AttentionLocality
from lit_insert.mifo.attention import AttentionRecorder, LayerName
from lit_insert.mifo.objective import mask_grid, token_columns

LEVELS = (0.15, 0.35, 0.55)  # of the noise schedule


@torch.no_grad()
def token_maps(
    parts: Any,
    batch: Mapping[str, Any],
    layers: Sequence[LayerName],
    generator: torch.Generator,
    levels: Sequence[float] = LEVELS,
) -> dict[LayerName, Tensor]:
    """Attention of each sample's tokens over its own picture with noise, averaged over heads and noise levels.

    Args:
        parts: Has the components of `TextParts`, ``rows`` (`TokenRows`) and ``visible``, as `MifoModule` has them.
        batch: ``image`` (B,3,H,W), ``caption``, ``instances`` (B,K).
        layers: Cross-attention layers to record.
        generator: Source of the noise, which all samples share.
        levels: Noise levels, as fractions of the schedule.

    Returns:
        Layer to maps (B,K,h,w); those of places without an instance mean nothing.
    """
    latents = parts.vae.encode(batch["image"]).latent_dist.mode() * parts.vae.config["scaling_factor"]
    tokens = prompt_ids(parts.tokenizer, batch["caption"]).to(latents.device)
    states = parts.text_encoder(tokens).last_hidden_state
    columns = token_columns(tokens, parts.rows.first, batch["instances"])[..., None, None]
    recorder = AttentionRecorder(layers)
    total: dict[LayerName, Tensor] = {}
    with recorder.attached(parts.unet):
        for level in levels:
            noise = torch.randn((1, *latents.shape[1:]), generator=generator, device=latents.device).expand_as(latents)
            step = torch.full((len(latents),), int(level * parts.scheduler.config.num_train_timesteps))
            step = step.to(latents.device)
            noised = parts.scheduler.add_noise(latents, noise, step)
            parts.unet(noised, step, states, encoder_attention_mask=parts.visible(tokens))
            for layer in recorder.layers:
                grid = recorder.grid(layer).float()
                own = grid.gather(1, columns.expand(-1, -1, *grid.shape[2:])) / len(levels)
                total[layer] = total[layer] + own if layer in total else own
    return total


def attention_figures(
    parts: Any, batch: Mapping[str, Any], layers: Sequence[LayerName], generator: torch.Generator
) -> dict[str, float]:
    """How well tokens look at their own instances, over all layers; see `lit_insert.metrics.attention`.

    Args:
        parts: See `token_maps`.
        batch: The same, with ``masks`` (B,K,1,H,W).
        layers: Cross-attention layers.
        generator: Source of the noise.
    """
    metric = AttentionLocality()
    present = batch["instances"] >= 0
    for maps in token_maps(parts, batch, layers, generator).values():
        masks = mask_grid(batch["masks"], (maps.shape[-2], maps.shape[-1]), smooth=True)
        for row, mask, there in zip(maps, masks, present, strict=True):
            metric.update(row[there][None], mask[there][None])
    return metric.compute()


def overlays(
    parts: Any, batch: Mapping[str, Any], layers: Sequence[LayerName], generator: torch.Generator
) -> list[list[Tensor]]:
    """Pictures of where each token looks: the picture in grey, the attention over it in red, least to most.

    Args:
        parts: See `token_maps`.
        batch: The same.
        layers: Cross-attention layers; those of the finest grid below the latent's are drawn.
        generator: Source of the noise.

    Returns:
        For each sample, a picture (3,H,W) in [-1,1] for each of its tokens.
    """
    size = (batch["image"].shape[-2], batch["image"].shape[-1])
    fine = [layer for layer in layers if layer.place == "up"] or list(layers)
    maps = [
        F.interpolate(m, size, mode="bilinear", antialias=False)
        for m in token_maps(parts, batch, fine, generator).values()
    ]
    looks = torch.stack(maps).mean(0)
    low, high = looks.amin((-2, -1), keepdim=True), looks.amax((-2, -1), keepdim=True)
    looks = (looks - low) / (high - low).clamp(min=1e-8)
    grey = batch["image"].mean(1, keepdim=True) * 0.5
    red = grey.new_tensor([1.0, -0.6, -0.6])[:, None, None]
    drawn = grey[:, None] + (red - grey[:, None]) * looks[:, :, None]
    return [
        [picture for picture, i in zip(row, chosen, strict=True) if i >= 0]
        for row, chosen in zip(drawn, batch["instances"].tolist(), strict=True)
    ]
