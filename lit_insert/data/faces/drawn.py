"""A plain hat and plain sunglasses, for those who have no pictures of them at hand."""

from PIL import Image, ImageDraw

_FINE = 4  # drawn so many times larger, for smooth edges
_BLACK, _GLASS = (28, 28, 32, 255), (58, 62, 74, 255)
_FELT, _BAND, _SHADE = (52, 86, 150, 255), (226, 184, 70, 255), (38, 64, 118, 255)


def _canvas(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGBA", (width * _FINE, height * _FINE), (0, 0, 0, 0))
    return image, ImageDraw.Draw(image)


def _box(*values: float) -> tuple[float, ...]:
    return tuple(v * _FINE for v in values)


def draw_sunglasses() -> Image.Image:
    """Sunglasses from the front, RGBA."""
    image, draw = _canvas(400, 130)
    draw.rounded_rectangle(_box(4, 8, 396, 34), 12 * _FINE, _BLACK)
    for left in (14, 216):
        draw.rounded_rectangle(_box(left, 8, left + 170, 122), 46 * _FINE, _BLACK)
        draw.rounded_rectangle(_box(left + 14, 24, left + 156, 108), 36 * _FINE, _GLASS)
    return image.resize((400, 130), Image.Resampling.BOX)


def draw_hat() -> Image.Image:
    """A hat with a brim, from the front, RGBA."""
    image, draw = _canvas(420, 230)
    draw.rounded_rectangle(_box(80, 6, 340, 260), 70 * _FINE, _FELT)
    draw.rectangle(_box(80, 140, 340, 182), _BAND)
    draw.ellipse(_box(4, 168, 416, 228), _SHADE)
    draw.ellipse(_box(4, 164, 416, 216), _FELT)
    return image.resize((420, 230), Image.Resampling.BOX)
