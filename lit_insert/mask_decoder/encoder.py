"""The encoder: any Hiera that timm has, at any size, with weights from a file or from timm."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.hiera import Hiera
from timm.models.hieradet_sam2 import HieraDet
from torch import Tensor, nn

from lit_insert.artifacts.weights import load_onto, read_weights
from lit_insert.errors import InputError

STRIDE = 32  # of the coarsest map
DYNAMIC = ("hieradet", "sam2")  # families that take any multiple of it, without masking
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


def as_size(img_size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width from one number or two.

    Raises:
        InputError: If they are not positive multiples of 32.
    """
    sides = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    if len(sides) != 2 or any(not isinstance(s, int) or s < STRIDE or s % STRIDE for s in sides):
        near = [max(STRIDE, round(s / STRIDE) * STRIDE) if isinstance(s, int) else 256 for s in sides][:2]
        raise InputError(f"img_size is {img_size}; height and width must be multiples of {STRIDE}, such as {near}")
    return sides[0], sides[1]


def make_encoder(
    name: str,
    img_size: int | Sequence[int],
    overrides: Mapping[str, Any] | None = None,
    classes: int = 0,
) -> Hiera | HieraDet:
    """A randomly initialised encoder; nothing is downloaded.

    Args:
        name: timm's name: hiera_*, hiera_*_abswin_256, hieradet_* or sam2_hiera_*.
        img_size: Side, or height and width, in pixels; multiples of 32.
        overrides: Arguments of the timm class, such as embed_dim, num_heads, stages or drop_path_rate.
        classes: Outputs of a classifier to leave on it; 0 removes it.

    Raises:
        InputError: If timm has no such Hiera, the size does not fit, or an argument is unknown.
    """
    size = as_size(img_size)
    known = timm.list_models("*hiera*")
    if name not in known:
        raise InputError(f"encoder is {name!r}; timm has {', '.join(known)}")
    arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in dict(overrides or {}).items()}
    if name.startswith(DYNAMIC):
        _check_global_attention(arguments)
    elif "img_size" not in arguments:
        arguments["img_size"] = size
    try:
        model: Any = timm.create_model(name, False, num_classes=classes, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError, ZeroDivisionError) as error:
        reason = str(error).split("__init__() ")[-1].splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"encoder_kwargs of {name}: {reason}") from error
    if not classes:
        model.prune_intermediate_layers(len(model.stage_ends))
        model.head = nn.Identity()  # older timm leaves a norm on some
    encoder: Hiera | HieraDet = model
    return encoder


def _check_global_attention(arguments: Mapping[str, Any]) -> None:
    """The default blocks of global attention belong to the default depth; and in timm none may pool."""
    if "stages" not in arguments:
        return
    stages, given = tuple(arguments["stages"]), arguments.get("global_att_blocks") or ()
    pooling = {sum(stages[:i]) for i in range(1, len(stages))}
    able = [i for i in range(sum(stages)) if i not in pooling]
    if not given or not set(given) <= set(able):
        deep = [i for i in able if i > sum(stages[:2])]
        hint = f"such as {deep[:3]}" if deep else "and a deeper third or fourth stage has to make room for one"
        raise InputError(
            f"encoder_kwargs: with stages {list(stages)}, global_att_blocks must be some of {able} (no first block of "
            f"a later stage), {hint}; without them no block sees the whole picture"
        )


def is_dynamic(encoder: nn.Module) -> bool:
    """Whether it takes any multiple of 32 (hieradet, sam2), rather than the one size it was made for."""
    return isinstance(encoder, HieraDet)


def is_position(name: str) -> bool:
    """Whether a parameter of an encoder is a position embedding; timm's own list of them lacks the abswin family's."""
    return name.startswith("pos_embed")


def feature_maps(encoder: nn.Module, pixel_values: Tensor) -> list[Tensor]:
    """Maps (B,C,h,w) after each stage, finest first."""
    maps: list[Tensor] = encoder.forward_intermediates(pixel_values, intermediates_only=True)  # type: ignore[operator]
    return maps


