#!/usr/bin/env python
"""Build a folder of one picture with a mask for each instance, for learning a word for each.

    python data/prepare_instances.py --image toys.jpg --masks a.png b.png --out my_instance
    python data/prepare_instances.py --image toys.jpg --painted colours.png --out my_instance
    python data/prepare_instances.py --image toys.jpg --mask_model pocket --out my_instance
    python data/prepare_instances.py --image toys.jpg --segmenter clipseg --phrases "red car" "cup" --out my_instance
    python data/prepare_instances.py --scene "striped red circle" "checked red circle" --out my_instance
    python data/prepare_instances.py --check my_instance

Look at OUT/index.html, then: python train.py fit --config configs/mifo/pocket.yaml --data.folder OUT --out runs/m
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import ndarray
    from PIL.Image import Image

_WAYS = ("masks", "painted", "mask_model", "segmenter", "scene", "check")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--image", type=Path, metavar="FILE", help="the picture")
    add("--out", type=Path, metavar="DIR", help="where img.png, mask0.png, … and index.html go")
    add("--masks", nargs="+", type=Path, metavar="FILE", help="a mask for each instance, white on black, in order")
    add("--painted", type=Path, metavar="FILE", help="one painting over the picture, a colour for each instance")
    add("--mask_model", metavar="MODEL", help="a mask decoder; each connected part that it finds is an instance")
    add("--segmenter", choices=("clipseg", "sam3", "pocket"), help="finds --phrases, one instance each")
    add("--source", metavar="MODEL", help="weights of the segmenter: folder or hub id")
    add("--phrases", nargs="+", default=[], metavar="TEXT", help="what the segmenter looks for, in order")
    add("--scene", nargs="+", metavar="THING", help="no picture: draw things such as 'striped red circle', 1 to 4")
    add("--places", nargs="+", type=int, metavar="N", help="their places in the scene, 0 to 3; by default in order")
    add("--scene_number", type=int, default=0, help="decides the backdrop of the scene")
    add("--scene_size", type=int, default=32, help="side of the scene in pixels")
    add("--check", type=Path, metavar="DIR", help="only look at a folder that exists, and write its index.html")
    add("--side", type=int, default=0, help="shrink the picture and its masks to this longer side; 0 keeps them")
    add("--most", type=int, default=8, help="most instances that --mask_model may give")
    args = parser.parse_args(argv)
    ways = [way for way in _WAYS if getattr(args, way) is not None]
    if len(ways) != 1:
        parser.error(f"give one of {', '.join('--' + way for way in _WAYS)}")
    if ways[0] != "check" and args.out is None:
        parser.error("--out DIR is missing")
    if ways[0] not in ("check", "scene") and args.image is None:
        parser.error(f"--{ways[0]} needs --image")
    if bool(args.segmenter) != bool(args.phrases):
        parser.error("--segmenter and --phrases go together")
    return args


def run(args: argparse.Namespace) -> int:
    """Build the folder, or look at one, and tell what is odd."""
    from lit_insert.data.instance_folder import read_instances
    from lit_insert.data.instance_recipe import draw_scene, parse_thing, write_instances, write_page
    from lit_insert.images import load_image

    if args.check is not None:
        warnings = read_instances(args.check).warnings
        page = write_page(args.check)
    else:
        if args.scene is not None:
            things = [parse_thing(text) for text in args.scene]
            places = args.places or list(range(len(things)))
            image, masks = draw_scene(things, places, index=args.scene_number, size=args.scene_size)
        else:
            image = load_image(args.image)
            masks = find_masks(args, image)
        image, masks = shrunk(image, masks, args.side)
        warnings = write_instances(image, masks, args.out)
        page = args.out / "index.html"
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{len(read_instances(page.parent).masks)} instances in {page.parent}, see {page}")
    return 0


def find_masks(args: argparse.Namespace, image: "Image") -> "ndarray":
    """Masks (K,H,W) of the picture by the way asked for."""
    import numpy as np

    from lit_insert.data.instance_recipe import load_masks, painted_masks, split_mask
    from lit_insert.errors import InputError
    from lit_insert.images import load_image

    if args.masks is not None:
        return load_masks(args.masks)
    if args.painted is not None:
        return painted_masks(load_image(args.painted, mode="RGBA"))
    if args.mask_model is not None:
        from lit_insert.mask_decoder.pipeline import MaskPipeline

        mask = np.asarray(MaskPipeline.from_pretrained(args.mask_model)(image).mask)
        return split_mask(mask > 127 if mask.max() > 1 else mask > 0, args.most)
    from lit_insert.segmenters.loading import load_segmenter

    found = load_segmenter(args.segmenter, args.source).instances(image, args.phrases, max_instances=1)
    missing = [p for p, things in zip(args.phrases, found, strict=True) if not len(things)]
    if missing:
        raise InputError(f"--phrases: {missing[0]!r} was not found in {args.image}; describe it otherwise or paint it")
    return np.stack([next(iter(things)).mask.astype(np.uint8) for things in found])


def shrunk(image: "Image", masks: "ndarray", side: int) -> "tuple[Image, ndarray]":
    """Picture and masks with a longer side of at most ``side`` pixels; 0 keeps them."""
    import numpy as np
    from PIL.Image import Resampling, fromarray

    if not side or max(image.size) <= side:
        return image, masks
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = [fromarray(m * 255).resize(size, Resampling.BOX) for m in masks]
    kept = np.stack([np.asarray(m) >= 128 for m in small]).astype(np.uint8)
    return image.resize(size, Resampling.LANCZOS), kept


def main(argv: list[str] | None = None) -> int:
    """Parse, run, and turn mistakes and interrupts into exit codes."""
    args = parse(argv)
    from lit_insert.cli.scripts import run_script

    return run_script(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
