"""Which UNet parameters train, and widening a text-to-image UNet to take a scene as well."""

import re
from copy import deepcopy
from typing import Literal

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from lit_insert.errors import InputError

Target = Literal["attn2", "attn2.kv", "all"]


def select_parameters(unet: nn.Module, blocks: list[str], target: Target = "attn2") -> list[str]:
    """Names of the UNet parameters that a tuning choice reaches.

    Args:
        unet: A diffusers UNet (the meta device will do).
        blocks: Top-level blocks such as "down_blocks.2", "mid_block"; an empty list means the whole UNet.
        target: "attn2" for cross-attention layers, "attn2.kv" for their key and value projections, "all".

    Returns:
        Parameter names, in the model's order, each once.

    Raises:
        InputError: If a block does not exist (the message lists those that do) or has nothing of that kind.
    """
    if target not in ("attn2", "attn2.kv", "all"):
        raise InputError(f"UNet target {target!r} is unknown; use attn2, attn2.kv, lora, all or none")
    names = [name for name, _ in unet.named_parameters()]
    pattern = {"attn2": r"\.attn2\.", "attn2.kv": r"\.attn2\.to_[kv]\.", "all": ""}[target]
    wanted = [name for name in names if re.search(pattern, name)]
    if not wanted:
        raise InputError(f"the UNet has no cross-attention ({target}): nothing in it can read the reference")
    if not blocks:
        return wanted
    chosen: set[str] = set()
    for block in blocks:
        inside = [name for name in names if name.startswith(f"{block}.")]
        if not inside:
            have = dict.fromkeys(_block(name) for name in names)
            raise InputError(f"the UNet has no block {block!r}; it has: {', '.join(have)}")
        matched = [name for name in inside if re.search(pattern, name)]
        if not matched:
            having = dict.fromkeys(_block(n) for n in wanted)
            raise InputError(f"block {block!r} has no cross-attention ({target}); blocks that do: {', '.join(having)}")
        chosen.update(matched)
    return [name for name in names if name in chosen]


def _block(name: str) -> str:
    return re.sub(r"^((?:down|up)_blocks\.\d+|[^.]+).*", r"\1", name)


def add_lora(unet: UNet2DConditionModel, blocks: list[str], rank: int, alpha: float) -> list[str]:
    """Put trainable low-rank updates (Hu et al. 2021) on the cross-attention's linear layers, in place.

    W x becomes W x + (alpha/rank)·B A x, with B zero at the start, so that the output is at first the same.

    Args:
        unet: A diffusers UNet.
        blocks: As for :func:`select_parameters`.
        rank: Rows of A.
        alpha: Scale of the update.

    Returns:
        Names of the new parameters, the only ones of the UNet that require a gradient afterwards.

    Raises:
        InputError: As :func:`select_parameters`, or if ``rank`` is not positive.
    """
    from peft import LoraConfig  # seconds to import, for those who use it

    if rank < 1:
        raise InputError(f"LoRA rank is {rank}; give 1 or more")
    names = select_parameters(unet, blocks, "attn2")
    layers = [n.removesuffix(".weight") for n in names if n.endswith(".weight") and "norm" not in n]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers, init_lora_weights="gaussian"))
    return [name for name, _ in unet.named_parameters() if ".lora_" in name]


def has_lora(unet: nn.Module) -> bool:
    """Whether :func:`add_lora` has been applied."""
    return any(".lora_" in name for name, _ in unet.named_parameters())


def merge_lora(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy with the low-rank updates added to the weights they update: a plain UNet of the same function."""
    merged = deepcopy(unet)
    merged.fuse_lora()
    merged.unload_lora()
    return merged


@torch.no_grad()
def widen_conv_in(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Let the UNet take [noisy latent, scene latent]: C input channels become 2·C, in place.

    The new channels' weights are zero and the bias is kept, so with any scene the output equals the old network's
    until training moves them. A UNet that already takes 2·C channels is returned untouched.

    Raises:
        InputError: If the UNet takes neither C nor 2·C channels.
    """
    have, out = unet.config["in_channels"], unet.config["out_channels"]
    if have == 2 * out:
        return unet
    if have != out:
        raise InputError(f"the UNet takes {have} channels; InstructPix2Pix needs {out} (to widen) or {2 * out}")
    old = unet.conv_in
    new = nn.Conv2d(2 * out, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None).to(
        old.weight.device, old.weight.dtype
    )
    new.weight.zero_()
    new.weight[:, :have] = old.weight
    if old.bias is not None and new.bias is not None:
        new.bias.copy_(old.bias)
    unet.conv_in = new
    unet.register_to_config(in_channels=2 * out)
    return unet
