"""The page that a learning run leaves: curves, and what the tokens looked at on the way."""

import json
from pathlib import Path

from PIL import Image

from lit_insert.report import Report

_CURVES = (
    ("Losses", ("train/diffusion", "train/attention", "train/prior"), True),
    ("Attention inside the own mask (running mean)", ("train/inside",), False),
    ("Where the tokens look, all layers", ("val/in_frac", "val/leak", "val/out", "val/in_mean"), False),
)
_GRIDS = 6


def write_run_report(folder: Path, mode: str, token_steps: int) -> Path:
    """Write ``report.html`` from a run's ``metrics.jsonl`` and ``samples/``; returns its path.

    Args:
        folder: The run.
        mode: Which attention loss it had.
        token_steps: Where its second phase begins.
    """
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    page = Report("Instances learned", f"{folder.name}: attention loss {mode}; second phase from step {token_steps}")
    for title, names, log_y in _CURVES:
        series = {name: [(r["step"], r[name]) for r in rows if r.get(name) is not None] for name in names}
        series = {name: points for name, points in series.items() if len(points) > 1}
        if log_y:
            series = {name: [p for p in points if p[1] > 0] for name, points in series.items()}
        series = {name: points for name, points in series.items() if points}
        if series:
            page.heading(title).curve(series, xlabel="step", log_y=log_y)
    grids = sorted((folder / "samples").glob("step-*.png"))
    chosen = [grids[round(i * (len(grids) - 1) / max(_GRIDS - 1, 1))] for i in range(min(_GRIDS, len(grids)))]
    if grids:
        page.heading("Samples").text(
            "Each row: the picture; where each token of the caption looks (red); pictures of the prompts. One row for "
            "each order of the tokens."
        )
        for path in dict.fromkeys(chosen if len(grids) > _GRIDS else grids):
            page.text(path.stem)
            with Image.open(path) as picture:
                page.images([[picture.convert("RGB")]], cell_px=720)
    return page.save(folder / "report.html")
