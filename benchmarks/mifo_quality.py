"""Does each thing of a prompt stand in its own box, and nothing of the other there?

Prompts of two things of the procedural world, boxes at two of its places, and the same boxes exchanged. A judge,
trained on ground truth, names what is in each box. ``python benchmarks/mifo_quality.py --json``
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from lit_insert import pocket
from lit_insert.data import world
from lit_insert.data.caption_scenes import CaptionSceneDataset
from lit_insert.errors import InputError
from lit_insert.images import image_grid, save_image, to_pil
from lit_insert.metrics.insertion import InsertionJudge
from lit_insert.metrics.prompted import PLACES, PromptedObjects, place_logits
from lit_insert.mifo.boxes import Box, draw_layout
from lit_insert.mifo.pipeline import SynthesisPipeline

ROWS: dict[str, dict[str, bool]] = {
    "no control": {"masks": False, "guidance": False, "refinement": False},
    "masks": {"masks": True, "guidance": False, "refinement": False},
    "masks, refined": {"masks": True, "guidance": False, "refinement": True},
    "guidance": {"masks": False, "guidance": True, "refinement": False},
    "both": {"masks": True, "guidance": True, "refinement": False},
    "both, refined": {"masks": True, "guidance": True, "refinement": True},
}
COLUMNS = ("right", "strict", "shape", "color", "leak", "exchanged", "anywhere")
HALF = 0.23  # of a box; the largest things have a radius of 0.21


@dataclass
class Layout:
    """Two things of a prompt and the places, 0 to 3, of their boxes."""

    prompt: str
    labels: Tensor
    places: list[int]

    @property
    def boxes(self) -> list[Box]:
        """A box for each thing, named by its words."""
        names = [world.describe(label).split(" ", 1)[1] for label in self.labels]
        return [
            Box(name, *(round(v, 4) for v in (x - HALF, y - HALF, x + HALF, y + HALF)))
            for name, (x, y) in zip(names, (PLACES[p] for p in self.places), strict=True)
        ]


def layouts(split: str, count: int) -> list[Layout]:
    """The first scenes of a split with two things that differ in shape and colour."""
    data = CaptionSceneDataset(split, 1 << 20, chances=(0.0, 1.0, 0.0))
    found: list[Layout] = []
    for start in range(0, 1 << 16, 64):
        batch = data.batch(range(start, start + 64))
        for labels in batch["labels"]:
            places = [p for p in range(4) if labels[p, 0] >= 0]
            own = labels[places]
            if (own[0, :2] == own[1, :2]).any():
                continue
            prompt = f"a photo of {world.describe(own[0])} and {world.describe(own[1])}"
            found.append(Layout(prompt, own, places))
            if len(found) == count:
                return found
    raise InputError(f"the {split} split has no {count} such scenes")


def judge_boxes(judge: InsertionJudge, pictures: Tensor, layout: Layout) -> Tensor:
    """What stands in each box: labels (N,2,3) of pictures (N,3,H,W) in [-1,1]."""
    seen = torch.stack([part.argmax(-1) for part in place_logits(judge, pictures)], dim=-1)
    return seen[:, layout.places]


def measure(
    pipeline: SynthesisPipeline,
    judge: InsertionJudge,
    scenes: list[Layout],
    per_prompt: int,
    options: dict[str, Any],
    advance: Any,
) -> tuple[dict[str, float], list[Tensor]]:
    """Figures of one row of the table, and the first picture of each scene.

    "right": shape and colour of a thing are seen in its box; "strict": of both things at once; "leak": the other's
    colour is seen there; "exchanged": the other's shape and colour; "anywhere": shape and colour are seen at some
    place.
    """
    flags: list[Tensor] = []
    anywhere = PromptedObjects(judge)
    first = []
    for number, scene in enumerate(scenes):
        output = pipeline(
            scene.prompt,
            scene.boxes,
            num_images=per_prompt,
            batch_size=per_prompt,
            seed=number * per_prompt,
            output_type="pt",
            on_step=advance,
            **options,
        )
        pictures = torch.stack(output.images) * 2 - 1
        seen = judge_boxes(judge, pictures, scene)
        own, other = seen == scene.labels, seen == scene.labels.flip(0)
        right = own[..., :2].all(-1)
        strict = right.all(1, keepdim=True).expand_as(right)
        columns = (right, strict, own[..., 0], own[..., 1], other[..., 1], other[..., :2].all(-1))
        flags.append(torch.stack([c.float() for c in columns]).flatten(1))
        named = torch.full((per_prompt, 4, 3), -1)
        named[:, :2] = scene.labels
        anywhere.update(pictures, named)
        first.append(pictures[0])
    means = torch.cat(flags, dim=1).mean(1).tolist()
    return dict(zip(COLUMNS, [*means, anywhere.compute()["both"]], strict=True)), first


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="pocket", help="text-to-image model that knows the world's words")
    parser.add_argument("--n", type=int, default=64, help="pictures of each layout, each with a seed of its own")
    parser.add_argument("--per_prompt", type=int, default=4, help="pictures of a prompt")
    parser.add_argument("--split", default="test", choices=["val", "test"], help="val for choosing settings")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--layouts", nargs="+", default=["as drawn", "exchanged"], choices=["as drawn", "exchanged"])
    parser.add_argument("--num_inference_steps", type=int, help="by default the model's own")
    parser.add_argument("--guidance_scale", type=float, help="by default the model's own")
    parser.add_argument("--end_tokens", choices=["subjects", "everywhere", "nowhere"])
    parser.add_argument("--separate_words", action="store_true", default=None, help="in the text encoder too")
    parser.add_argument("--objective", choices=["normalised", "mifo", "bounded_attention"])
    parser.add_argument("--layers", nargs="+", help="of the guidance, such as mid up:8")
    parser.add_argument("--step_size", nargs=2, type=float, help="of the guidance, first and last")
    parser.add_argument("--iterations", type=int, help="of the guidance")
    parser.add_argument("--until", type=float, help="fraction of the steps that are guided")
    parser.add_argument("--stop_below", type=float, help="loss per subject at which the guidance rests")
    parser.add_argument("--grid", type=Path, help="also write a picture: boxes, then a column a row of the table")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    try:
        run(args)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error


def run(args: argparse.Namespace) -> None:
    """Measure and print."""
    if args.n % args.per_prompt:
        raise InputError(f"--n {args.n} is no multiple of --per_prompt {args.per_prompt}")
    pipeline = SynthesisPipeline.from_pretrained(args.model)
    judge = InsertionJudge.from_pretrained(pocket.path("judge")).eval()
    for name in ("end_tokens", "separate_words"):
        if getattr(args, name) is not None:
            setattr(pipeline.settings, name, getattr(args, name))
    for name in ("objective", "layers", "step_size", "iterations", "until", "stop_below"):
        if getattr(args, name) is not None:
            setattr(pipeline.settings.guidance, name, getattr(args, name))
    pipeline.settings.guidance.__post_init__()
    steps = args.num_inference_steps or pipeline.settings.num_inference_steps
    drawn = layouts(args.split, args.n // args.per_prompt)
    scenes = {
        "as drawn": drawn,
        "exchanged": [Layout(scene.prompt, scene.labels, scene.places[::-1]) for scene in drawn],
    }
    began = time.perf_counter()
    scores: dict[str, dict[str, dict[str, float]]] = {}
    seconds: dict[str, float] = {}
    columns: list[list[Any]] = []
    with Progress() as bar:
        task = bar.add_task("drawing", total=len(args.rows) * len(args.layouts) * args.n * steps)
        for row in args.rows:
            start = time.perf_counter()
            for name in args.layouts:
                options = {**ROWS[row], "num_inference_steps": steps, "guidance_scale": args.guidance_scale}
                found, first = measure(
                    pipeline, judge, scenes[name], args.per_prompt, options, lambda n: bar.advance(task, n)
                )
                scores.setdefault(name, {})[row] = found
                if name == args.layouts[-1]:
                    columns.append([to_pil(picture) for picture in first])
            seconds[row] = (time.perf_counter() - start) / len(args.layouts) / args.n
    _print(args, scores, seconds, pipeline, steps)
    if args.grid:
        boxes = [draw_layout(scene.boxes, (96, 96)) for scene in scenes[args.layouts[-1]]]
        rows = [list(row) for row in zip(boxes, *columns, strict=True)]
        save_image(image_grid(rows, captions=["boxes", *args.rows], cell=96), args.grid)
    if args.json:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        about = {"settings": settings, "model": pipeline.settings.plain(), "threads": torch.get_num_threads()}
        print(
            json.dumps(
                {
                    "benchmark": "mifo_quality",
                    **about,
                    "seconds": round(time.perf_counter() - began, 1),
                    "seconds_per_picture": {row: round(s, 3) for row, s in seconds.items()},
                    "scores": scores,
                }
            )
        )


def _print(
    args: argparse.Namespace,
    scores: dict[str, dict[str, dict[str, float]]],
    seconds: dict[str, float],
    pipeline: SynthesisPipeline,
    steps: int,
) -> None:
    scale = args.guidance_scale or pipeline.settings.guidance_scale
    table = Table(title=f"{args.model}: {args.n} pictures of {args.split}, {steps} steps, guidance {scale:g}")
    for name in ("boxes", "control", *COLUMNS, "s/picture"):
        table.add_column(name)
    for name, rows in scores.items():
        for row, found in rows.items():
            table.add_row(name, row, *(f"{found[c]:.3f}" for c in COLUMNS), f"{seconds[row]:.2f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
