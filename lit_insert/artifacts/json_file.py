"""The JSON files of a model."""

import json
from pathlib import Path
from typing import Any

from lit_insert.errors import InputError


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: If the file is missing, broken, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: missing or broken ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: must be a JSON object")
    return found


def write_object(path: Path, content: dict[str, Any]) -> None:
    """Write an object, indented by two."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def forget_paths(folder: Path) -> None:
    """Take ``_name_or_path`` out of every ``config.json`` below a folder: where a part lay before it was saved here.

    Files that hold no JSON object are nobody's configuration, and left alone.
    """
    for path in sorted(folder.rglob("config.json")):
        try:
            config = read_object(path)
        except InputError:
            continue
        if config.pop("_name_or_path", None) is not None:
            write_object(path, config)
