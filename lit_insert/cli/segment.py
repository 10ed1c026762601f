"""``infer.py segment``: the things that a prompt names, in every picture, and which source object became which."""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_insert.cli.common import device_name, picture_files, progress_bar, quiet_libraries
from lit_insert.errors import InputError

if TYPE_CHECKING:
    from lit_insert.grounding.result import SegmentResult
    from lit_insert.grounding.settings import GroundingSettings

PRESETS = ("default", "pocket", "ungated")
SOME_FAILED, NOTHING_NAMED = 3, 4
# Option -> key of the settings.
_KEYS = {
    "device": "device",
    "entities": "entities.backend",
    "text_model": "entities.model",
    "segmenter": "segmenter.backend",
    "seg_model": "segmenter.model",
    "threshold": "segmenter.threshold",
    "mask_threshold": "segmenter.mask_threshold",
    "max_instances": "segmenter.max_instances",
    "min_area": "segmenter.min_area",
    "embedder": "embedder.backend",
    "embed_model": "embedder.model",
    "pairing_threshold": "pairing.threshold",
    "pairing_labels": "pairing.labels",
    "verify": "verify.enabled",
    "format": "output.format",
    "save_viz": "output.annotated",
    "viz_dir": "output.annotated_dir",
    "export": "output.exports",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; those that the settings know have no default here, so that a YAML file is not overruled."""
    parser.usage = "infer.py segment -p TEXT -c PATH… [-g PATH…] [-o PATH] [--model pocket | --config FILE] [options]"
    parser.epilog = (
        "The exit status is 0; 2 for a mistake in the input or a model that cannot be had; 3 if some picture failed; "
        "4 if the prompt names nothing."
    )
    what = parser.add_argument_group("what")
    what.add_argument("-p", "--prompt", metavar="TEXT", help="what the generated picture was made from")
    what.add_argument(
        "--labels", metavar="A;B", help='the things themselves, such as "dog;red sofa"; no model is asked'
    )
    what.add_argument("-c", "--contextual", metavar="PATH", nargs="+", help="source pictures, or folders of them")
    what.add_argument("-g", "--generated", metavar="PATH", nargs="+", help="generated pictures, or folders of them")
    how = parser.add_argument_group("how (each overrides the configuration)")
    how.add_argument(
        "--model", choices=PRESETS, help="a configuration of the package; default: SAM 3, Qwen3-VL, DINOv3"
    )
    how.add_argument("--config", metavar="FILE", help="YAML with the settings; what it leaves out is as in default")
    how.add_argument("--set", metavar="KEY=VALUE", action="append", help="any setting, such as nms.iou=0.8")
    how.add_argument("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps")
    how.add_argument("--dtype", metavar="TYPE", help="of all models: auto, float32, float16, bfloat16")
    how.add_argument("--entities", metavar="NAME", help="qwen3-vl, noun-phrases or given")
    how.add_argument("--text_model", metavar="MODEL", help="weights of qwen3-vl")
    how.add_argument("--segmenter", metavar="NAME", help="sam3, clipseg, pocket or given")
    how.add_argument("--seg_model", metavar="MODEL", help="its weights, or the folder of given masks")
    how.add_argument("--threshold", metavar="P", type=float, help="keep things with a score above it")
    how.add_argument("--mask_threshold", metavar="P", type=float, help="inside is above it")
    how.add_argument("--max_instances", metavar="N", type=int, help="most things of one label in a picture")
    how.add_argument("--min_area", metavar="A", type=float, help="drop smaller things: a fraction, or pixels from 1 on")
    how.add_argument("--embedder", metavar="NAME", help="dinov3, dinov2, clip or pocket")
    how.add_argument("--embed_model", metavar="MODEL", help="its weights")
    how.add_argument("--pairing_threshold", metavar="P", type=float, help="smallest cosine of a match")
    how.add_argument("--pairing_labels", metavar="HOW", help="same, first or any")
    how.add_argument("--verify", action="store_true", default=None, help="have the language model look at each thing")
    out = parser.add_argument_group("output")
    out.add_argument(
        "-o", "--output", metavar="PATH", default="out", help="folder, or the JSON file; the rest goes beside it"
    )
    out.add_argument("--format", metavar="NAME", help="coco, or legacy for the layout of the original")
    out.add_argument("--export", metavar="NAME", nargs="+", help="also write coco-results, label-map, yolo-seg")
    out.add_argument("--save_viz", action="store_true", default=None, help="also write annotated JPEGs")
    out.add_argument("--viz_dir", metavar="DIR", help="folder for them, below that of the output")
    out.add_argument("--no_report", action="store_true", help="write no HTML page")
    out.add_argument("--json", metavar="FILE", help="also write the JSON there; - for the standard output")
    out.add_argument("-q", "--quiet", action="store_true", help="no progress, nothing but errors on the screen")
    out.add_argument("--resume", action="store_true", help="go on with what is already in the output")


def run(options: argparse.Namespace) -> int:
    """Segment and pair; returns the exit status.

    Raises:
        InputError: If something in the input is wrong, or a model cannot be had.
    """
    settings = _settings(options)
    contextual, generated = _pictures(options)
    path = _target(options)
    if options.prompt is None and options.labels is None:
        raise InputError("give --prompt, or --labels")
    if settings.entities.backend == "given" and options.labels is None:
        raise InputError("entities.backend is given; give --labels")
    if options.labels is not None:
        from lit_insert.grounding.entities import GivenEntities

        GivenEntities(options.labels)  # their mistakes before the work
    # Libraries print; the standard output is for the JSON.
    with contextlib.redirect_stdout(sys.stderr) if options.json == "-" else contextlib.nullcontext():
        result, record = _work(options, settings, contextual, generated, path)
    if options.json:
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        if options.json == "-":
            sys.stdout.write(text)
        else:
            from lit_insert.cli.common import write_json

            write_json(record, Path(options.json))
    return _tell(options, result, path)


def _settings(options: argparse.Namespace) -> "GroundingSettings":
    """Command line over YAML over defaults."""
    from lit_insert.cli.configs import check_yaml, config_path, find_config
    from lit_insert.grounding.settings import settings_from

    if options.model and options.config:
        raise InputError("give --model or --config, not both")
    file = (
        find_config(options.config) if options.config else config_path(f"grounding/{options.model or 'default'}.yaml")
    )
    given: dict[str, Any] = {}
    for option, key in _KEYS.items():
        value = getattr(options, option)
        if value is not None:
            _put(given, key, value)
    if options.dtype is not None:
        for part in ("entities", "segmenter", "embedder"):
            _put(given, f"{part}.dtype", options.dtype)
    if options.no_report:
        _put(given, "output.report", False)
    for text in options.set or []:
        _put(given, *_assignment(text))
    return settings_from(check_yaml(file), given, origins=(str(file), "command line"))


def _assignment(text: str) -> tuple[str, Any]:
    import yaml

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--set {text}: give KEY=VALUE, such as nms.iou=0.8")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"--set {text}: the value is not valid YAML") from error


def _put(target: dict[str, Any], key: str, value: Any) -> None:
    *parts, last = key.split(".")
    for part in parts:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise InputError(f"--set {key}: {part} is no section")
    target[last] = value


def _pictures(options: argparse.Namespace) -> tuple[list[Path], list[Path]]:
    found = []
    for option in ("contextual", "generated"):
        given = getattr(options, option) or []
        found.append([file for path in given for file in picture_files(path, f"--{option}")])
    if not any(found):
        raise InputError("give --contextual, source pictures, and --generated, or one of them")
    return found[0], found[1]


def _target(options: argparse.Namespace) -> Path:
    """The JSON file."""
    output = Path(options.output)
    path = output if output.suffix.lower() == ".json" and not output.is_dir() else output / "segmentation.json"
    for folder in path.parents:
        if folder.is_file():
            raise InputError(f"--output {options.output}: {folder} is a file; give a folder")
    if options.resume and not path.is_file():
        raise InputError(f"--resume: there is no {path} to go on with")
    return path


def _work(
    options: argparse.Namespace,
    settings: "GroundingSettings",
    contextual: list[Path],
    generated: list[Path],
    path: Path,
) -> "tuple[SegmentResult, dict[str, Any]]":
    quiet_libraries()
    from lit_insert.grounding import exports, page
    from lit_insert.grounding.output import as_record, save_result
    from lit_insert.grounding.pipeline import SegmentPipeline

    previous = _previous(settings, path) if options.resume else None
    pipeline = SegmentPipeline(settings, device_name(settings.device))
    # The file of the original's layout cannot be resumed from, so the work in progress has a name of its own.
    legacy = settings.output.format == "legacy"
    own = path.with_name(f"{path.stem}_coco.json") if legacy else path

    def save(so_far: "SegmentResult") -> None:
        save_result(so_far, settings, own)

    with _progress(options.quiet) as note:
        result = pipeline(
            options.prompt or "",
            contextual,
            generated,
            labels=options.labels,
            previous=previous,
            note=note,
            save=save,
        )
    record = save_result(result, settings, own)
    if legacy:
        exports.write_legacy(as_record(result, settings, path.parent), result, path, settings.pairing.threshold)
        record = json.loads(path.read_text(encoding="utf-8"))
    exports.write_exports(as_record(result, settings, path.parent), settings.output.exports, path.parent)
    if settings.output.annotated:
        page.save_annotated(result, path.parent / settings.output.annotated_dir)
    if settings.output.report:
        page.write_page(result, path.with_name("report.html"))
    return result, record


def _previous(settings: "GroundingSettings", path: Path) -> "SegmentResult | None":
    from lit_insert.grounding.output import load_result, same_settings

    own = path.with_name(f"{path.stem}_coco.json") if settings.output.format == "legacy" else path
    result, record = load_result(own)
    changed = same_settings(record, settings)
    if changed:
        print(f"note: all is done anew, since {', '.join(changed)} changed", file=sys.stderr)
        return None
    return result


@contextlib.contextmanager
def _progress(quiet: bool) -> "Iterator[Any]":
    """Yields what the pipeline tells its progress to."""
    if quiet:
        yield None
        return
    from rich.console import Console

    with progress_bar(Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}

        def note(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done)

        yield note


def _tell(options: argparse.Namespace, result: "SegmentResult", path: Path) -> int:
    """Say how it went; returns the exit status."""
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for picture in result.failed:
        print(f"failed: {picture.path}: {picture.error}", file=sys.stderr)
    for picture in result.pictures:
        for query in picture.queries:
            if query.status == "error":
                print(f"failed: {picture.path}: {query.error}", file=sys.stderr)
    if not options.quiet and options.json != "-":
        things = sum(len(p.things) for p in result.pictures)
        matched = sum(m.context is not None for m in result.matches)
        print(
            f"{things} things in {len(result.pictures) - len(result.failed)} pictures, "
            f"{matched} of {len(result.matches)} generated ones matched: {path}"
        )
    if not result.entities:
        return NOTHING_NAMED
    return SOME_FAILED if result.failed else 0
