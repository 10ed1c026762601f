"""The models behind ``infer.py replace``: which are needed, and loading them."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_insert.artifacts.resolve import resolve_model
from lit_insert.cli.common import device_name, move, positive, quiet_libraries
from lit_insert.errors import InputError

if TYPE_CHECKING:
    from lit_insert.replace.fills import Fill
    from lit_insert.replace.pipeline import ReplacePipeline

FILLS = ("opencv", "consistency", "diffusion")
# Option -> the fills it is for.
_OWN = {
    "start_sigma": ("consistency",),
    "repeats": ("consistency",),
    "strength": ("diffusion",),
    "negative_prompt": ("diffusion",),
    "resolution": ("diffusion",),
    "num_inference_steps": ("consistency", "diffusion"),
    "guidance_scale": ("consistency", "diffusion"),
    "fill_model": ("consistency", "diffusion"),
}


def add_fill_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the fill."""
    fill = parser.add_argument_group("fill")
    fill.add_argument(
        "--fill",
        choices=FILLS,
        help="what fills the hole; by default opencv with --with, diffusion with --prompt, else consistency",
    )
    fill.add_argument(
        "--fill_model",
        metavar="MODEL",
        help="its model: for consistency pocket (the default), a run, a folder, a .ckpt or a hub id; for diffusion "
        "the folder or hub id of a diffusers inpainting pipeline",
    )
    fill.add_argument("--num_inference_steps", metavar="N", type=positive, help="evaluations (default: 2, or 30)")
    fill.add_argument(
        "--guidance_scale", metavar="S", type=float, help="how closely to follow prompt or class (default: 7.5, or 1)"
    )
    fill.add_argument("--negative_prompt", metavar="TEXT", help="diffusion: what is not wanted")
    fill.add_argument(
        "--strength", metavar="S", type=float, help="diffusion with --reference: how far to leave it, 0 to 1"
    )
    fill.add_argument("--resolution", metavar="PX", type=positive, help="diffusion: side of the square it works on")
    fill.add_argument(
        "--start_sigma",
        metavar="S",
        type=float,
        help="consistency: noise level to begin at; with --reference how far to leave it",
    )
    fill.add_argument("--repeats", metavar="N", type=positive, help="consistency: evaluations at every level")


def settle_fill(options: argparse.Namespace) -> None:
    """Choose the fill if none is named, and check its options.

    Raises:
        InputError: If an option is another fill's, or a model is missing.
    """
    if options.fill is None:
        pasted, words = options.cut_out is not None, options.prompt is not None
        options.fill = "diffusion" if words else "opencv" if pasted else "consistency"
    for name, fills in _OWN.items():
        if getattr(options, name) is not None and options.fill not in fills:
            raise InputError(f"--{name} is for --fill {' or '.join(fills)}; this is {options.fill}")
    if options.fill == "diffusion" and not options.fill_model:
        raise InputError("--fill diffusion needs --fill_model, the folder or hub id of an inpainting pipeline")
    if options.fill == "consistency":
        options.fill_model = options.fill_model or "pocket"
    for model, own in ((options.fill_model, "generate"), (options.mask_model, "mask")):
        if model is not None:
            resolve_model(model, own)  # before torch: mistakes should answer at once


def needs_segmenter(options: argparse.Namespace, wishes: Iterable[Path]) -> bool:
    """Whether a mask model has something to do."""
    if options.mask_model is not None or not options.mask:
        return True
    if options.with_mask or options.reference_mask:
        return False
    from lit_insert.images import load_image
    from lit_insert.replace.cutout import has_alpha

    return options.cut_out is not None and not all(has_alpha(load_image(p, mode="RGBA")) for p in wishes)


def load_pipeline(options: argparse.Namespace, segmenter: bool) -> "ReplacePipeline":
    """Load what is needed, and bring it to the device."""
    from lit_insert.replace.pipeline import ReplacePipeline

    fill = _load_fill(options)
    if not segmenter:
        return ReplacePipeline(fill)
    from lit_insert.mask_decoder.pipeline import MaskPipeline

    options.mask_model = options.mask_model or "pocket"
    finder = MaskPipeline.from_pretrained(options.mask_model)
    move(finder, device_name(options.device))
    return ReplacePipeline(fill, finder)


def _load_fill(options: argparse.Namespace) -> "Fill":
    if options.fill == "opencv":
        from lit_insert.replace.fills import OpenCVFill

        return OpenCVFill()
    quiet_libraries()
    import torch

    from lit_insert.replace.generative import ConsistencyFill, DiffusionFill

    given = {name: getattr(options, name) for name, fills in _OWN.items() if options.fill in fills}
    settings: dict[str, Any] = {k: v for k, v in given.items() if v is not None and k != "fill_model"}
    device, dtype = device_name(options.device), options.dtype
    if dtype == "auto":
        dtype = "float32" if device == "cpu" or options.fill == "consistency" else "float16"
    if options.fill == "consistency":
        from lit_insert.consistency.pipeline import ConsistencyPipeline

        pipeline = ConsistencyPipeline.from_pretrained(options.fill_model, dtype=getattr(torch, dtype))
        move(pipeline, device)
        pipeline.set_progress_bar_config(disable=True)
        return ConsistencyFill(pipeline, **settings)
    fill = DiffusionFill.from_pretrained(options.fill_model, dtype=getattr(torch, dtype), **settings)
    move(fill.pipeline, device)
    return fill
