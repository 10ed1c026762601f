"""Boxes: where each thing of a prompt should stand. Imports nothing heavy, so that mistakes answer at once."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from PIL import Image, ImageDraw, ImageFont

from lit_insert.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

PLACEHOLDER = re.compile(r"<[^<>|\s]+>")
_INK = ((31, 111, 180), (200, 80, 30), (43, 138, 62), (138, 79, 181), (176, 135, 11), (194, 65, 124))


def placeholders(prompt: str) -> list[str]:
    """Tokens such as ``<asset0>`` in a prompt, in order, each once."""
    return list(dict.fromkeys(PLACEHOLDER.findall(prompt)))


@dataclass(frozen=True)
class Box:
    """A rectangle in fractions of the picture, from its top left corner.

    Attributes:
        subject: Words of the prompt that name what stands in it.
        x0: Left edge.
        y0: Top edge.
        x1: Right edge, beyond ``x0``.
        y1: Bottom edge, beyond ``y0``.

    Raises:
        InputError: If an edge is outside [0,1] or the wrong way round.
    """

    subject: str
    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        shown = f"box of {self.subject}: " + ",".join(f"{v:g}" for v in self.corners)
        if not all(math.isfinite(v) and 0 <= v <= 1 for v in self.corners):
            raise InputError(f"{shown} is outside the picture; coordinates are fractions from 0 to 1")
        if self.x0 >= self.x1 or self.y0 >= self.y1:
            raise InputError(f"{shown} is empty; give x0,y0,x1,y1 with x0 < x1 and y0 < y1")

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1."""
        return self.x0, self.y0, self.x1, self.y1

    def cells(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of a grid that the box covers; at least the one cell at its middle."""

        def span(low: float, high: float, count: int) -> slice:
            first, last = round(low * count), round(high * count)
            if first == last:
                first = min(int((low + high) / 2 * count), count - 1)
                last = first + 1
            return slice(first, last)

        return span(self.y0, self.y1, height), span(self.x0, self.x1, width)


def parse_box(text: str) -> Box:
    """A box from ``"<asset0>:0.1,0.3,0.5,0.9"``.

    Raises:
        InputError: If it is not written like this.
    """
    subject, _, numbers = text.rpartition(":")
    return _box(subject.strip(), numbers.split(","), f"box {text!r}")


def read_boxes(path: str | Path, prompt: str = "") -> list[Box]:
    """Boxes from a JSON or YAML file.

    Args:
        path: A mapping of subjects to [x0,y0,x1,y1]; a list of ``{subject: …, box: […]}``; or a list of boxes
            alone, for the placeholders of the prompt in their order.
        prompt: Names the subjects of a list of boxes alone.

    Raises:
        InputError: If it cannot be read or is none of these.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise InputError(f"--boxes {path}: {reason or error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"--boxes {path}: neither JSON nor YAML ({' '.join(str(error).split())})") from error
    return make_boxes(content, prompt, str(path))


def make_boxes(content: Any, prompt: str = "", origin: str = "boxes") -> list[Box]:
    """Boxes from any of the forms that `read_boxes` takes, or from boxes.

    Raises:
        InputError: If it is none of these.
    """
    if isinstance(content, Mapping):
        return [_box(str(subject), box, f"{origin}: {subject}") for subject, box in content.items()]
    if not isinstance(content, Sequence) or isinstance(content, str):
        raise InputError(f"{origin}: give a mapping of subjects to [x0,y0,x1,y1], or a list")
    if all(isinstance(item, Box) for item in content):
        return list(content)
    if all(isinstance(item, Mapping) for item in content):
        for item in content:
            if set(item) != {"subject", "box"}:
                raise InputError(f"{origin}: {dict(item)} should have subject and box, and nothing else")
        return [_box(str(item["subject"]), item["box"], f"{origin}: {item['subject']}") for item in content]
    subjects = placeholders(prompt)
    if len(content) != len(subjects):
        named = f" ({', '.join(subjects)})" if subjects else ""
        raise InputError(
            f"{origin}: {len(content)} boxes for {len(subjects)} tokens in the prompt{named}; "
            "give one each, or name their subjects"
        )
    return [_box(s, box, f"{origin}: {s}") for s, box in zip(subjects, content, strict=True)]


def check_subjects(boxes: Sequence[Box], prompt: str) -> None:
    """Refuse boxes that do not cover the placeholders of a prompt.

    Raises:
        InputError: If a placeholder of the prompt has no box.
    """
    have = {box.subject for box in boxes}
    for token in placeholders(prompt):
        if token not in have:
            raise InputError(f"the prompt has {token}, for which there is no box; the boxes are for {', '.join(have)}")


def _box(subject: str, numbers: Any, origin: str) -> Box:
    if not subject:
        raise InputError(f"{origin}: write it as '<asset0>:0.1,0.3,0.5,0.9', subject and x0,y0,x1,y1")
    try:
        corners = [float(v) for v in numbers]
    except (TypeError, ValueError):
        corners = []
    if len(corners) != 4:
        raise InputError(f"{origin}: {numbers} is not four numbers x0,y0,x1,y1")
    return Box(subject, *corners)


def rasterise(boxes: Sequence[Box], height: int, width: int) -> "Tensor":
    """Boolean (S,height,width), true inside each box."""
    import torch

    inside = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for plane, box in zip(inside, boxes, strict=True):
        plane[box.cells(height, width)] = True
    return inside


def draw_layout(
    boxes: Sequence[Box], size: tuple[int, int] = (512, 512), under: Image.Image | None = None
) -> Image.Image:
    """The boxes with their subjects, on grey or over a picture.

    Args:
        boxes: What to draw.
        size: Width and height in pixels.
        under: A picture to draw over, which is scaled to ``size``.
    """
    canvas = Image.new("RGB", size, (236, 238, 240)) if under is None else under.convert("RGB").resize(size)
    draw = ImageDraw.Draw(canvas, "RGBA")
    line = max(1, round(max(size) / 200))
    font = ImageFont.load_default(max(9, max(size) // 28))
    for index, box in enumerate(boxes):
        ink = _INK[index % len(_INK)]
        corners = [v * side for v, side in zip(box.corners, size * 2, strict=True)]
        corners[2], corners[3] = max(corners[2] - 1, corners[0]), max(corners[3] - 1, corners[1])
        draw.rectangle(corners, fill=None if under else (*ink, 40), outline=ink, width=line)
        at = (corners[0] + 2 * line, corners[1] + line)
        draw.text(at, box.subject, fill=ink, font=font, stroke_width=max(1, line // 2), stroke_fill=(255, 255, 255))
    return canvas
