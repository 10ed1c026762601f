"""``make demo``: train, stop, resume, export, insert, and a report, by the commands that a user would type."""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lit_insert.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "configs/embedding_optimizer/pocket.yaml"

COLUMNS = ("color", "shape", "texture", "found", "clear", "background_psnr")
HEADER = (
    "",
    "colour right",
    "shape right",
    "texture right",
    "something inserted",
    "nothing covered",
    "background dB",
)


def run(title: str, *command: str) -> None:
    """Show a command, run it from the project's root, and stop the demo if it fails."""
    shown = " ".join(["python", *(shlex.quote(part) for part in command)])
    print(f"\n── {title}\n   $ {shown}", flush=True)
    done = subprocess.run([sys.executable, *command], cwd=ROOT, check=False)
    if done.returncode:
        raise InputError(f"the demo stopped: `{shown}` ended with status {done.returncode}")


def loss_points(run_dir: Path, key: str) -> list[tuple[float, float]]:
    """(step, value) pairs of one logged quantity, averaged over neighbours to some twenty points."""
    points = []
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if key in record:
            points.append((float(record["step"]), float(record[key])))
    smooth = []
    width = max(1, len(points) // 20)
    for i in range(0, len(points), width):
        part = points[i : i + width]
        smooth.append((part[-1][0], sum(v for _, v in part) / len(part)))
    return smooth


def write_pairs(folder: Path, count: int) -> None:
    """Save held-out scenes and references as pictures, for ``infer.py insert``."""
    from lit_insert.data.scenes import SceneDataset
    from lit_insert.embedding_optimizer.evaluate import references
    from lit_insert.images import save_image, to_pil

    dataset = SceneDataset("test", count)
    batch = dataset.batch(range(count))
    for kind in ("scenes", "objects"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(references(dataset, batch)):
        save_image(to_pil(batch["source"][i]), folder / "scenes" / f"{i:02d}.png")
        save_image(picture, folder / "objects" / f"{i:02d}.png")


def untrained(config: Path) -> Any:
    """The pipeline that training starts from: the pocket base with its adapter forgotten."""
    import torch
    import yaml

    from lit_insert import InsertPipeline
    from lit_insert.embedding_optimizer.network import EmbeddingOptimizer

    pipeline = InsertPipeline.from_pretrained("pocket")
    options = yaml.safe_load(config.read_text())["model"]["init_args"]["adapter"]
    torch.manual_seed(0)
    sizes = {name: pipeline.embedding_optimizer.config[name] for name in ("input_dim", "output_dim")}
    pipeline.embedding_optimizer = EmbeddingOptimizer(**{**sizes, **options}).eval()
    return pipeline


def write_report(out: Path, count: int, seconds: float) -> Path:
    """Score the start, the fine-tuned run and the shipped model, and write the page."""
    import diffusers
    import transformers
    from rich.progress import Progress

    from lit_insert import InsertPipeline
    from lit_insert.data.scenes import SceneDataset
    from lit_insert.embedding_optimizer.evaluate import evaluate_insertion
    from lit_insert.report import Report

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()  # of the loading of weights: our own bar tells more
    dataset = SceneDataset("test", count)
    models = {
        "adapter forgotten (start)": untrained(ROOT / CONFIG),
        "after fine-tuning": InsertPipeline.from_pretrained(out),
        "pocket model as shipped": InsertPipeline.from_pretrained("pocket"),
    }
    results = {}
    with Progress() as bar:
        task = bar.add_task("inserting into held-out scenes", total=count * len(models))
        for name, pipeline in models.items():
            pipeline.set_progress_bar_config(disable=True)
            results[name] = evaluate_insertion(
                pipeline,
                dataset,
                progress=lambda n: bar.advance(task, n),
                preserve_background=False,
            )
    tuned = results["after fine-tuning"]
    labelled = [
        ("the true target", tuned.scores["target"]),
        ("control: copy of the source", tuned.scores["copy source"]),
        *((name, result.scores["insert"]) for name, result in results.items()),
        ("after fine-tuning, another reference: is it the one given?", tuned.scores["shuffled reference"]),
        ("control: … is it the one not given? (chance)", tuned.scores["shuffled, original"]),
    ]
    rows = [[name, *(_shown(scores, column) for column in COLUMNS)] for name, scores in labelled]
    report = Report("lit-insert demo", "An object from a reference picture, put into a scene: no mask, no prompt")
    report.text(
        f"The pocket model's adapter was forgotten and trained anew for {seconds:.0f} seconds on the CPU, stopped "
        "half-way, and resumed. The scenes and the kinds of object below were never trained on."
    )
    report.heading("Inserted").images(
        [[row[0], row[1], row[2], row[3], row[4], row[5]] for row in tuned.rows],
        header=["source", "reference", "result", "another reference", "its result", "target"],
        cell_px=96,
    )
    report.text("Any free place is a right place: a result may differ from the target in where the thing stands.")
    report.heading("Scores").table(HEADER, rows)
    report.text(
        f"{count} held-out scenes. Chance: colour 0.125, shape 0.167, texture 0.333. A small judge, trained on true "
        "pictures, names what appeared; its own ceiling is the first row."
    )
    report.heading("Training").curve(
        {"loss": loss_points(out, "train/loss"), "inserted region": loss_points(out, "train/object")},
        xlabel="step",
        ylabel="v-prediction error",
    )
    return report.save(out / "report.html")


def _shown(scores: dict[str, float], column: str) -> float | None:
    value = scores[column]
    return None if column == "background_psnr" and value >= 100 else round(value, 3)


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder, made anew")
    parser.add_argument("--steps", type=int, default=400, help="training steps in all")
    parser.add_argument("--scenes", type=int, default=64, help="held-out scenes in the report")
    args = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    out = args.out if args.out.is_absolute() else ROOT / args.out
    try:
        if out.exists():
            raise InputError(f"{args.out} exists; remove it or pass --out another folder")
        name = str(args.out)
        began = time.monotonic()
        schedule = ["--model.init_args.lr_scheduler.init_args.total_steps", str(args.steps)]
        first = str(args.steps // 2)
        run(
            "Train the adapter, half-way",
            *("train.py", "fit", "--config", CONFIG, "--out", name, "--trainer.max_steps", first),
            *(schedule if args.steps != 400 else []),
        )
        run(
            "Resume where it stopped",
            *("train.py", "fit", "--out", name, "--resume", "--trainer.max_steps", str(args.steps)),
        )
        seconds = time.monotonic() - began
        write_pairs(out / "held_out", 8)
        run(
            "Insert references into held-out scenes",
            *(
                "infer.py",
                "insert",
                "--image",
                f"{name}/held_out/scenes",
                "--object",
                f"{name}/held_out/objects",
            ),
            *("--model", name, "--output", f"{name}/inserted"),
        )
        print("\n── Score and report", flush=True)
        page = write_report(out, args.scenes, seconds)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\nThe report: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
