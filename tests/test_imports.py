"""The floors of the house: imports go downwards only, and Lightning stays where it belongs."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lit_insert"
FLOORS = {
    "cli": 5,
    "__main__": 5,
    "replace": 4,
    "data": 2,
    "training": 2,
    "diffusion": 2,
    "segmenters": 2,
    "images": 1,
    "inpainting": 1,
    "blending": 1,
    "report": 1,
    "rle": 1,
    "letterbox": 1,
    "artifacts": 1,
    "metrics": 1,
    "errors": 1,
    "pocket": 1,
    "__init__": 0,
}
ROOM = 3  # whatever is not named above
DOORS_WITHOUT = {"pipeline", "network", "objective"}  # of a room: never import its module, the data or training


def files():
    return sorted(p for p in PACKAGE.rglob("*.py"))


def floor(part: str) -> int:
    return FLOORS.get(part, ROOM)


def imports(path: Path, *, top_only: bool = False):
    """Names of imported modules, those under ``if TYPE_CHECKING`` aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(n)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for child in branch.body
        for n in ast.walk(child)
    }
    for node in tree.body if top_only else ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from names if node.module == "lit_insert" else [str(node.module)]


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor_of(path: Path) -> int:
    """Floor of a file; what makes pocket models stands above the rooms that they are for."""
    parts = path.relative_to(PACKAGE).parts
    return 4 if parts[0] == "pocket" and parts[-1] != "__init__.py" else floor(part_of(path))


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    part = part_of(path)
    mine = floor_of(path)
    if part == "__init__":
        return
    for name in imports(path):
        if not name.startswith("lit_insert."):
            continue
        other = name.split(".")[1]
        if other == part or other == "__version__":
            continue
        theirs = floor(other) if (PACKAGE / other).exists() or (PACKAGE / f"{other}.py").exists() else 0
        assert theirs <= mine, f"{part} (floor {mine}) imports {name} (floor {theirs})"
        assert not (theirs == mine == ROOM), f"{part} and {other} are rooms and do not know each other"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_lightning_only_where_it_belongs(path):
    part = part_of(path)
    allowed = part in ("training", "data", "cli") or path.stem.split("_")[-1] == "module"
    for name in imports(path):
        package = name.split(".")[0]
        assert package != "pytorch_lightning", f"{path} imports pytorch_lightning"
        assert allowed or package != "lightning", f"{path} imports {name}"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_pure_doors_do_not_know_the_trainer(path):
    if floor(part_of(path)) != ROOM or path.stem not in DOORS_WITHOUT:
        return
    for name in imports(path):
        parts = name.split(".")
        assert parts[:2] not in (["lit_insert", "training"], ["lit_insert", "data"]), f"{path} imports {name}"
        assert not (parts[0] == "lit_insert" and parts[-1].split("_")[-1] == "module"), f"{path} imports {name}"


def test_the_package_itself_imports_nothing_heavy():
    assert set(imports(PACKAGE / "__init__.py", top_only=True)) <= {"importlib", "typing"}
