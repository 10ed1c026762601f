"""Finding and checking the YAML files, and the short names that they may use."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from lit_insert.errors import InputError

PACKAGE = Path(__file__).parents[1]


def config_path(name: str) -> Path:
    """A configuration that comes with the package, in an installed wheel or a checkout.

    Args:
        name: Path below ``configs/``, such as "defaults.yaml".

    Raises:
        InputError: If there is none of that name; the message lists those there are.
    """
    for root in _roots():
        if (root / name).is_file():
            return root / name
    raise InputError(f"no config is called {name!r}; there is: {', '.join(config_names())}")


def _roots() -> list[Path]:
    return [PACKAGE / "configs", PACKAGE.parent / "configs"]


def config_names() -> list[str]:
    """Names of the configurations that come with the package."""
    found = {str(p.relative_to(root)) for root in _roots() for p in root.rglob("*.yaml")}
    return sorted(found)


def find_config(given: str) -> Path:
    """A file that the user named: as a path, or below the package's ``configs/``.

    Raises:
        InputError: If there is no such file.
    """
    path = Path(given)
    if path.is_file():
        return path
    if path.is_dir():
        raise InputError(f"--config {given}: is a folder; give a YAML file")
    name = given.removeprefix("configs/")
    for root in _roots():
        if (root / name).is_file():
            return root / name
    raise InputError(f"--config {given}: no such file; the package has: {', '.join(config_names())}")


def check_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping strictly.

    Raises:
        InputError: If it is not YAML, not a mapping, or has a key twice; names file, key and line.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if node is None:
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{path}: must be a mapping of keys to values")
    _refuse_twins(node, path, "")
    return yaml.safe_load(text)


def _refuse_twins(node: Any, path: Path, above: str) -> None:
    import yaml

    if isinstance(node, yaml.SequenceNode):
        for i, child in enumerate(node.value):
            _refuse_twins(child, path, f"{above}{i}.")
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name in lines:
            raise InputError(f"{path}:{line}: key {above + name!r} was already given in line {lines[name]}; remove one")
        lines[name] = line
        _refuse_twins(value, path, f"{above}{name}.")


@cache
def short_names() -> dict[str, str]:
    """Class paths of this package's modules, data modules, callbacks and schedules by bare class name.

    Found by reading the sources, not by importing them, which would bring in diffusers and transformers.
    """
    files = [*PACKAGE.glob("data/*.py"), *PACKAGE.glob("training/*.py"), *PACKAGE.glob("*/module.py")]
    found: dict[str, str] = {}
    for file in sorted(files):
        module = ".".join(("lit_insert", *file.relative_to(PACKAGE).with_suffix("").parts))
        for name in re.findall(r"^class ([A-Z]\w*)\(", file.read_text(encoding="utf-8"), re.MULTILINE):
            found.setdefault(name, f"{module}.{name}")
    return found


def expand_names(argv: list[str]) -> list[str]:
    """Replace bare class names in arguments by class paths."""
    names = short_names()

    def expand(token: str) -> str:
        option, equals, value = token.partition("=")
        if equals and option.startswith("-"):
            return f"{option}={names.get(value, value)}"
        return names.get(token, token)

    return [expand(token) for token in argv]
