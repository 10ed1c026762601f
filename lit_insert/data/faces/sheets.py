"""Contact sheets of a folder of faces: what was kept and made, and what was dropped for which reason."""

import io
from pathlib import Path

from PIL import Image, ImageDraw

from lit_insert.data.decode import read_picture
from lit_insert.data.faces.build import PICTURES, FaceSettings, framed
from lit_insert.data.faces.decisions import Decision, write_if_changed
from lit_insert.data.faces.detection import Face
from lit_insert.data.image_folder import VARIANT
from lit_insert.data.loading import BrokenSample
from lit_insert.images import fit_within, image_grid

KEPT, DROPPED = "kept.jpg", "dropped.jpg"
_CELL, _ACROSS = 192, 8
_AROUND = 3.2  # what is shown of a picture with its face in the middle, in sides of the face's box


def _photo(path: Path) -> Image.Image | None:
    """The input, None if it cannot be read (any more)."""
    try:
        return read_picture(path)
    except BrokenSample:
        return None


def _marked(photo: Image.Image, decision: Decision) -> Image.Image:
    """The input with the box and the eyes drawn in, small."""
    image = fit_within(photo, _CELL).copy()
    scale = image.width / photo.width
    draw = ImageDraw.Draw(image)
    if decision.x0:
        corners = [float(v) * scale for v in (decision.x0, decision.y0, decision.x1, decision.y1)]
        draw.rectangle(corners, outline=(0, 220, 60) if decision.kept else (240, 60, 40), width=2)
    eyes = [float(v) * scale for v in decision.eyes.split()]
    for x, y in zip(eyes[::2], eyes[1::2], strict=True):
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), outline=(250, 230, 40))
    return image


def _near(image: Image.Image, decision: Decision, photo: Image.Image | None) -> Image.Image:
    """The face and what is around it; a picture that was cut or shrunk already is shown whole."""
    if photo is not None and photo.size == image.size:
        x0, y0, x1, y1 = (float(v) for v in (decision.x0, decision.y0, decision.x1, decision.y1))
        image = framed(image, Face((x0, y0, x1 - x0, y1 - y0), 0.0), FaceSettings(crop=_AROUND))
    scale = _CELL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC)


def write_sheets(images: str | Path, out: str | Path, decisions: dict[str, Decision], count: int = 60) -> list[Path]:
    """Write ``kept.jpg`` and ``dropped.jpg`` beside the table of decisions; unchanged ones are left alone.

    Args:
        images: The folder that was looked through.
        out: The folder that was made.
        decisions: By input.
        count: Inputs on a sheet, the first by name.

    Returns:
        The sheets that there is something to show on.
    """
    root, out = Path(images), Path(out)
    ordered = [decisions[name] for name in sorted(decisions)]
    cells: dict[str, list[tuple[Image.Image | None, str]]] = {KEPT: [], DROPPED: []}
    kept = [d for d in ordered if d.kept][:count]
    for decision in kept:
        photo = _photo(root / decision.input)
        cells[KEPT].append((photo and _marked(photo, decision), f"{decision.weight}, {decision.ratio}"))
        for file in decision.files:
            what = Path(file).stem.partition(VARIANT)[2] or file
            cells[KEPT].append((_near(read_picture(out / PICTURES / file), decision, photo), what))
    for decision in [d for d in ordered if not d.kept][:count]:
        photo = _photo(root / decision.input)
        figures = f" ({decision.weight}, {decision.ratio})" if decision.weight else ""
        cells[DROPPED].append((photo and _marked(photo, decision), decision.reason + figures))
    written = []
    for name, shown in cells.items():
        if not any(picture for picture, _ in shown):
            continue
        each = 1 + max(len(d.files) for d in kept) if name == KEPT else 1
        across = max(1, _ACROSS // each) * each  # what was made of one photo stays in one row
        rows = [shown[i : i + across] for i in range(0, len(shown), across)]
        grid = image_grid(
            [[picture for picture, _ in row] for row in rows],
            captions=[[text for _, text in row] for row in rows],
            cell=_CELL,
        )
        stream = io.BytesIO()
        grid.save(stream, "JPEG", quality=90)
        write_if_changed(out / name, stream.getvalue())
        written.append(out / name)
    return written
