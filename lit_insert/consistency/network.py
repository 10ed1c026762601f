"""The UNet (diffusers' own, in the shape of ADM) and the functions that it becomes by preconditioning."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor

from lit_insert.artifacts.weights import load_onto
from lit_insert.consistency.edm import Denoiser, expand
from lit_insert.consistency.karras import NoiseRange, boundary_scalings, edm_scalings, noise_condition
from lit_insert.errors import InputError


def build_unet(
    image_size: int,
    channels: int = 128,
    channel_mult: Sequence[float] = (1, 2, 2, 2),
    num_res_blocks: int = 2,
    attention_resolutions: Sequence[int] = (16, 8),
    head_dim: int = 64,
    num_classes: int | None = None,
    null_class: bool = False,
    dropout: float = 0.0,
    norm_groups: int = 32,
    resblock_updown: bool = True,
    scale_shift: bool = True,
    in_channels: int = 3,
) -> UNet2DModel:
    """A UNet in the shape of ADM (Dhariwal & Nichol 2021), in float32.

    Args:
        image_size: Side of the pictures; each width but the first halves it.
        channels: Width at full size.
        channel_mult: Widths of the levels, in multiples of ``channels``.
        num_res_blocks: Residual blocks of a level on the way down; one more on the way up.
        attention_resolutions: Sides of the maps that have attention; the innermost level always has some between its
            two ways.
        head_dim: Channels of an attention head.
        num_classes: Number of classes; none by default.
        null_class: Have one more class for "no label", the last.
        dropout: Probability in the residual blocks.
        norm_groups: Groups of the group norms.
        resblock_updown: Change the size inside residual blocks rather than by convolutions.
        scale_shift: Let the embedding scale and shift after a norm rather than be added.
        in_channels: Channels of a picture.

    Raises:
        InputError: If sizes do not divide.
    """
    widths = [int(channels * m) for m in channel_mult]
    factor = 2 ** (len(widths) - 1)
    if image_size % factor:
        raise InputError(
            f"image_size {image_size} cannot be halved {len(widths) - 1} times; give a multiple of {factor}"
        )
    if any(w % norm_groups for w in widths):
        raise InputError(f"widths {widths} are no multiples of norm_groups {norm_groups}")
    sides = [image_size >> i for i in range(len(widths))]
    unknown = sorted(set(attention_resolutions) - set(sides))
    if unknown:
        raise InputError(f"attention_resolutions {unknown} do not occur; the maps have sides {sides}")
    if any(widths[sides.index(s)] % head_dim for s in attention_resolutions) or widths[-1] % head_dim:
        raise InputError(f"head_dim {head_dim} does not divide the widths {widths} at sides {attention_resolutions}")
    plain = "Resnet{}sampleBlock2D" if resblock_updown else "{}Block2D"
    down = ["AttnDownBlock2D" if s in attention_resolutions else plain.format("Down") for s in sides]
    up = ["AttnUpBlock2D" if s in attention_resolutions else plain.format("Up") for s in reversed(sides)]
    kind = "resnet" if resblock_updown else "conv"
    return UNet2DModel(
        sample_size=image_size,
        in_channels=in_channels,
        out_channels=in_channels,
        block_out_channels=tuple(widths),
        layers_per_block=num_res_blocks,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        attention_head_dim=head_dim,
        norm_num_groups=norm_groups,
        attn_norm_num_groups=norm_groups,
        resnet_time_scale_shift="scale_shift" if scale_shift else "default",
        downsample_type=kind,
        upsample_type=kind,
        dropout=dropout,
        num_class_embeds=num_classes + null_class if num_classes else None,
    )


def consistency_function(unet: Callable[..., Any], levels: NoiseRange) -> Denoiser:
    """f(x, σ) of a network, the identity at ``levels.sigma_min`` to the bit."""
    return _preconditioned(unet, lambda sigma: boundary_scalings(sigma, levels.sigma_min, levels.sigma_data))


def edm_denoiser(unet: Callable[..., Any], levels: NoiseRange) -> Denoiser:
    """D(x, σ) of a network: a diffusion model's estimate of the picture."""
    return _preconditioned(unet, lambda sigma: edm_scalings(sigma, levels.sigma_data))


def _preconditioned(unet: Callable[..., Any], scalings: Callable[[Tensor], Any]) -> Denoiser:
    def call(x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        scale = scalings(sigma if sigma.dtype == torch.float64 else sigma.float())
        wide = x.float()
        inner = (expand(scale.into, wide) * wide).to(x.dtype)
        out = unet(inner, noise_condition(sigma), class_labels=label, return_dict=False)[0]
        return (expand(scale.skip, wide) * wide + expand(scale.out, wide) * out.float()).to(x.dtype)

    return call


def checked_labels(label: Tensor | None, num_classes: int | None, ids: Sequence[str] = ()) -> Tensor | None:
    """Labels of a batch as a model wants them: None where it has no classes.

    Args:
        label: (B,) int64, or None.
        num_classes: Classes of the model.
        ids: Names of the samples, for the message.

    Raises:
        InputError: If the model has classes and the batch no labels, or one is out of range.
    """
    if num_classes is None:
        return None
    if label is None:
        raise InputError(f"the model has {num_classes} classes but the batch no 'label'; give data with classes")
    if label.device.type == "cpu" and bool(((label < 0) | (label >= num_classes)).any()):
        bad = int(((label < 0) | (label >= num_classes)).nonzero()[0])
        name = f" of {ids[bad]}" if bad < len(ids) else ""
        raise InputError(f"label {int(label[bad])}{name} is not in 0..{num_classes - 1}; set num_classes to the data's")
    return label


def copy_all_but_classes(source: UNet2DModel, target: UNet2DModel, origin: str) -> None:
    """Copy a network's weights into another that differs in its classes at most; new classes stay as they are.

    Raises:
        InputError: If anything else differs.
    """
    weights = source.state_dict()
    name = "class_embedding.weight"
    own = target.state_dict()
    if name in weights and (name not in own or own[name].shape != weights[name].shape):
        del weights[name]
    load_onto(target, weights, origin, need=set(own) - {name})
