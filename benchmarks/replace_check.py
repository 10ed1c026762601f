"""Does replacing work? The background untouched, the hole filled, the new thing the right one, and found again.

On held-out scenes of the procedural world one thing is taken out (by its exact mask) and another put in: pasted as a
cut-out, or made by a consistency model from a reference. The true background and the true classes are known; a judge
trained on ground truth names the new thing, and the pocket mask model looks for it.
``python benchmarks/replace_check.py --json``; with ``--people`` also pairs of real photos with masks.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lit_insert import pocket
from lit_insert.consistency.pipeline import ConsistencyPipeline
from lit_insert.data import world
from lit_insert.errors import InputError
from lit_insert.images import list_images, to_pil, to_tensor
from lit_insert.mask_decoder.pipeline import MaskPipeline
from lit_insert.metrics.insertion import InsertionJudge, crop_around
from lit_insert.replace.fills import OpenCVFill
from lit_insert.replace.generative import ConsistencyFill
from lit_insert.replace.page import ReplacePage
from lit_insert.replace.pipeline import ReplaceOutput, ReplacePipeline
from lit_insert.replace.settings import ReplaceSettings

FIRST = 3 << 40  # scene numbers that no training, validation or test uses
COLUMNS = ("background", "filled", "shape", "color", "texture", "all", "found", "iou", "seam")


@dataclass
class Case:
    """A scene, what is taken out of it, and what is put in."""

    photo: Image.Image
    empty: Image.Image  # the scene without the old thing
    bare: Image.Image  # and without the darkened place that it stood on, which nobody can know of
    mask: Image.Image
    new: Image.Image  # RGBA
    label: torch.Tensor  # (3,) of the new thing
    center: torch.Tensor  # (2,) of the old thing, pixels


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--n", type=int, default=100, help="number of scenes")
    parser.add_argument("--size", type=int, default=64, help="side of the scenes in pixels")
    parser.add_argument("--versions", nargs="+", default=["cut_out", "reference"], choices=["cut_out", "reference"])
    parser.add_argument("--cut_out_fill", default="opencv", choices=["opencv", "consistency"])
    parser.add_argument("--fill_model", default="pocket", help="consistency model")
    parser.add_argument("--mask_model", default="pocket")
    parser.add_argument("--start_sigma", type=float, help="where a reference is begun from; by default the fill's own")
    parser.add_argument("--steps", type=int, default=2, help="evaluations of the consistency model")
    parser.add_argument("--colour_strength", type=float, default=0.0, help="0: colours name the classes here")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes and the noise")
    parser.add_argument("--people", type=Path, help="folder with images/ and masks/: also replace people of its photos")
    parser.add_argument("--pairs", type=int, default=20, help="number of those")
    parser.add_argument("--report", type=Path, help="also write an HTML page with every step")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    try:
        run(args)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error


def run(args: argparse.Namespace) -> None:
    """Measure and print."""
    page, began = ReplacePage(rows=12 * len(args.versions) + args.pairs), time.perf_counter()
    cases = make_cases(args.n, args.size, args.seed)
    finder = MaskPipeline.from_pretrained(args.mask_model)
    judge = InsertionJudge.from_pretrained(pocket.path("judge")).eval()
    scores = {
        version: check(version, cases, pipeline(args, version, finder), judge, args, page) for version in args.versions
    }
    table = Table(title=f"{args.n} scenes of {args.size} px")
    for name in ("", *COLUMNS):
        table.add_column(name)
    for version, row in scores.items():
        table.add_row(version, *(f"{row[name]:.3g}" for name in COLUMNS))
    Console(width=120).print(table)
    people = check_people(args, page) if args.people else None
    if people:
        print(f"people: {people}")
    if args.report:
        page.page(f"{args.n} scenes, fill model {args.fill_model}").save(args.report)
    if args.json:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        result = {"benchmark": "replace_check", "settings": settings, "scores": scores, "people": people}
        print(json.dumps(result | {"seconds": round(time.perf_counter() - began, 1)}))


def make_cases(count: int, size: int, seed: int) -> list[Case]:
    """Scenes whose chosen thing gives way to one of another shape, colour and texture, on the same place."""
    index = torch.arange(count) + FIRST
    every = world.combinations("train", 0)
    old = world.lay_out(index, seed=seed, triples=every)
    rows = torch.arange(count)
    label = old.objects.label[rows, old.chosen]
    turn = (world.uniforms(seed, index, 3, stream=21) * torch.tensor([5, 7, 2])).long() + 1
    new_label = (label + turn) % torch.tensor([6, 8, 3])  # never the same in any of the three
    rgb, coverage = world.draw_objects(old.objects, size)
    backdrop = world.draw_places(world.draw_background(old.background, size), old)
    present = old.state == world.OCCUPIED
    without = present.clone()
    without[rows, old.chosen] = False
    photo = world.compose(backdrop, rgb, coverage, present)
    empty = world.compose(backdrop, rgb, coverage, without)
    old.state[rows, old.chosen] = world.ABSENT
    bare = world.compose(world.draw_places(world.draw_background(old.background, size), old), rgb, coverage, without)
    thing = world.Objects(**{k: v[rows, old.chosen][:, None].clone() for k, v in vars(old.objects).items()})
    center = torch.stack([thing.x[:, 0], thing.y[:, 0]], 1) * size
    thing.label[:, 0], thing.x[:], thing.y[:], thing.radius[:] = new_label, 0.5, 0.5, 0.4
    new_rgb, new_coverage = world.draw_objects(thing, 96)
    cases = []
    for i in range(count):
        cut = to_pil(new_rgb[i, 0] * 2 - 1).convert("RGBA")
        cut.putalpha(to_pil(new_coverage[i, 0]))
        mask = to_pil((coverage[i, old.chosen[i]] >= 0.5).float())
        pictures = (to_pil(p[i] * 2 - 1) for p in (photo, empty, bare))
        cases.append(Case(*pictures, mask, cut, new_label[i], center[i]))
    return cases


def pipeline(args: argparse.Namespace, version: str, finder: MaskPipeline) -> ReplacePipeline:
    """The pipeline of a version."""
    if version == "cut_out" and args.cut_out_fill == "opencv":
        return ReplacePipeline(OpenCVFill(), finder)
    model = ConsistencyPipeline.from_pretrained(args.fill_model)
    model.set_progress_bar_config(disable=True)
    sigma = args.start_sigma if version == "reference" else None
    return ReplacePipeline(ConsistencyFill(model, args.steps, sigma), finder)


def check(
    version: str,
    cases: list[Case],
    replacing: ReplacePipeline,
    judge: InsertionJudge,
    args: argparse.Namespace,
    page: ReplacePage,
) -> dict[str, float]:
    """Replace in every scene, and score: means over the scenes, of "background" the maximum."""
    # A model of whole scenes must see whole scenes.
    settings = ReplaceSettings(colour_strength=args.colour_strength, region_scale=None, min_area=0.0)
    rows = []
    for number, case in enumerate(track(cases, description=version)):
        output = replacing(
            case.photo, mask=case.mask, seed=args.seed + number, settings=settings, **{version: case.new}
        )
        rows.append(score(case, output, judge))
        if number < 12:
            page.add(f"{version} {number}", output)
    means = {name: float(np.mean([row[name] for row in rows])) for name in COLUMNS}
    return means | {"background": max(row["background"] for row in rows)}


def score(case: Case, output: ReplaceOutput, judge: InsertionJudge) -> dict[str, float]:
    """Figures of one replacement.

    "filled": of the old thing's pixels that the new one does not cover, the part that is nearer to the true background
    than to the old thing. "found": the mask model sees more than half of the new thing; "iou" compares what it sees
    where alpha is above 0 with the new thing.
    """
    steps, report = output.steps, output.report
    height, width = steps.person.shape
    top, left = -report.region[1], -report.region[0]
    placed = steps.paste[top : top + height, left : left + width, 3]
    layer, old_only = placed > 127, steps.person & (placed == 0)
    pictures = (case.photo, output.image, case.empty, case.bare)
    before, after, empty, bare = (np.asarray(p).astype(float) for p in pictures)
    to_old = np.abs(after - before).sum(-1)[old_only]
    to_background = np.minimum(np.abs(after - empty).sum(-1), np.abs(after - bare).sum(-1))[old_only]
    with torch.no_grad():
        logits = judge(crop_around(to_tensor(output.image)[None], case.center[None]))
    right = [float(head.argmax(-1) == want) for head, want in zip(logits, case.label, strict=True)]
    near = steps.alpha > 0
    union = (steps.mask_after & near) | layer
    return {
        "background": float(report.background_max_abs_diff),
        "filled": float((to_background < to_old).mean()) if old_only.any() else 1.0,
        "shape": right[0],
        "color": right[1],
        "texture": right[2],
        "all": float(all(right)),
        "found": float(report.found_after > 0.5),
        "iou": float((steps.mask_after & layer).sum() / union.sum()),
        "seam": report.seam_gradient_ratio or 1.0,
    }


def check_people(args: argparse.Namespace, page: ReplacePage) -> dict[str, float]:
    """Replace the person of each of some photos by that of the next, masks given."""
    photos = list_images(args.people / "images")
    order = np.random.default_rng(args.seed).permutation(len(photos))
    replacing, background, seams = ReplacePipeline(), 0, []
    for number in track(range(args.pairs), description="people"):
        photo, other = photos[order[2 * number]], photos[order[2 * number + 1]]
        masks = [args.people / "masks" / f"{p.stem}.png" for p in (photo, other)]
        output = replacing(photo, mask=masks[0], cut_out=other, cut_out_mask=masks[1], seed=args.seed)
        page.add(f"{photo.stem} with {other.stem}", output)
        background = max(background, output.report.background_max_abs_diff)
        if output.report.seam_gradient_ratio is not None:
            seams.append(output.report.seam_gradient_ratio)
    return {"pairs": args.pairs, "background": background, "seam": round(float(np.median(seams)), 3)}


if __name__ == "__main__":
    main()
