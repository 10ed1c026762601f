"""Exported folders: replacing one whole, without eating anything else."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lit_insert.artifacts.atomic import atomic_folder
from lit_insert.artifacts.json_file import forget_paths
from lit_insert.artifacts.resolve import CONFIG, INDEX, is_model_folder
from lit_insert.errors import InputError


@contextmanager
def replace_model_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder to write a model to; it replaces ``path`` when the block ends well.

    The previous model survives a failure. What lay beside the model (a card, a ``.git``) is carried over; its
    old parts are not.

    Raises:
        InputError: If ``path`` is a file, or a folder with contents but without a model.
    """
    path = Path(path).expanduser().resolve()
    if path.is_file():
        raise InputError(f"{path}: a file is in the way; give a folder")
    if path.is_dir() and any(path.iterdir()) and not is_model_folder(path):
        raise InputError(f"{path}: has other things in it and no model; give a new or empty folder")
    with atomic_folder(path) as temporary:
        yield temporary
        forget_paths(temporary)
        for old in path.iterdir() if path.is_dir() else ():
            if (temporary / old.name).exists() or _is_part(old):
                continue
            if old.is_dir() and not old.is_symlink():
                shutil.copytree(old, temporary / old.name, symlinks=True)
            else:
                shutil.copy2(old, temporary / old.name, follow_symlinks=False)


def _is_part(entry: Path) -> bool:
    """Whether an entry of an exported folder belongs to the old model."""
    configs = (CONFIG, "preprocessor_config.json", "scheduler_config.json")
    own = entry.name in (INDEX, CONFIG) or ".safetensors" in entry.suffixes  # the second: shards' index too
    return own or any((entry / name).is_file() for name in configs)
