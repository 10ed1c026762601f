"""Which objects go into which scene, what the result is called, and what of it is done already."""

import argparse
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_insert.cli.common import free_name, picture_files
from lit_insert.errors import InputError
from lit_insert.fusion.objects import FusionObject, read_objects

RECORD = "results.json"
_OBJECT_FLAGS = {
    "replace_image": "path",
    "replace_mask": "mask",
    "target_text": "text",
    "target_area": "target_area",
    "location_prompt": "location_prompt",
    "scale_factor": "base_scale",
}
_JOB_KEYS = ("name", "base_image", "objects", "seed", *_OBJECT_FLAGS)


@dataclass(frozen=True)
class FuseJob:
    """One scene to make.

    Attributes:
        name: Of its files, without suffix.
        scene: File of the scene.
        objects: What to put in.
        seed: Of its noise.
    """

    name: str
    scene: Path
    objects: tuple[FusionObject, ...]
    seed: int

    def digest(self, settings: Mapping[str, Any]) -> str:
        """What its result depends on, in short: when this is the same, so is the result."""
        files = [self.scene, *(Path(p) for o in self.objects for p in (o.path, o.mask) if p)]
        states = [[str(p), p.stat().st_size, p.stat().st_mtime_ns] if p.exists() else [str(p)] for p in files]
        about = [states, [o.as_dict() for o in self.objects], self.seed, dict(settings)]
        return hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=8).hexdigest()


@dataclass
class FuseWork:
    """What there is to do, and what became of it."""

    jobs: list[FuseJob]
    folder: Path
    done: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    skipped: int = 0


def plan(options: argparse.Namespace) -> list[FuseJob]:
    """Settle what is to be made; reads no picture.

    Raises:
        InputError: If options are missing or contradict, or a file is missing or wrong; names it.
    """
    if options.jobs:
        for flag in ("base_image", "objects", *_OBJECT_FLAGS):
            if getattr(options, flag) is not None:
                raise InputError(f"--jobs says what to do; leave out --{flag}, or put it into the file")
        return _from_file(Path(options.jobs), options.seed)
    if not options.base_image:
        raise InputError("give --base_image, a scene or a folder of scenes (or --jobs)")
    if bool(options.objects) == bool(options.replace_image):
        raise InputError("say what to put in: --replace_image, or --objects with a JSON file, one of them")
    scenes = picture_files(options.base_image, "--base_image")
    taken: set[Path] = set()
    if options.objects:
        for flag in _OBJECT_FLAGS:
            if getattr(options, flag) is not None:
                raise InputError(f"--objects says what to put in; leave out --{flag}, or put it into the file")
        things = tuple(read_objects(options.objects))
        return [FuseJob(str(free_name(Path(s.stem), taken)), s, things, options.seed) for s in scenes]
    files = picture_files(options.replace_image, "--replace_image")
    jobs = []
    for scene in scenes:
        for file in files:
            values = {key: getattr(options, flag) for flag, key in _OBJECT_FLAGS.items()}
            given = {k: v for k, v in values.items() if v is not None} | {"path": str(file)}
            thing = FusionObject.from_dict(given, str(file))
            _check_files(scene, [thing])
            name = scene.stem if len(files) == 1 else f"{scene.stem}_{file.stem}"
            jobs.append(FuseJob(str(free_name(Path(name), taken)), scene, (thing,), options.seed))
    return jobs


def _from_file(path: Path, seed: int) -> list[FuseJob]:
    import yaml

    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"--jobs {path}: no such file") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--jobs {path}: not readable YAML ({' '.join(str(error).split())})") from error
    given = given.get("jobs") if isinstance(given, dict) else given
    if not isinstance(given, list) or not given:
        raise InputError(f"--jobs {path}: must be a list of jobs")
    jobs = [_job(entry, f"{path}, job {i}", path.parent, seed) for i, entry in enumerate(given)]
    names = [job.name for job in jobs]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice:
        raise InputError(f"--jobs {path}: two jobs are called {twice!r}; give each a name of its own")
    return jobs


def _job(entry: Any, origin: str, folder: Path, seed: int) -> FuseJob:
    if not isinstance(entry, dict):
        raise InputError(f"{origin}: must be a mapping of keys to values")
    unknown = sorted(map(str, set(entry) - set(_JOB_KEYS)))
    if unknown:
        raise InputError(f"{origin}: no key is called {unknown[0]!r}; there are {', '.join(_JOB_KEYS)}")
    if not entry.get("base_image"):
        raise InputError(f"{origin}: the key 'base_image' is missing")
    scene = _beside(folder, entry["base_image"])
    listed, flags = entry.get("objects"), {k: entry[k] for k in _OBJECT_FLAGS if entry.get(k) is not None}
    if (listed is None) == (not flags):
        raise InputError(f"{origin}: give objects, or replace_image and its keys, one of them")
    if isinstance(listed, str):
        things = read_objects(_beside(folder, listed))
    else:
        own = listed if listed is not None else [{_OBJECT_FLAGS[k]: v for k, v in flags.items()}]
        if not isinstance(own, list) or not own:
            raise InputError(f"{origin}: objects must be a list, or the name of a JSON file")
        things = [FusionObject.from_dict(o, f"{origin}, object {i}", folder) for i, o in enumerate(own)]
    _check_files(scene, things)
    number = entry.get("seed", seed)
    if not isinstance(number, int) or isinstance(number, bool):
        raise InputError(f"{origin}: seed: expected a whole number, got {number!r}")
    name = str(entry.get("name") or scene.stem)
    if Path(name).name != name or name.startswith("."):
        raise InputError(f"{origin}: name {name!r}: give a plain file name without folders")
    return FuseJob(name, scene, tuple(things), number)


def _beside(folder: Path, given: Any) -> Path:
    path = Path(str(given))
    return path if path.exists() or not (folder / path).exists() else folder / path


def _check_files(scene: Path, things: list[FusionObject]) -> None:
    for path in (scene, *(Path(str(p)) for t in things for p in (t.path, t.mask) if p)):
        if not path.is_file():
            raise InputError(f"{path}: no such file")


def artifact_files(given: str) -> list[Path]:
    """Artifacts of the first stage: a file, or those of a folder.

    Raises:
        InputError: If there are none.
    """
    path = Path(given)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".pt") and not p.name.startswith("."))
        if not found:
            raise InputError(f"--input {given}: no .safetensors or .pt of the first stage in it")
        return found
    if not path.is_file():
        raise InputError(f"--input {given}: no such file or folder")
    return [path]


def read_record(folder: Path) -> dict[str, dict[str, Any]]:
    """What an earlier call finished, by name; empty if there was none, or its record is unreadable."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return {entry["name"]: entry for entry in found["results"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def is_done(entry: Mapping[str, Any] | None, digest: str, folder: Path) -> bool:
    """Whether an earlier call made a result of the same input, and its files are still there."""
    if entry is None or entry.get("digest") != digest:
        return False
    return all((folder / name).is_file() for name in entry.get("outputs", [])) and bool(entry.get("outputs"))
