"""A second look: a language model that sees is shown each thing and asked whether it is what it was found as."""

from typing import Protocol

import cv2
import numpy as np
from PIL import Image

from lit_insert.grounding.result import Thing

_OUTLINE = (255, 48, 96)


class Asked(Protocol):
    """Answers questions about pictures."""

    def ask(self, content: list[dict[str, object]], only: list[str] | None = None) -> str:
        """The answer to one turn; one of ``only``."""
        ...


def shows(model: Asked, image: Image.Image, thing: Thing, margin: float = 0.25) -> bool:
    """Whether the model agrees that an outlined thing is what it is called.

    Args:
        model: Such as `lit_insert.grounding.entities.QwenEntities`.
        image: The picture.
        thing: What was found in it.
        margin: Room around it, of its longer side.
    """
    question = (
        f"One thing in this picture is outlined. Is it, as a whole, what these words say: {thing.label!r}? "
        "Answer yes or no."
    )
    content: list[dict[str, object]] = [
        {"type": "image", "image": outlined(image, thing, margin)},
        {"type": "text", "text": question},
    ]
    return model.ask(content, ["yes", "no"]).strip().lower() == "yes"


def outlined(image: Image.Image, thing: Thing, margin: float = 0.25) -> Image.Image:
    """The part of a picture around a thing, with the thing's outline drawn."""
    x, y, width, height = thing.instance.box
    room = round(max(width, height) * margin)
    left, top = max(0, x - room), max(0, y - room)
    right, bottom = min(image.width, x + width + room), min(image.height, y + height + room)
    inside = thing.instance.mask[top:bottom, left:right].astype(np.uint8)
    pixels = np.array(image.convert("RGB").crop((left, top, right, bottom)))
    contours, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(pixels, contours, -1, _OUTLINE, max(1, round(max(pixels.shape[:2]) / 200)))
    return Image.fromarray(pixels)
