"""Make a model folder of a checkpoint of OpenAI's consistency_models (or another UNet with ADM's tensor names).

``python -m lit_insert.consistency.convert cd_imagenet64_l2.pt --image_size 64 --out models/cd_imagenet64`` writes a
folder for ``infer.py generate --model``, for ``init`` in a training configuration, and for diffusers. The layout of the
network is read off the tensors; what they do not tell is given: image size, channels of an attention head, kind.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DModel
from torch import Tensor

from lit_insert.artifacts.folder import replace_model_folder
from lit_insert.artifacts.weights import load_onto, read_weights
from lit_insert.consistency.karras import NoiseRange
from lit_insert.consistency.network import build_unet
from lit_insert.consistency.sources import KINDS, ModelFacts, save_folder
from lit_insert.consistency.start import scheduler_for
from lit_insert.errors import InputError

_RESBLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_KINDS = ("weight", "bias")


class Layout(NamedTuple):
    """What the tensors say about the network.

    Attributes:
        widths: Channels of the levels, from full size inwards.
        blocks: Residual blocks of a level on the way down.
        attention: Whether a level has attention.
        resampling: "resblock" (inside residual blocks) or "conv".
        scale_shift: Whether the embedding scales and shifts after a norm.
        classes: Number of class embeddings; None without classes.
    """

    widths: list[int]
    blocks: int
    attention: list[bool]
    resampling: str
    scale_shift: bool
    classes: int | None

    def unet(self, image_size: int, head_dim: int) -> UNet2DModel:
        """Diffusers' network of this layout."""
        return build_unet(
            image_size,
            channels=self.widths[0],
            channel_mult=[width / self.widths[0] for width in self.widths],
            num_res_blocks=self.blocks,
            attention_resolutions=[image_size >> i for i, has in enumerate(self.attention) if has],
            head_dim=head_dim,
            num_classes=self.classes,
            resblock_updown=self.resampling == "resblock",
            scale_shift=self.scale_shift,
        )


def read_layout(state: dict[str, Tensor], origin: str) -> Layout:
    """Work out the network of a state dictionary with ADM's names.

    Args:
        state: Name to tensor.
        origin: Where it comes from, for messages.

    Raises:
        InputError: If the names are not ADM's, or describe a network that diffusers' has no form for.
    """
    stages = {name: _count(state, name) for name in ("input_blocks", "output_blocks")}
    ups = [k for k in state if re.fullmatch(r"output_blocks\.\d+\.[12]\.(in_layers\.0|conv)\.weight", k)]
    levels, total = len(ups) + 1, stages["output_blocks"]
    if not total or stages["input_blocks"] != total or total % levels or total // levels < 2:
        raise InputError(f"{origin}: not a UNet with ADM's tensor names (input_blocks, middle_block, output_blocks)")
    blocks = total // levels - 1
    first = [[1 + level * (blocks + 1) + j for j in range(blocks)] for level in range(levels)]
    try:
        widths = [len(state[f"input_blocks.{own[0]}.0.out_layers.3.weight"]) for own in first]
        embedding = state["time_embed.0.weight"].shape[1]
        scale_shift = len(state["input_blocks.1.0.emb_layers.1.weight"]) == 2 * widths[0]
    except KeyError as error:
        raise InputError(f"{origin}: no tensor {error.args[0]}; not a UNet with ADM's tensor names") from error
    if embedding != widths[0]:
        raise InputError(
            f"{origin}: time embedding of {embedding} for a first level of {widths[0]} channels; diffusers' UNet has "
            "no such form (ADM's 512 px model)"
        )
    attention = []
    for level, own in enumerate(first):
        has = {f"input_blocks.{index}.1.qkv.weight" in state for index in own}
        if len(has) > 1:
            raise InputError(f"{origin}: level {level} has attention in some of its blocks only")
        attention.append(has.pop())
    resampling = "resblock" if not ups or "in_layers" in ups[0] else "conv"
    classes = len(state["label_emb.weight"]) if "label_emb.weight" in state else None
    return Layout(widths, blocks, attention, resampling, scale_shift, classes)


def convert_state(state: dict[str, Tensor], layout: Layout, origin: str) -> dict[str, Tensor]:
    """The same tensors under diffusers' names, float32.

    Raises:
        InputError: If a tensor that the layout needs is missing, or one is left over.
    """
    left, made = dict(state), dict[str, Tensor]()

    def take(name: str) -> Tensor:
        if name not in left:
            raise InputError(f"{origin}: no tensor {name}")
        return left.pop(name).float()

    for old, new in _ENDS.items():
        for kind in _KINDS:
            if old != "label_emb" or (kind == "weight" and layout.classes):
                made[f"{new}.{kind}"] = take(f"{old}.{kind}")
    for what, old, new in _parts(layout):
        if what == "attention":
            made |= _attention(take, old, new)
            continue
        for inner_old, inner_new in _RESBLOCK.items() if what == "resblock" else _conv(old):
            for kind in _KINDS:
                if inner_old != "skip_connection" or f"{old}.{inner_old}.{kind}" in left:
                    made[f"{new}.{inner_new}.{kind}"] = take(f"{old}.{inner_old}.{kind}")
    if left:
        raise InputError(f"{origin}: {len(left)} tensors have no place in the network (first: {min(left)})")
    return made


