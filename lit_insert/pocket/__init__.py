"""The tiny models that ship with the package, and the modules that train their frozen parts."""

from pathlib import Path

from lit_insert.errors import InputError


def path(name: str) -> Path:
    """Folder of a pocket model.

    Args:
        name: Such as "insert".

    Raises:
        InputError: If the package has no such model; the message lists those it has.
    """
    root = Path(__file__).parent
    folder = root / name
    if not folder.is_dir():
        have = ", ".join(sorted(p.name for p in root.iterdir() if (p / "README.md").exists()))
        raise InputError(f"no pocket model is called {name!r}; the package has: {have}")
    return folder
