"""Which prompts are drawn with which boxes, and what the pictures are called."""

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lit_insert.cli.common import free_name
from lit_insert.errors import InputError
from lit_insert.mifo.boxes import Box, check_subjects, make_boxes, parse_box, read_boxes

_LONGEST = 60


@dataclass(frozen=True)
class Job:
    """A prompt to draw.

    Attributes:
        prompt: The prompt.
        boxes: A box for each of its subjects; None for a picture without control.
        stem: What its files are called, before a number; empty for a single prompt.
        positions: Token positions of each subject, where they were given.
    """

    prompt: str
    boxes: list[Box] | None
    stem: str = ""
    positions: list[list[int]] | None = None


def read_jobs(options: argparse.Namespace) -> list[Job]:
    """What the options ask for; loads no model.

    Raises:
        InputError: If options are missing or contradict, or a file or box is wrong.
    """
    if bool(options.prompt) == bool(options.prompts):
        raise InputError("give --prompt or --prompts" + (", not both" if options.prompt else ""))
    if options.boxes and options.box:
        raise InputError("give --boxes or --box, not both")
    positions = _positions(options.subject_token_indices)
    if positions is not None and options.prompts:
        raise InputError("--subject_token_indices counts the words of one --prompt; leave it out, they are found")
    if options.prompt:
        return [_job(options.prompt, _boxes(options, options.prompt, positions), "", positions)]
    taken: set[Path] = set()
    jobs = []
    for number, (prompt, own) in enumerate(_lines(Path(options.prompts)), 1):
        where = f"--prompts {options.prompts}: prompt {number}"
        boxes = _boxes(options, prompt, None) if own is None else make_boxes(own, prompt, where)
        try:
            jobs.append(_job(prompt, boxes, str(free_name(Path(file_stem(prompt)), taken)), None))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    return jobs


def _job(prompt: str, boxes: list[Box] | None, stem: str, positions: list[list[int]] | None) -> Job:
    if boxes is None and positions is not None:
        raise InputError("--subject_token_indices is for boxes; give --boxes or --box too")
    if boxes is not None and positions is None:
        check_subjects(boxes, prompt)
        words = _words(prompt)
        for box in boxes:
            if _words(box.subject) not in words:
                raise InputError(f"{box.subject!r} has a box but is not in the prompt {prompt!r}")
    if boxes is not None and positions is not None and len(boxes) != len(positions):
        raise InputError(f"{len(boxes)} boxes for {len(positions)} lists in --subject_token_indices")
    return Job(prompt, boxes, stem, positions)


def _words(text: str) -> str:
    return " ".join(text.lower().split())


def _boxes(options: argparse.Namespace, prompt: str, positions: list[list[int]] | None) -> list[Box] | None:
    if options.box:
        return [parse_box(text) for text in options.box]
    if not options.boxes:
        return None
    # With positions the subjects have no names that matter; boxes alone are then in the same order.
    named = " ".join(f"<subject{i}>" for i in range(len(positions))) if positions is not None else prompt
    return read_boxes(options.boxes, named)


def _positions(text: str | None) -> list[list[int]] | None:
    """``[[4],[6]]``: the first word of the prompt is 1."""
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    good = isinstance(found, list) and found and all(isinstance(own, list) and own for own in found)
    if not good or not all(type(p) is int for own in found for p in own):
        raise InputError(f"--subject_token_indices {text}: write a list of positions for each box, such as [[4],[6]]")
    return found


def _lines(path: Path) -> list[tuple[str, Any]]:
    """Prompts of a file, each with boxes of its own or None."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise InputError(f"--prompts {path}: {reason or error}") from error
    if path.suffix.lower() not in (".json", ".yaml", ".yml"):
        found: list[tuple[str, Any]] = [(line.strip(), None) for line in text.splitlines() if line.strip()]
    else:
        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"--prompts {path}: neither JSON nor YAML ({' '.join(str(error).split())})") from error
        found = [_entry(path, i, item) for i, item in enumerate(content if isinstance(content, list) else [content], 1)]
    if not found:
        raise InputError(f"--prompts {path}: has no prompt in it")
    return found


def _entry(path: Path, number: int, item: Any) -> tuple[str, Any]:
    if isinstance(item, str) and item.strip():
        return item, None
    if isinstance(item, dict) and isinstance(item.get("prompt"), str) and set(item) <= {"prompt", "boxes"}:
        return item["prompt"], item.get("boxes")
    raise InputError(f"--prompts {path}: entry {number} should be a text, or prompt and boxes")


def file_stem(prompt: str) -> str:
    """A safe file name of a prompt: its words with hyphens between, cut at a word."""
    words = re.findall(r"[^\W_]+", prompt.lower())
    stem = ""
    for word in words:
        longer = f"{stem}-{word}" if stem else word[:_LONGEST]
        if len(longer) > _LONGEST:
            break
        stem = longer
    return stem or "prompt"