def _parts(layout: Layout) -> Iterator[tuple[str, str, str]]:
    """Every part inside the three stages: its kind, and its prefix in ADM and in diffusers."""
    levels, per_level = len(layout.widths), layout.blocks + 1
    resample = "resblock" if layout.resampling == "resblock" else "conv"
    for level in range(levels):
        for j in range(layout.blocks):
            old = f"input_blocks.{1 + level * per_level + j}"
            yield from _pair(old, f"down_blocks.{level}", j, layout.attention[level])
        if level < levels - 1:
            yield resample, f"input_blocks.{(level + 1) * per_level}.0", f"down_blocks.{level}.downsamplers.0"
    yield "resblock", "middle_block.0", "mid_block.resnets.0"
    yield "attention", "middle_block.1", "mid_block.attentions.0"
    yield "resblock", "middle_block.2", "mid_block.resnets.1"
    for block in range(levels):
        has = layout.attention[levels - 1 - block]
        for j in range(per_level):
            yield from _pair(f"output_blocks.{block * per_level + j}", f"up_blocks.{block}", j, has)
        if block < levels - 1:
            old = f"output_blocks.{(block + 1) * per_level - 1}.{2 if has else 1}"
            yield resample, old, f"up_blocks.{block}.upsamplers.0"


def _pair(old: str, new: str, j: int, attention: bool) -> Iterator[tuple[str, str, str]]:
    yield "resblock", f"{old}.0", f"{new}.resnets.{j}"
    if attention:
        yield "attention", f"{old}.1", f"{new}.attentions.{j}"


def _conv(old: str) -> list[tuple[str, str]]:
    return [("op" if old.startswith("input_blocks") else "conv", "conv")]


def _attention(take: Any, old: str, new: str) -> dict[str, Tensor]:
    """ADM's 1 x 1 convolutions as linear layers; its qkv holds all queries, then all keys, then all values."""
    made = {}
    for kind in _KINDS:
        made[f"{new}.group_norm.{kind}"] = take(f"{old}.norm.{kind}")
        made[f"{new}.to_out.0.{kind}"] = take(f"{old}.proj_out.{kind}").flatten(1 if kind == "weight" else 0)
        for name, part in zip("qkv", take(f"{old}.qkv.{kind}").chunk(3), strict=True):
            made[f"{new}.to_{name}.{kind}"] = part.flatten(1 if kind == "weight" else 0).contiguous()
    return made


def _count(state: dict[str, Tensor], stage: str) -> int:
    return len({k.split(".")[1] for k in state if k.startswith(f"{stage}.")})


def convert(
    weights: str | Path,
    out: str | Path,
    *,
    image_size: int,
    head_dim: int = 64,
    kind: str = "consistency",
    grid: int = 40,
) -> Path:
    """Write an exported folder; returns it.

    Args:
        weights: A ``.pt`` file: a plain dictionary of tensors. Nothing in it is run.
        out: Folder to write.
        image_size: Side of the pictures that the model was trained on.
        head_dim: Channels of an attention head.
        kind: "consistency", or "edm" for a diffusion teacher.
        grid: Levels of the grid that ``ts`` counts in: 40 of OpenAI's distilled models, 201 (64 px) or 151 (256 px)
            of those trained without a teacher.

    Raises:
        InputError: If the file is no such checkpoint, or does not fit the network to the last tensor.
    """
    origin = str(weights)
    if kind not in KINDS:
        raise InputError(f"kind is {kind!r}; give {' or '.join(KINDS)}")
    if grid < 2:
        raise InputError(f"grid is {grid}; give 2 or more")
    state = read_weights(weights)
    layout = read_layout(state, origin)
    with torch.device("meta"):
        unet = layout.unet(image_size, head_dim)
    unet = unet.to_empty(device="cpu")
    load_onto(unet, convert_state(state, layout, origin), origin, need=set(unet.state_dict()))
    scheduler = scheduler_for(NoiseRange())
    scheduler = scheduler.from_config({**scheduler.config, "num_train_timesteps": grid})
    with replace_model_folder(out) as temporary:
        save_folder(temporary, unet.eval(), scheduler, ModelFacts(kind=kind))  # type: ignore[arg-type]
    return Path(out)


def main(args: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="a .pt file of OpenAI's consistency_models: model, ema or target")
    parser.add_argument("--image_size", type=int, required=True, help="side of its pictures, such as 64")
    parser.add_argument("--head_dim", type=int, default=64, help="channels of an attention head (default: 64)")
    parser.add_argument("--kind", default="consistency", help="consistency (default), or edm for a teacher")
    parser.add_argument("--grid", type=int, default=40, help="levels that ts counts in: 40 (default), 201 or 151")
    parser.add_argument("--out", required=True, help="folder to write")
    try:
        print(convert(**vars(parser.parse_args(args))))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
