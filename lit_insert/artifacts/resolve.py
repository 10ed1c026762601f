"""What a model name on the command line or in Python stands for."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_insert import pocket
from lit_insert.errors import InputError

INDEX = "model_index.json"
CONFIG = "config.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Source:
    """A model that was found.

    Attributes:
        kind: "folder" (an exported pipeline or model), "checkpoint" (a training checkpoint) or "hub".
        location: Path of the folder or file, or the hub id.
        name: What the user wrote.
    """

    kind: Literal["folder", "checkpoint", "hub"]
    location: str
    name: str

    @property
    def path(self) -> Path:
        """The location as a path."""
        return Path(self.location)


def is_model_folder(folder: Path) -> bool:
    """Whether a folder is an exported pipeline (``model_index.json``) or a single exported model."""
    weights = ("*.safetensors", "tokens/*.safetensors")  # learned tokens may be all there is
    return (folder / INDEX).is_file() or ((folder / CONFIG).is_file() and any(any(folder.glob(w)) for w in weights))


def resolve_model(name: str | Path, default_pocket: str = "insert") -> Source:
    """Find out what a model name means; imports nothing heavy and reads no weights.

    Args:
        name: "pocket" or "pocket:<name>"; a run folder (its ``export/`` is taken, or else the last of its
            ``checkpoints/``); an exported folder, of a pipeline (``model_index.json``) or of a single model
            (``config.json`` and ``*.safetensors``); a ``.ckpt`` file; or a hub id ``owner/model``.
        default_pocket: Which pocket model a plain "pocket" is: the command's own, such as "mask".

    Raises:
        InputError: If it is none of these; says what was looked for.
    """
    text = str(name)
    if text == "pocket" or text.startswith("pocket:"):
        folder = pocket.path(text.partition(":")[2] or default_pocket)
        return Source("folder", str(folder), text)
    path = Path(text).expanduser()
    if path.is_dir():
        return _in_folder(path, text)
    if path.is_file():
        if path.suffix == ".ckpt":
            return Source("checkpoint", str(path), text)
        raise InputError(f"{text}: a file that is no .ckpt; give an exported folder, a run folder or a .ckpt")
    if path.suffix != ".ckpt" and _HUB_ID.fullmatch(text):
        return Source("hub", text, text)
    near = difflib.get_close_matches(text, ["pocket"], n=1)
    hint = f"did you mean {near[0]!r}?" if near else "give pocket, a run folder, an exported folder or a hub id"
    kind = "file" if path.suffix == ".ckpt" else "folder"
    raise InputError(f"model {text!r}: no such {kind} here; {hint}")


def _in_folder(folder: Path, name: str) -> Source:
    for candidate in (folder, folder / "export"):
        if is_model_folder(candidate):
            return Source("folder", str(candidate), name)
    checkpoints = folder / "checkpoints"
    last = checkpoints / "last.ckpt"
    if not last.is_file():
        files = sorted(checkpoints.glob("*.ckpt"), key=lambda p: p.stat().st_mtime)
        last = files[-1] if files else last
    if last.is_file():
        return Source("checkpoint", str(last), name)
    raise InputError(
        f"model {name!r}: the folder has no model (looked for {INDEX}, or {CONFIG} with *.safetensors, in it and in "
        "export/, and for checkpoints/*.ckpt)"
    )
