"""JSON files that belong to a model: an object, or one line that says why not."""

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
