"""Model cards: what a model is, what it was made from, how well it does."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_insert.artifacts.atomic import atomic_file
from lit_insert.errors import InputError

_USE = (
    "from lit_insert import InsertPipeline",
    "",
    'pipe = InsertPipeline.from_pretrained("path/or/hub-id")',
    'pipe(image="scene.jpg", object_image="thing.png").images[0].save("result.png")',
)


def write_card(
    folder: str | Path,
    *,
    name: str,
    summary: str,
    run: str | Path | None = None,
    base: str | None = None,
    datasets: Sequence[str] = (),
    metrics: Mapping[str, Any] | None = None,
    licence: str = "other",
    limits: str = "",
    use: Sequence[str] = _USE,
    pipeline_tag: str = "image-to-image",
    tags: Sequence[str] = ("image-editing", "object-insertion"),
) -> Path:
    """Write ``README.md`` beside an exported model; returns its path.

    Args:
        folder: The exported folder.
        name: Title.
        summary: What the model does and for whom.
        run: Run folder; its ``run.json`` (versions, commit, command) and the last values of its
            ``metrics.jsonl`` go into the card.
        base: Hub id or description of the model it was trained from; by default the run's.
        datasets: Hub ids or names of the training data.
        metrics: Measured values, which stand before those of the run.
        licence: Hub licence id. A model inherits the terms of its base: "apache-2.0" is not a safe default.
        limits: What it cannot do.
        use: Lines of Python that use it.
        pipeline_tag: The hub's name of the task.
        tags: The hub's tags, beside the package's.

    Raises:
        InputError: If ``folder`` does not exist or a file of the run is broken.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; export the model first")
    record = _read_json(Path(run) / "run.json") if run else {}
    base = base or record.get("base_model")
    values = {**_last_values(Path(run) / "metrics.jsonl" if run else None), **(metrics or {})}
    front: dict[str, Any] = {
        "license": licence,
        "library_name": "diffusers",
        "pipeline_tag": pipeline_tag,
        "tags": ["lit-insert", *tags],
    }
    # The hub takes ids only here; anything else is told in the text.
    if base and _is_hub_id(base):
        front["base_model"] = base
    ids = [d for d in datasets if _is_hub_id(d)]
    if ids:
        front["datasets"] = ids
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        "",
        f"# {name}",
        "",
        summary.strip(),
        "",
    ]
    lines += ["## Use", "", "```python", *use, "```", ""]
    made = [("Base", base), ("Data", ", ".join(datasets) or None), *_run_facts(record)]
    facts = [(key, value) for key, value in made if value is not None]
    if facts:
        lines += ["## How it was made", "", *(f"- {key}: {_inline(value)}" for key, value in facts), ""]
    if values:
        lines += ["## Measured", "", "| metric | value |", "|---|---|"]
        lines += [f"| {_inline(key)} | {_value(value)} |" for key, value in values.items()]
        lines += [""]
    if limits:
        lines += ["## Limits", "", limits.strip(), ""]
    target = folder / "README.md"
    with atomic_file(target) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")
    return target


def _is_hub_id(text: str) -> bool:
    return text.count("/") == 1 and not text.startswith((".", "/", "~")) and not Path(text).exists()


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; is it a run folder?")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: broken JSON ({error})") from error
    if not isinstance(record, dict):
        raise InputError(f"{path}: expected a JSON object")
    return record


def _last_values(path: Path | None) -> dict[str, float]:
    """The last number of each validation and test metric in a run's log."""
    found: dict[str, float] = {}
    if path is None or not path.is_file():
        return found
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}: line {number} is broken JSON ({error})") from error
        for key, value in row.items():
            if key.startswith(("val/", "test/")) and isinstance(value, int | float):
                found[key] = value
    return found


def _run_facts(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    facts: list[tuple[str, Any]] = []
    parts = record.get("parts") or []
    commands = dict.fromkeys(" ".join(p["argv"]) for p in parts if isinstance(p.get("argv"), list))
    facts += [("Command", f"`{command}`") for command in commands]
    for key, label in (
        ("step", "Steps"),
        ("parameters", "Parameters"),
        ("trainable", "of which trained"),
        ("precision", "Precision"),
        ("seed", "Seed"),
        ("device", "Device"),
        ("git", "Commit"),
    ):
        if record.get(key) is not None:
            facts.append((label, record[key]))
    versions = record.get("versions")
    if isinstance(versions, Mapping):
        facts.append(("Versions", ", ".join(f"{k} {v}" for k, v in versions.items())))
    return facts


def _inline(value: Any) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _inline(value)
