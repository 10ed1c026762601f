"""How close are generated pictures to real ones that the model never saw, in 1, 2 and 4 steps?

Distances to held-out pictures, beside a real-against-real floor and a noise ceiling, and two looks at memorisation.
``python benchmarks/consistency_quality.py --model teacher=runs/edm_pocket cd=runs/cd_pocket --json``
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lit_insert.consistency.pipeline import ConsistencyPipeline
from lit_insert.data.messi import ImageFolder, MessiDataModule, ParquetImages, SceneImages
from lit_insert.errors import InputError
from lit_insert.images import image_grid, save_image
from lit_insert.metrics.distribution import GenerationQuality, nearest_distances
from lit_insert.report import Report

COLUMNS = ("swd", "fid", "fid_over_floor", "kid", "density", "coverage", "nearest")
FLOOR, CEILING = "real pictures (floor)", "noise (ceiling)"
GATES = {"1": 3.0, "2": 2.0, "teacher": 1.3}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["pocket"], help="NAME=MODEL or MODEL: run, checkpoint, folder")
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 2, 4], help="of consistency models")
    parser.add_argument("--teacher_steps", type=int, default=18, help="Heun steps of diffusion teachers")
    parser.add_argument("--n", type=int, default=1000, help="pictures in each set")
    parser.add_argument("--data", default="scenes", help="scenes, a folder of pictures, or of parquet files")
    parser.add_argument("--content", default="scene", choices=["scene", "object"], help="of scenes")
    parser.add_argument("--split", default="test", choices=["val", "test"], help="val for choosing settings")
    parser.add_argument("--seed", type=int, default=0, help="seed of the starting noise")
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument(
        "--tune", nargs="+", type=float, help="instead: FID of 2 steps with each of these middle levels, on val"
    )
    parser.add_argument(
        "--levels", nargs="+", type=levels, help="instead: the same of these noise levels, such as 70 80,0.75, on val"
    )
    parser.add_argument(
        "--grid", type=Path, help="also write a picture: a row of real ones, then one a model and steps"
    )
    parser.add_argument("--report", type=Path, help="also write an HTML page")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    try:
        run(args)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error


def levels(text: str) -> list[float]:
    """Noise levels of one argument, in falling order."""
    return [float(part) for part in text.split(",")]


def run(args: argparse.Namespace) -> None:
    """Measure and print."""
    if args.tune or args.levels:
        args.split = "val"
    models = {}
    for given in args.model:
        name, found, path = given.partition("=")
        models[name] = ConsistencyPipeline.from_pretrained(path if found else name)
    sizes = {pipeline.size for pipeline in models.values()}
    if len(sizes) > 1:
        raise InputError(f"the models make pictures of different sizes, {sorted(sizes)}; compare them one by one")
    size = sizes.pop()
    train, real = (pictures(args, split, size) for split in ("train", args.split))
    began = time.perf_counter()
    rows, shown = {}, {"real": real}
    held_out = float(nearest_distances(real, train)[0].median())
    with Progress() as bar:
        runs = plan(args, models)
        task = bar.add_task("generating", total=len(runs) * args.n)
        rows[FLOOR] = score(real, train, real, held_out)
        rows[FLOOR]["nearest"] = 1.0  # a real picture against the training set is what the others are compared with
        noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(args.seed)).clamp(-1, 1)
        rows[CEILING] = score(real, noise, train, held_out)
        for label, pipeline, steps in runs:
            start = time.perf_counter()
            made = generate(args, pipeline, steps, lambda n: bar.advance(task, n))
            seconds = time.perf_counter() - start
            rows[label] = score(real, made, train, held_out) | {"images_per_s": round(args.n / seconds, 2)}
            shown[label] = made
    for row in rows.values():
        row["fid_over_floor"] = row["fid"] / rows[FLOOR]["fid"]
    over = over_teacher(models, rows)
    show(args, rows, size, over)
    draw(args, shown, rows)
    if args.json:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        about = {"benchmark": "consistency_quality", "settings": settings, "image_size": size}
        about |= {"seconds": round(time.perf_counter() - began, 1), "threads": torch.get_num_threads()}
        print(json.dumps(about | {"scores": rows, "over_teacher": over, "passes": verdicts(rows, over)}))


def pictures(args: argparse.Namespace, split: str, size: int) -> torch.Tensor:
    """The first pictures of a split, (n,3,size,size) in [-1,1]."""
    if args.data == "scenes":
        source = SceneImages(split, count=args.n, content=args.content)
    elif any(Path(args.data).glob("*.parquet")):
        # two-split tables such as CIFAR-10: the end of the training pictures is for choosing
        total = len(ParquetImages(args.data, split="train")) if split == "val" else 0
        start = max(0, total - args.n)
        source = ParquetImages(args.data, split="train" if split == "val" else split, start=start)
    else:
        source = ImageFolder(args.data, split=split)
    # as "test" pictures: neither cropped at random nor flipped
    dataset = MessiDataModule(source, test=source, image_size=size).dataset("test")
    if len(dataset) < args.n:
        raise InputError(f"{args.data}: split {split} has {len(dataset)} pictures; give --n {len(dataset)} or less")
    if isinstance(source, SceneImages):
        return torch.stack([item["image"] for item in dataset.__getitems__(range(args.n))])
    return torch.stack([dataset.sample(i, 0)["image"] for i in range(args.n)])


def plan(
    args: argparse.Namespace, models: dict[str, ConsistencyPipeline]
) -> list[tuple[str, ConsistencyPipeline, dict]]:
    """What is to be sampled: label, model and its noise levels."""
    runs = []
    for name, pipeline in models.items():
        if pipeline.is_teacher:
            runs.append((f"{name}, Heun {args.teacher_steps}", pipeline, {"num_inference_steps": args.teacher_steps}))
        elif args.tune:
            top = pipeline.noise_range.sigma_max
            runs += [(f"{name}, middle {s:g}", pipeline, {"sigmas": [top, s]}) for s in args.tune]
        elif args.levels:
            runs += [
                (f"{name}, {', '.join(f'{s:g}' for s in given)}", pipeline, {"sigmas": given}) for given in args.levels
            ]
        else:
            runs += [(f"{name}, {n} step{'s' * (n > 1)}", pipeline, {"num_inference_steps": n}) for n in args.steps]
    return runs


def generate(
    args: argparse.Namespace, pipeline: ConsistencyPipeline, steps: dict, progress: Callable[[int], None]
) -> torch.Tensor:
    """Samples as they would be saved: (n,3,S,S) in [-1,1] with 8 bits a channel."""
    made = pipeline(args.n, seed=args.seed, batch_size=args.batch_size, output_type="pt", callback=progress, **steps)
    return (torch.stack(made.images) * 255).round() / 127.5 - 1


def score(real: torch.Tensor, made: torch.Tensor, train: torch.Tensor, held_out: float) -> dict[str, float]:
    """Distances of one set to the real one; "nearest" is the median distance to a training picture, 1 for real ones."""
    quality = GenerationQuality(subset_size=min(200, len(real)))
    for images, is_real in ((real, True), (made, False)):
        for part in images.split(250):
            quality.update(part, real=is_real)
    distance = nearest_distances(made, train)[0]
    return quality.compute() | {
        "nearest": float(distance.median()) / held_out,
        "copies": float((distance < 0.02).float().mean()),
    }


def over_teacher(models: dict[str, ConsistencyPipeline], rows: dict[str, dict[str, float]]) -> dict[str, float]:
    """FID of every row of a consistency model over that of the first teacher's many steps."""
    teachers = [label for label in rows if label.split(",")[0] in [n for n, p in models.items() if p.is_teacher]]
    if not teachers:
        return {}
    base = rows[teachers[0]]["fid"]
    return {k: v["fid"] / base for k, v in rows.items() if k not in (*teachers, FLOOR, CEILING)}