def widths(encoder: nn.Module) -> list[int]:
    """Channels of each map."""
    return [int(info["num_chs"]) for info in encoder.feature_info]  # type: ignore[union-attr]


def load_encoder(encoder: Hiera | HieraDet, source: str, name: str) -> str:
    """Load pretrained weights, resizing position embeddings where the size differs.

    Args:
        encoder: Where they go.
        source: A ``.safetensors`` or ``.pth`` file in timm's layout, a folder that `HieraFPN` or `HieraMAE` was
            exported to, or a timm tag such as "mae" (downloaded, or from the hub's cache).
        name: timm's name of the encoder.

    Returns:
        Where the weights came from, for the record.

    Raises:
        InputError: If there is no such file or tag, or the weights are of another encoder.
    """
    path = Path(source).expanduser()
    size: tuple[int, int] | None = None
    if path.is_dir() or path.suffix in _FILES:
        state, size = _read(path)
        label = path.name
    else:
        state, label = _download(name, source), f"timm/{name}.{source.removeprefix(name + '.')}"
    state = {k: v for k, v in state.items() if not k.startswith("head.")}
    if "pos_embed" in state:
        state["pos_embed"] = resize_positions(state["pos_embed"], encoder, size)
    need = {k for k in encoder.state_dict() if not k.startswith("head.")}
    load_onto(encoder, state, f"encoder_weights {source} into {name}", need=need)
    return label


def resize_positions(embedding: Tensor, encoder: Hiera | HieraDet, old: tuple[int, int] | None = None) -> Tensor:
    """Bring an absolute position embedding (1,N,C) to the encoder's grid, bicubically; others come back as they are.

    The plain Hiera's embedding repeats with its attention windows, and interpolation smears that (Bolya et al. 2023,
    "Window Attention is Bugged"): after a change of size it needs fine-tuning. The abswin, hieradet and sam2 families
    keep a separate embedding (1,C,h,w) for the windows, which is tiled rather than stretched: prefer them where sizes
    change.

    Args:
        embedding: As saved.
        encoder: Where it goes.
        old: Height and width of the picture it was made for; square by default.

    Raises:
        InputError: If the grid is not square and ``old`` is not given.
    """
    if embedding.ndim != 3 or not isinstance(encoder, Hiera):
        return embedding
    count, stride = embedding.shape[1], encoder.patch_stride
    grid = [old[0] // stride[0], old[1] // stride[1]] if old else [math.isqrt(count)] * 2
    if math.prod(grid) != count:
        raise InputError(
            f"a position embedding of {count} tokens is not {grid[0]}x{grid[1]}; "
            "give the exported folder, whose config.json holds the size"
        )
    return resample_abs_pos_embed(embedding, list(encoder.tokens_spatial_shape), grid, num_prefix_tokens=0)


def _read(path: Path) -> tuple[dict[str, Tensor], tuple[int, int] | None]:
    size = None
    if path.is_dir():
        config = path / "config.json"
        if not config.is_file():
            raise InputError(f"encoder_weights {path}: no config.json in it; give an exported folder or a file")
        size = as_size(json.loads(config.read_text(encoding="utf-8")).get("img_size", 224))
        path = path / _WEIGHTS
    state = read_weights(path)
    for prefix in ("backbone.", "model."):
        if any(k.startswith(prefix) for k in state):
            return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}, size
    return dict(state), size


def _download(name: str, tag: str) -> dict[str, Tensor]:
    tag = tag.removeprefix(name + ".")
    tags = [t.partition(".")[2] for t in timm.list_pretrained(name + ".*")]
    if tag not in tags:
        raise InputError(f"encoder_weights {tag!r}: no such file, and timm's tags for {name} are {', '.join(tags)}")
    try:
        with torch.random.fork_rng([]):
            model = timm.create_model(f"{name}.{tag}", pretrained=True, num_classes=0)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"encoder_weights {tag!r}: timm could not load {name}.{tag} ({reason})") from error
    state: dict[str, Tensor] = model.state_dict()
    return state
