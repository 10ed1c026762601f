"""Which object goes into which scene, and what the result is called."""

import csv
import difflib
import sys
from dataclasses import dataclass
from pathlib import Path

from lit_insert.cli.common import free_name, picture_files
from lit_insert.errors import InputError
from lit_insert.images import IMAGE_SUFFIXES

COLUMNS = ("image", "object", "output", "seed")


@dataclass(frozen=True)
class Pair:
    """One insertion to make.

    Attributes:
        image: File of the scene.
        object: File of the reference.
        output: Path of the result below the output folder, with suffix.
        seed: Of its noise.
    """

    image: Path
    object: Path
    output: Path
    seed: int

    def results(self, count: int) -> list[Path]:
        """Relative paths of its ``count`` results."""
        if count == 1:
            return [self.output]
        return [self.output.with_stem(f"{self.output.stem}_{k}") for k in range(count)]


def pairs_from_paths(
    image: str, reference: str, how: str, suffix: str, seed: int, option: str = "--object"
) -> list[Pair]:
    """Pairs of two files, a file and a folder, or two folders.

    Args:
        image: Scene, or a folder of scenes.
        reference: Object, or a folder of objects.
        how: For two folders: "name" pairs files of the same stem, "all" puts every object into every scene.
        suffix: Of the results, with the dot.
        seed: Of every pair's noise: a pair gives the same result alone and in company.
        option: What the reference is called on the command line.

    Raises:
        InputError: If a path is missing, a folder has no pictures, or no names match.
    """
    scenes, objects = picture_files(image, "--image"), picture_files(reference, option)
    if how == "name" and Path(image).is_dir() and Path(reference).is_dir():
        by_stem = {p.stem: p for p in objects}
        chosen = [(scene, by_stem[scene.stem]) for scene in scenes if scene.stem in by_stem]
        if not chosen:
            raise InputError(
                f"no file of {image} has the name of one of {reference}; --pairs all puts every object into every scene"
            )
        used = {path for both in chosen for path in both}
        if lone := [str(path) for path in (*scenes, *objects) if path not in used]:
            more = f" and {len(lone) - 5} more" if len(lone) > 5 else ""
            print(f"no partner of their name, left out: {', '.join(lone[:5])}{more}", file=sys.stderr)
    else:
        chosen = [(scene, thing) for scene in scenes for thing in objects]
    taken: set[Path] = set()
    pairs = []
    for scene, thing in chosen:
        output = free_name(Path(f"{scene.stem}__{thing.stem}{suffix}"), taken)
        pairs.append(Pair(scene, thing, output, seed))
    return pairs


def pairs_from_csv(path: str, suffix: str, seed: int) -> list[Pair]:
    """Pairs of a CSV file with the columns image, object and, if wanted, output and seed.

    Paths are relative to the CSV's folder; ``output`` is relative to the output folder.

    Raises:
        InputError: If the file or a column is missing, a row is incomplete, or two rows name one output.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"--csv {path}: no such file")
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            header = [name.strip() for name in reader.fieldnames or []]
            _check_header(path, header)
            reader.fieldnames = header
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    if not rows:
        raise InputError(f"{path}: has no rows")
    taken: set[Path] = set()
    pairs = []
    for line, row in rows:
        values = {key: (row.get(key) or "").strip() for key in COLUMNS}
        for key in ("image", "object"):
            if not values[key]:
                raise InputError(f"{path}: line {line} has no {key}")
        try:
            own_seed = int(values["seed"]) if values["seed"] else seed
        except ValueError as error:
            raise InputError(f"{path}: line {line}: seed {values['seed']!r} is not a whole number") from error
        scene, thing = (file.parent / Path(values[key]).expanduser() for key in ("image", "object"))
        if values["output"]:
            output = _result_name(Path(values["output"]), suffix, f"{path}: line {line}")
            if output in taken:
                raise InputError(f"{path}: line {line}: output {output} is named twice")
            taken.add(output)
        else:
            output = free_name(Path(f"{scene.stem}__{thing.stem}{suffix}"), taken)
        pairs.append(Pair(scene, thing, output, own_seed))
    return pairs


def _check_header(path: str, header: list[str]) -> None:
    unknown = [name for name in header if name not in COLUMNS]
    for name in ("image", "object"):
        if name not in header:
            near = difflib.get_close_matches(name, unknown, n=1)
            hint = f"; is {near[0]!r} meant?" if near else f" (it has: {', '.join(header) or 'nothing'})"
            raise InputError(f"{path}: no column is called {name!r}{hint}")
    for name in unknown:
        near = difflib.get_close_matches(name, COLUMNS, n=1)
        if near:
            raise InputError(f"{path}: column {name!r} is unknown; did you mean {near[0]!r}?")


def _result_name(output: Path, suffix: str, where: str) -> Path:
    if output.is_absolute() or ".." in output.parts:
        raise InputError(f"{where}: output {output} leaves the output folder")
    output = output if output.suffix else output.with_suffix(suffix)
    if output.suffix.lower() not in IMAGE_SUFFIXES:
        raise InputError(f"{where}: output {output} has no suffix of a picture ({', '.join(IMAGE_SUFFIXES)})")
    return output
