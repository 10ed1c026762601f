"""Five ways to a generator on the same pictures, with the same network and the same number of optimiser steps.

A diffusion model sampled in many steps (edm), distilled (cd), and consistency models from data (ct, ict, ect), each
trained by its shipped recipe ``configs/consistency/…_pocket.yaml`` with only the number of steps, the batch, the
precision and the start changed. cd and ect begin with the diffusion model (``--teacher``, or the one trained first); ct
and ict begin with random weights, as their papers do, unless ``--start teacher``.

Every arm is a run folder below ``--work`` and a file of its figures beside it. What is done is not done again, and what
was stopped goes on, so that the table can be made in pieces with ``--arms``.

``python benchmarks/consistency_objectives.py --steps 1000 --json``
"""

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

import torch
from consistency_quality import CEILING, FLOOR, generate, pictures, score
from rich.console import Console
from rich.table import Table

from lit_insert.artifacts.atomic import atomic_file
from lit_insert.cli.train import main as train_main
from lit_insert.consistency.pipeline import ConsistencyPipeline
from lit_insert.errors import InputError
from lit_insert.images import image_grid, save_image
from lit_insert.metrics.distribution import nearest_distances
from lit_insert.training.runs import has_checkpoint

ARMS = ("edm", "cd", "ct", "ict", "ect")
RECIPES = {"edm": "edm_teacher", **{name: name for name in ARMS[1:]}}
COLUMNS = ("fid", "fid_over_floor", "kid", "swd", "coverage", "nearest")
MADE_WITH = ("steps", "batch_size", "bf16", "start", "teacher", "n", "split", "seed", "content", "extra")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, help="what to train now, if need be")
    parser.add_argument("--work", type=Path, default=Path("runs/objectives"), help="folder of the runs")
    parser.add_argument("--teacher", help="diffusion model to distil and start from, instead of training one")
    parser.add_argument(
        "--start", default="own", choices=["own", "teacher"], help="teacher: ct and ict too start from it"
    )
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps of each arm")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--bf16", action="store_true", help="train in bf16-mixed instead of float32")
    parser.add_argument("--sample_steps", nargs="+", type=int, default=[1, 2, 4], help="of consistency models")
    parser.add_argument("--teacher_steps", type=int, default=18, help="Heun steps of the diffusion model")
    parser.add_argument("--n", type=int, default=1000, help="pictures in each set that is compared")
    parser.add_argument("--split", default="test", choices=["val", "test"])
    parser.add_argument("--seed", type=int, default=0, help="seed of the runs and of the sampling noise")
    parser.add_argument("--grid", type=Path, help="also write a picture: a row of real ones, then one an arm and steps")
    parser.add_argument(
        "--extra", nargs="*", default=[], help="KEY=VALUE of train.py for every arm, without the dashes"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    args.data, args.content = "scenes", "scene"
    try:
        run(args)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error


def run(args: argparse.Namespace) -> None:
    """Train what is missing, measure it, print all that is there."""
    args.work.mkdir(parents=True, exist_ok=True)
    for name in args.arms:
        if result_of(args, name) is None:
            found = train(args, name) | measure(args, name)
            with atomic_file(args.work / f"{name}.json") as temporary:
                temporary.write_text(json.dumps(found), encoding="utf-8")
    done = {name: result_of(args, name) for name in ARMS}
    results = {name: found for name, found in done.items() if found is not None}
    controls = measure_controls(args, model_of(args, next(iter(results))))
    show(args, results, controls)
    if args.grid:
        draw(args, results)
    if args.json:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        about = {"benchmark": "consistency_objectives", "settings": settings, "threads": torch.get_num_threads()}
        print(json.dumps(about | {"controls": controls, "arms": results}))


def made_with(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that an arm's figures depend on."""
    return {name: getattr(args, name) for name in MADE_WITH}


def result_of(args: argparse.Namespace, name: str) -> dict[str, Any] | None:
    """Figures of an arm that is done.

    Raises:
        InputError: If they were made with other settings.
    """
    file = args.work / f"{name}.json"
    if not file.is_file():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    for key, value in made_with(args).items():
        if found["made_with"][key] != value:
            raise InputError(
                f"{file}: made with --{key} {found['made_with'][key]}, not {value}; give another --work or delete it"
            )
    return found


def model_of(args: argparse.Namespace, name: str) -> Path | str:
    """The model of an arm: its run, or the given teacher."""
    return args.teacher if name == "edm" and args.teacher else args.work / name


def train(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Train an arm by its recipe, or go on where it stopped; how it started and how long a step took."""
    began = {"cd": "teacher", "ect": "teacher"}.get(name, args.start if name != "edm" else "own")
    about = {"made_with": made_with(args), "start": began, "steps": args.steps}
    if name == "edm" and args.teacher:
        return about | {"steps": None, "seconds_per_step": None}
    if began == "teacher" and not args.teacher and result_of(args, "edm") is None:
        raise InputError(f"arm {name} starts from the diffusion model; give --teacher, or train the arm edm first")
    out, teacher = args.work / name, str(model_of(args, "edm"))
    scheduled = [] if name == "edm" else [f"--model.schedule.total_steps={args.steps}"]
    if began == "teacher":
        scheduled.append(f"--model.{'teacher' if name == 'cd' else 'init'}={teacher}")
    train_main([
        "fit",
        f"--config=consistency/{RECIPES[name]}_pocket.yaml",
        f"--out={out}",
        f"--seed_everything={args.seed}",
        f"--model.lr_scheduler.init_args.total_steps={args.steps}",
        f"--trainer.max_steps={args.steps}",
        f"--trainer.val_check_interval={args.steps}",
        f"--trainer.log_every_n_steps={min(50, args.steps)}",
        f"--trainer.precision={'bf16-mixed' if args.bf16 else '32-true'}",
        f"--data.batch_size={args.batch_size}",
        f"--checkpoint.every_n_steps={max(1, args.steps // 4)}",
        f"--samples.every_n_steps={args.steps}",
        *scheduled,
        *(f"--{option}" for option in args.extra),
        *(["--resume"] if has_checkpoint(out) else []),
    ])  # fmt: skip
    lines = map(json.loads, (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    speeds = [line["train/samples_per_s"] for line in lines if "train/samples_per_s" in line]
    return about | {"seconds_per_step": args.batch_size / median(speeds) if speeds else None}


def measure(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Scores of an arm's samples, by numbers of evaluations."""
    pipeline = ConsistencyPipeline.from_pretrained(model_of(args, name))
    train_set, real, held_out = references(args, pipeline.size)
    rows = {}
    for steps in [args.teacher_steps] if pipeline.is_teacher else args.sample_steps:
        made = generate(args, pipeline, {"num_inference_steps": steps}, lambda _: None)
        rows[str(steps)] = score(real, made, train_set, held_out)
    return {"scores": rows, "parameters": sum(p.numel() for p in pipeline.unet.parameters())}


def references(args: argparse.Namespace, size: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Training pictures, held-out ones, and the median distance of these to the nearest of those."""
    train_set, real = (pictures(args, split, size) for split in ("train", args.split))
    return train_set, real, float(nearest_distances(real, train_set)[0].median())


def measure_controls(args: argparse.Namespace, model: Path) -> dict[str, dict[str, float]]:
    """Training pictures in the place of samples, clipped noise, and noise of the pictures' own mean and covariance."""
    train_set, real, held_out = references(args, ConsistencyPipeline.from_pretrained(model).size)
    generator = torch.Generator().manual_seed(args.seed)
    noise = torch.randn(real.shape, generator=generator).clamp(-1, 1)
    points = train_set.flatten(1)
    centred = (points - points.mean(0)) / len(points) ** 0.5
    mixed = torch.randn(len(real), len(points), generator=generator) @ centred
    gaussian = (points.mean(0) + mixed).view_as(real).clamp(-1, 1)
    made = {FLOOR: train_set, "Gaussian": gaussian, CEILING: noise}
    return {name: score(real, images, train_set, held_out) for name, images in made.items()}


def show(args: argparse.Namespace, results: dict[str, Any], controls: dict[str, dict[str, float]]) -> None:
    """Print the table; adds the ratio to the floor to every row."""
    floor = controls[FLOOR]["fid"]
    table = Table(
        title=f"{args.steps} steps of {args.batch_size}, {'bf16-mixed' if args.bf16 else 'float32'}; "
        f"{args.n} pictures against {args.n} of scenes, split {args.split}"
    )
    for column in ("objective", "starts from", "evaluations", *COLUMNS, "s/step"):
        table.add_column(column)

    def add(name: str, start: str, steps: str, row: dict[str, float], seconds: float | None = None) -> None:
        row["fid_over_floor"] = row["fid"] / floor
        time = f"{seconds:.3f}" if seconds else ""
        table.add_row(name, start, steps, *(f"{row[c]:.4g}" for c in COLUMNS), time)

    for name, row in controls.items():
        add(name, "", "", row)
    starts = {"own": "random weights", "teacher": "edm"}
    for name, found in results.items():
        start = "given" if found["steps"] is None else starts[found["start"]]
        for steps, row in found["scores"].items():
            evaluations = str(2 * int(steps) - 1) if name == "edm" else steps
            add(name, start, evaluations, row, found["seconds_per_step"])
    Console(width=140).print(table)
    print("fid, kid, coverage: on RandomFeatures, comparable only with themselves, at this n and size.")


def draw(args: argparse.Namespace, results: dict[str, Any]) -> None:
    """Write the grid: a row of real pictures, then one an arm and number of steps, from the same noise."""
    few = argparse.Namespace(**{**vars(args), "n": 10, "batch_size": 10})
    rows: list[list[torch.Tensor]] = []
    for name, found in results.items():
        pipeline = ConsistencyPipeline.from_pretrained(model_of(args, name))
        rows = rows or [list(pictures(few, args.split, pipeline.size).unbind())]
        for steps in found["scores"]:
            rows.append(list(generate(few, pipeline, {"num_inference_steps": int(steps)}, lambda _: None)))
    save_image(image_grid(rows, cell=64), args.grid)


if __name__ == "__main__":
    main()
