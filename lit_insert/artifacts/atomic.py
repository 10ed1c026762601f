"""Writing so that a reader meets the old file or the new one, never half of either."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_file(path: str | Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling to write to; it takes the name ``path`` when the block ends well.

    If the block raises (a full disk, an interrupt), the temporary file is removed and the previous file at
    ``path`` stays as it was. Parent folders are made. The temporary name keeps the suffix of ``path``, for
    writers that look at it.

    Args:
        path: Final name.
        durable: Force the bytes to the disk before the rename: for files that must survive a power cut.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if durable:
            _flush(temporary)
        _publish(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary sibling folder; it replaces ``path`` whole when the block ends well.

    If the block raises, the previous folder stays as it was. A folder that is not empty cannot be replaced in
    one system call, so the old one is moved aside first, and moved back if the second move fails.

    Raises:
        NotADirectoryError: If ``path`` is an existing file.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file; give a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent))
    aside = temporary.with_suffix(".old")
    try:
        yield temporary
        _publish(temporary)
        for entry in temporary.rglob("*"):
            if entry.is_symlink():
                continue
            _publish(entry)
            if entry.is_file():
                _flush(entry)
        if path.exists():
            os.replace(path, aside)
        try:
            os.replace(temporary, path)
        except OSError:
            if aside.exists():
                os.replace(aside, path)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)


def _publish(path: Path) -> None:
    """Give the permissions of an ordinary new file or folder: temporary ones, and safetensors' are private."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666 | path.stat().st_mode & 0o111) & ~umask)


def _flush(file: Path) -> None:
    """Force a file's bytes to the disk, so that a full disk shows before the rename."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
