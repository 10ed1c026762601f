"""Pictures with what was found in them, and the page that shows which source object became which."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lit_insert.errors import InputError
from lit_insert.grounding.result import PictureResult, SegmentResult, Thing
from lit_insert.images import load_image, save_image
from lit_insert.report import Report

_COLOURS = (
    (230, 60, 60),
    (40, 120, 220),
    (50, 170, 80),
    (240, 160, 30),
    (150, 80, 200),
    (20, 180, 190),
    (230, 90, 170),
    (130, 110, 60),
)
_SIDE = 224
_ROWS = 64


def colours(result: SegmentResult) -> dict[int, tuple[int, int, int]]:
    """A colour for each thing by ``id(thing)``; what was matched has the colour of what it was made of."""
    context = [thing for _, thing in result.of("context")]
    found = {id(thing): _COLOURS[i % len(_COLOURS)] for i, thing in enumerate(context)}
    for i, ((_, thing), match) in enumerate(zip(result.of("generated"), result.matches, strict=False)):
        number = match.context if match.context is not None else len(context) + i
        found[id(thing)] = _COLOURS[number % len(_COLOURS)]
    for i, (_, thing) in enumerate(result.of("generated")):
        found.setdefault(id(thing), _COLOURS[(len(context) + i) % len(_COLOURS)])
    return found


def annotated(
    image: Image.Image, picture: PictureResult, paint: dict[int, tuple[int, int, int]], strength: float = 0.4
) -> Image.Image:
    """A picture with the masks of its things tinted, their boxes, labels and scores."""
    pixels = np.array(image.convert("RGB"), np.float32)
    width = max(1, round(max(image.size) / 400))
    for thing in sorted(picture.things, key=lambda t: -t.instance.area):
        x, y, w, h = thing.instance.box
        inside = thing.instance.mask[y : y + h, x : x + w]
        part = pixels[y : y + h, x : x + w]
        part[inside] = part[inside] * (1 - strength) + np.array(paint[id(thing)], np.float32) * strength
        contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(pixels, contours, -1, paint[id(thing)], width, offset=(x, y))
    shown = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(shown)
    size = max(10, round(max(image.size) / 50))
    font = ImageFont.load_default(size)
    for thing in picture.things:
        x, y, w, h = thing.instance.box
        draw.rectangle((x, y, x + w - 1, y + h - 1), outline=paint[id(thing)], width=width)
        text = f"{thing.label}: {thing.instance.score:.2f}"
        box = draw.textbbox((x, max(0, y - size - 4)), text, font=font)
        draw.rectangle((box[0] - 2, box[1] - 2, box[2] + 2, box[3] + 2), fill=paint[id(thing)])
        draw.text((x, max(0, y - size - 4)), text, (255, 255, 255), font=font)
    return shown


def save_annotated(result: SegmentResult, folder: Path) -> list[Path]:
    """Write every picture with what was found in it, as JPEG; returns the files."""
    paint = colours(result)
    return [
        save_image(annotated(load_image(picture.path), picture, paint), folder / f"{name}_annotated.jpg")
        for name, picture in _named(result)
        if picture.status != "error"
    ]


def _named(result: SegmentResult) -> Iterator[tuple[str, PictureResult]]:
    """contextual_0, contextual_1, …, and generated, or generated_0, …."""
    counts = {"context": 0, "generated": 0}
    several = sum(p.role == "generated" for p in result.pictures) > 1
    for picture in result.pictures:
        number = counts[picture.role]
        counts[picture.role] += 1
        if picture.role == "context":
            yield f"contextual_{number}", picture
        else:
            yield f"generated_{number}" if several else "generated", picture


def cut_out(image: Image.Image, thing: Thing, margin: float = 0.15) -> Image.Image:
    """A thing with a little of what is around it, the rest dimmed."""
    x, y, width, height = thing.instance.box
    room = round(max(width, height) * margin)
    left, top = max(0, x - room), max(0, y - room)
    right, bottom = min(image.width, x + width + room), min(image.height, y + height + room)
    pixels = np.array(image.convert("RGB").crop((left, top, right, bottom)), np.float32)
    outside = ~thing.instance.mask[top:bottom, left:right]
    pixels[outside] = pixels[outside] * 0.35 + 160
    shown = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    shown.thumbnail((_SIDE, _SIDE))
    return shown


def write_page(result: SegmentResult, path: Path) -> Path:
    """Write the HTML page: each generated object beside the contextual one it was made of, then all pictures."""
    done = [p for p in result.pictures if p.status != "error"]
    subtitle = f"{result.prompt} · {sum(len(p.things) for p in done)} things in {len(result.pictures)} pictures"
    report = Report("Which object became which", subtitle)
    report.text("Things looked for: " + (", ".join(e.text for e in result.entities) or "none"))
    for warning in result.warnings:
        report.text(f"Note: {warning}")
    loaded: dict[int, Image.Image] = {}
    for picture in done:
        try:
            loaded[id(picture)] = load_image(picture.path)
        except InputError:
            continue  # it has been taken away since; the figures below still hold
    _matches(report, result, loaded)
    paint = colours(result)
    rows: list[list[Image.Image | str]] = []
    for picture in done[:_ROWS]:
        if id(picture) in loaded:
            shown = annotated(loaded[id(picture)], picture, paint)
            shown.thumbnail((2 * 480, 2 * 480))
            rows.append([f"{picture.path.name} ({picture.role})", shown])
    if rows:
        report.heading("Pictures").images(rows, cell_px=480)
    table = [
        [p.path.name, q.label, q.presence, q.n_found, q.n_kept, q.error or q.status] for p in done for q in p.queries
    ]
    report.heading("Figures").table(["picture", "label", "presence", "found", "kept", "status"], table)
    if result.failed:
        report.heading("Failed").table(["picture", "reason"], [[p.path.name, p.error] for p in result.failed])
    return report.save(path)


def _matches(report: Report, result: SegmentResult, loaded: dict[int, Image.Image]) -> None:
    """One row a generated object."""
    context = list(result.of("context"))
    rows: list[list[Image.Image | str | None]] = []
    for (picture, thing), match in zip(result.of("generated"), result.matches, strict=False):
        image = loaded.get(id(picture))
        if image is None or len(rows) == _ROWS:
            continue
        row: list[Image.Image | str | None] = [thing.label, cut_out(image, thing)]
        number = match.context if match.context is not None else match.best
        similarity = match.similarity if match.context is not None else match.best_similarity
        if number is None or similarity is None:
            rows.append([*row, None, "no candidate"])
            continue
        source, other = context[number]
        what = "match" if match.context is not None else "no match; nearest"
        shown = cut_out(loaded[id(source)], other) if id(source) in loaded else None
        rows.append([*row, shown, f"{what}: {other.label} of {source.path.name}, {similarity:.3f}"])
    if rows:
        header = ["label", "generated", "made of", "cosine similarity"]
        report.heading("Generated objects").images(rows, header=header, cell_px=_SIDE // 2)