def verdicts(rows: dict[str, dict[str, float]], over: dict[str, float]) -> dict[str, bool]:
    """Which rows keep within 3 (1 step) and 2 (2 steps) times the floor, and within 1.3 times the teacher."""
    found = {}
    for label, row in rows.items():
        steps = label.rpartition(", ")[2].split(" ")[0]
        if steps in GATES and label.rpartition(" ")[2].startswith("step"):
            found[f"{label}: FID <= {GATES[steps]:g} floors"] = row["fid_over_floor"] <= GATES[steps]
            if label in over:
                found[f"{label}: FID <= {GATES['teacher']:g} teachers"] = over[label] <= GATES["teacher"]
    return found


def show(args: argparse.Namespace, rows: dict[str, dict[str, float]], size: int, over: dict[str, float]) -> None:
    """Print the table."""
    table = Table(title=f"{args.n} pictures against {args.n} of {args.data}, split {args.split}, {size} px")
    for name in ("", *COLUMNS, "over teacher"):
        table.add_column(name)
    for label, row in rows.items():
        table.add_row(label, *(f"{row[c]:.4g}" for c in COLUMNS), f"{over[label]:.3g}" if label in over else "")
    Console(width=140).print(table)
    print("fid, kid, density, coverage: on RandomFeatures, comparable only with themselves, at this n and size.")
    print(
        "nearest: median distance to the nearest training picture, over that of held-out ones; below 1: copies or blur."
    )


def draw(args: argparse.Namespace, shown: dict[str, torch.Tensor], rows: dict[str, dict[str, float]]) -> None:
    """Write grid and page."""
    cells = [list(images[:10]) for images in shown.values()]
    if args.grid:
        save_image(image_grid(cells, cell=64), args.grid)
    if args.report:
        page = Report(
            "Few-step generation", f"{args.n} pictures a row, {args.data}, split {args.split}, seed {args.seed}"
        )
        page.images([[label, *row] for label, row in zip(shown, cells, strict=True)], cell_px=64)
        page.table(["", *COLUMNS], [[label, *(row[c] for c in COLUMNS)] for label, row in rows.items()])
        page.save(args.report)


if __name__ == "__main__":
    main()
