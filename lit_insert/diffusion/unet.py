"""Which UNet parameters train, and widening a text-to-image UNet to take a scene as well."""

import re
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
    names = [name for name, _ in unet.named_parameters()]
    pattern = {"attn2": r"\.attn2\.", "attn2.kv": r"\.attn2\.to_[kv]\.", "all": ""}[target]
    wanted = [name for name in names if re.search(pattern, name)]
    if not blocks:
        return wanted
    chosen: set[str] = set()
    for block in blocks:
        inside = [name for name in names if name.startswith(f"{block}.")]
        if not inside:
            have = dict.fromkeys(re.sub(r"^((?:down|up)_blocks\.\d+|[^.]+).*", r"\1", name) for name in names)
            raise InputError(f"the UNet has no block {block!r}; it has: {', '.join(have)}")
        matched = [name for name in inside if re.search(pattern, name)]
        if not matched:
            having = dict.fromkeys(re.sub(r"^((?:down|up)_blocks\.\d+|[^.]+).*", r"\1", n) for n in wanted)
            raise InputError(
                f"block {block!r} has no cross-attention ({target}); blocks that do: {', '.join(having)}"
            )
        chosen.update(matched)
    return [name for name in names if name in chosen]


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
    new = nn.Conv2d(
        2 * out, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None
    ).to(old.weight.device, old.weight.dtype)
    new.weight.zero_()
    new.weight[:, :have] = old.weight
    if old.bias is not None and new.bias is not None:
        new.bias.copy_(old.bias)
    unet.conv_in = new
    unet.register_to_config(in_channels=2 * out)
    return unet
