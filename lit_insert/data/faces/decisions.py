"""Which pictures of a folder are kept, and why the others are not."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from lit_insert.artifacts.atomic import atomic_file
from lit_insert.data.faces.detection import Face
from lit_insert.errors import InputError


@dataclass(frozen=True)
class FaceRules:
    """What counts as a face, and how many a picture may have.

    Args:
        min_weight: Least weight of a face on the detector's own scale: about 2 for Haar, 0.8 for a network.
        min_ratio: Least side of a face, as a part of the picture's shorter side.
        max_faces: More faces than this in one picture drop it; 0 for any number.
        require_eyes: Faces whose eyes were not both found do not count.
        min_similarity: Least similarity to the person looked for, with a recogniser.
    """

    min_weight: float = 2.0
    min_ratio: float = 0.10
    max_faces: int = 3
    require_eyes: bool = False
    min_similarity: float = 0.363

    def __post_init__(self) -> None:
        if not 0 <= self.min_ratio <= 1:
            raise InputError(f"min_ratio is {self.min_ratio}; give 0 to 1")
        if self.max_faces < 0:
            raise InputError(f"max_faces is {self.max_faces}; give 0 or more")


def ratio(face: Face, size: tuple[int, int]) -> float:
    """The shorter side of a face as a part of the picture's."""
    return min(face.box[2:]) / min(size)


def judge(faces: Sequence[Face], size: tuple[int, int], rules: FaceRules) -> tuple[list[Face], str]:
    """The faces that count, the wanted person's first; and why the picture is dropped, empty if it is kept."""
    if not faces:
        return [], "no face"
    sure = [f for f in faces if f.weight >= rules.min_weight]
    if not sure:
        return [], "face too unsure"
    large = [f for f in sure if ratio(f, size) >= rules.min_ratio]
    if not large:
        return [], "face too small"
    if rules.max_faces and len(large) > rules.max_faces:
        return [], "too many faces"
    seen = [f for f in large if f.eyes] if rules.require_eyes else large
    if not seen:
        return [], "eyes not found"
    wanted = [f for f in seen if f.similarity is None or f.similarity >= rules.min_similarity]
    if not wanted:
        return [], "another person"
    return sorted(wanted, key=lambda f: -(f.similarity or 0)), ""


@dataclass(frozen=True)
class Decision:
    """One line of decisions.csv.

    Attributes:
        input: Path below the input folder.
        kept: 1 or 0.
        reason: Why not kept.
        boxes: Number of boxes that the detector gave.
        faces: How many of them count.
        weight: Weight of the face in question: the first that counts, else the surest; empty without one.
        ratio: Its shorter side by the picture's.
        similarity: To the person looked for; empty without a recogniser.
        x0: Left of its box, pixels; y0, x1, y1 likewise, half-open.
        eyes: Centres of its eyes, "x y x y" in pixels; empty if not both found.
        digest: Of the input's bytes.
        outputs: Names of the pictures made of it, separated by "/".
    """

    input: str
    kept: int = 0
    reason: str = ""
    boxes: int = 0
    faces: int = 0
    weight: str = ""
    ratio: str = ""
    similarity: str = ""
    x0: str = ""
    y0: str = ""
    x1: str = ""
    y1: str = ""
    eyes: str = ""
    digest: str = ""
    outputs: str = ""

    @property
    def files(self) -> list[str]:
        """Names of the pictures made of it."""
        return self.outputs.split("/") if self.outputs else []

    def about(self, face: Face, size: tuple[int, int]) -> "Decision":
        """A copy with the figures of one face."""
        x, y, w, h = face.box
        corners: dict[str, Any] = {n: str(round(v)) for n, v in (("x0", x), ("y0", y), ("x1", x + w), ("y1", y + h))}
        return replace(
            self,
            weight=f"{face.weight:.3f}",
            ratio=f"{ratio(face, size):.3f}",
            similarity="" if face.similarity is None else f"{face.similarity:.3f}",
            **corners,
            eyes=" ".join(f"{v:.1f}" for point in face.eyes or () for v in point),
        )


_COLUMNS = [f.name for f in fields(Decision)]


def read_decisions(path: Path) -> dict[str, Decision]:
    """The decisions by input; empty if there is no file.

    Raises:
        InputError: If the file is not such a table.
    """
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != _COLUMNS:
            raise InputError(f"{path}: is not a table of decisions; choose another folder or remove it")
        rows: list[dict[str, Any]] = list(reader)
    try:
        numbers = ("kept", "boxes", "faces")
        return {row["input"]: Decision(**{**row, **{n: int(row[n]) for n in numbers}}) for row in rows}
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: a line is cut short or changed; remove the file to decide anew") from error


def write_decisions(path: Path, decisions: dict[str, Decision]) -> None:
    """Write the table, sorted by input; a file that would not change is left alone."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(decisions[name]) for name in sorted(decisions))
    write_if_changed(path, text.getvalue().encode())


def write_if_changed(path: Path, data: bytes) -> None:
    """Write a file atomically unless it holds these bytes already."""
    if path.is_file() and path.read_bytes() == data:
        return
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)
