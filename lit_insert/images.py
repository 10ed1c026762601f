"""Pictures in and out: loading with every file format's surprises removed, saving, tensors, grids."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from lit_insert.artifacts.atomic import atomic_file
from lit_insert.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
Picture = Union[Image.Image, str, Path, "Tensor"]
MAX_PIXELS = 178_956_970  # where Pillow itself calls a picture a decompression bomb
WHITE = (255, 255, 255)
NEUTRAL = (128, 128, 128)  # the backdrop of reference pictures in training

# EXIF orientation -> what brings the stored pixels upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112


def load_image(
    path: str | Path,
    *,
    mode: Literal["RGB", "RGBA", "L"] = "RGB",
    background: tuple[int, int, int] = WHITE,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Read a picture upright, 8 bits a channel, in the mode asked for.

    EXIF orientation is applied; 16-bit grey is scaled to 8 bits; palette, CMYK, grey-with-alpha and 1-bit
    pictures are converted; of an animation the first frame is taken. The ICC profile of an RGB file stays in
    ``.info["icc_profile"]``, and `save_image` writes it back.

    Args:
        path: The file.
        mode: "RGB" (alpha is flattened over ``background``), "RGBA" (opaque where the file has no alpha), or
            "L" (grey, for masks; alpha flattened too).
        background: What shows through transparent pixels, 0..255 each.
        max_pixels: Width x height beyond this is refused before anything is decoded.

    Raises:
        InputError: If the file is missing, empty, not a picture, truncated, or larger than ``max_pixels``;
            the message names the file.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give a picture file")
    try:
        with Image.open(path) as file:
            width, height = file.size
            if width * height > max_pixels:
                raise InputError(f"{path}: {width}x{height} pixels is over the limit of {max_pixels}; shrink it")
            orientation = file.getexif().get(_ORIENTATION)
            profile = file.info.get("icc_profile") if file.mode in ("RGB", "RGBA", "P") else None
            image = _eight_bits(file, path)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: too many pixels (over the limit of {max_pixels}); shrink it") from error
    except Exception as error:  # Pillow's decoders raise nearly every type on broken bytes
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "not a format that Pillow reads, or its header is broken"
        raise InputError(f"{path}: not a readable picture ({reason})") from error
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    if mode != "RGBA":
        image = flatten_alpha(image, background)
    image = image if image.mode == mode else image.convert(mode)
    image.info = {"icc_profile": profile} if profile else {}
    return image


def _eight_bits(file: Image.Image, path: Path) -> Image.Image:
    """Decode to "L", "RGB" or "RGBA"."""
    if file.mode == "F":
        raise InputError(f"{path}: floating-point pixels; save it with 8 or 16 bits a channel")
    if file.mode.startswith("I"):
        values = np.asarray(file).astype(np.int64)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise InputError(f"{path}: 32-bit pixels; save it with 8 or 16 bits a channel")
        grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
        key = file.info.get("transparency")
        if not isinstance(key, int):
            return grey
        alpha = Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
        return Image.merge("RGBA", (grey, grey, grey, alpha))
    if file.has_transparency_data:
        return file.convert("RGBA")
    return file.convert("L" if file.mode in ("1", "L") else "RGB")


def flatten_alpha(image: Image.Image, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Composite over a plain colour (0..255 each); a picture without alpha only becomes RGB."""
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image.convert("RGBA")
    canvas = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(canvas, image).convert("RGB")


def save_image(image: Image.Image, path: str | Path, *, quality: int = 95) -> Path:
    """Write a picture atomically, in the format that the suffix names; returns the path.

    Args:
        image: What to write. Where the format has no alpha, it is flattened over white.
        path: Target; parent folders are made.
        quality: Of JPEG and WebP, 1..100.

    Raises:
        InputError: If the suffix is not that of a picture.
        OSError: If it cannot be written; the previous file at ``path`` is then as it was.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise InputError(f"{path}: unknown picture suffix {suffix!r}; use one of {', '.join(IMAGE_SUFFIXES)}")
    options: dict[str, Any] = {}
    if suffix in (".jpg", ".jpeg"):
        image = flatten_alpha(image) if image.mode != "L" else image
        options = {"quality": quality, "subsampling": 0}
    elif suffix == ".webp":
        options = {"quality": quality}
    elif suffix == ".bmp":
        image = flatten_alpha(image)
    if image.info.get("icc_profile") and suffix in (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"):
        options["icc_profile"] = image.info["icc_profile"]
    with atomic_file(path) as temporary:
        image.save(temporary, **options)
    return path


def to_tensor(image: Image.Image) -> "Tensor":
    """(3,H,W) float32 in [-1,1]; alpha is flattened over white."""
    import torch

    pixels = torch.from_numpy(np.array(flatten_alpha(image)))
    return pixels.permute(2, 0, 1).to(torch.float32).div_(127.5).sub_(1.0).contiguous()


def to_pil(tensor: "Tensor") -> Image.Image:
    """8-bit picture of a (3,H,W) tensor in [-1,1], or of a (1,H,W) mask in [0,1]; values outside are clipped.

    Raises:
        ValueError: On another shape.
        InputError: On NaN, which would otherwise turn into arbitrary colours.
    """
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        raise ValueError(f"expected (3,H,W) or (1,H,W), got {tuple(tensor.shape)}")
    values = tensor.detach().to("cpu").float()
    if values.isnan().any():
        raise InputError("the picture contains NaN: the model's numbers overflowed; use float32 or bfloat16")
    if len(values) == 1:
        return Image.fromarray(values[0].clamp(0, 1).mul(255).round().byte().numpy())
    values = values.clamp(-1, 1).add(1).mul(127.5).round().byte()
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())


def as_pictures(given: Any, name: str, *, alpha: bool = False) -> list[Image.Image]:
    """Whatever form pictures come in, as a list of upright PIL pictures.

    Args:
        given: A PIL picture, a path, a tensor (3,H,W) or (N,3,H,W) in [-1,1], or a sequence of these.
            Files and PIL pictures that are stored lying (EXIF orientation) are turned.
        name: What to call it in a message.
        alpha: Keep the alpha of files.

    Raises:
        InputError: If one is none of these, or its file is unreadable.
    """
    from torch import Tensor

    if isinstance(given, Tensor):
        if given.ndim not in (3, 4) or given.shape[-3] != 3:
            raise InputError(f"{name}: a tensor must be (3,H,W) or (N,3,H,W), not {tuple(given.shape)}")
        return [to_pil(t) for t in (given if given.ndim == 4 else given[None])]
    if not isinstance(given, list | tuple):
        given = [given]
    found = []
    for item in given:
        if isinstance(item, str | Path):
            found.append(load_image(item, mode="RGBA" if alpha else "RGB"))
        elif isinstance(item, Tensor):
            found.extend(as_pictures(item, name))
        elif isinstance(item, Image.Image):
            lying = item.getexif().get(_ORIENTATION) in _UPRIGHT
            found.append(ImageOps.exif_transpose(item) if lying else item)
        else:
            raise InputError(f"{name}: expected a PIL picture, a path or a tensor, not {type(item).__name__}")
    if not found:
        raise InputError(f"{name}: no picture given")
    return found


def list_images(folder: str | Path, *, recursive: bool = False) -> list[Path]:
    """The picture files of a folder, sorted by name; hidden files are left out.

    Raises:
        InputError: If the folder is missing or has no pictures.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    entries = folder.rglob("*") if recursive else folder.iterdir()
    found = sorted(
        p for p in entries if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and p.is_file()
    )
    if not found:
        raise InputError(f"{folder}: no pictures in it (looked for {', '.join(IMAGE_SUFFIXES)})")
    return found


def images_by_stem(folder: str | Path) -> dict[str, Path]:
    """The picture files of a folder by name without suffix, sorted.

    Raises:
        InputError: If the folder is missing or has no pictures, or if two of them differ in their suffix only.
    """
    found: dict[str, Path] = {}
    for path in list_images(folder):
        if path.stem in found:
            raise InputError(f"{path}: {found[path.stem].name} has the same name; keep one of them")
        found[path.stem] = path
    return found


def fit_within(image: Image.Image, side: int) -> Image.Image:
    """Scale so that the longer side is at most ``side``, aspect kept.

    Small pictures grow by a whole factor without smoothing, so that single pixels stay visible.
    """
    longest = max(image.size)
    if longest * 2 <= side:
        factor = side // longest
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    if longest <= side:
        return image
    size = (max(1, round(image.width * side / longest)), max(1, round(image.height * side / longest)))
    return image.resize(size, Image.Resampling.LANCZOS)


def image_grid(
    rows: "Sequence[Sequence[Image.Image | Tensor | None]]",
    *,
    captions: Sequence[str] | Sequence[Sequence[str]] | None = None,
    cell: int | None = None,
    pad: int = 2,
    background: tuple[int, int, int] = WHITE,
) -> Image.Image:
    """Pictures in rows and columns on one canvas.

    Args:
        rows: PIL pictures or tensors as `to_pil` takes, ``None`` for an empty cell; lengths may differ.
        captions: One text a column (printed once, on top), or a row of texts for each row of pictures.
        cell: Side of a cell in pixels; by default the longest side of any picture. Aspects are kept.
        pad: Pixels between cells and around them.
        background: Colour of the canvas, 0..255 each.

    Raises:
        ValueError: If there is no picture at all.
    """
    pictures = [[_as_rgb(p, background) for p in row] for row in rows]
    sides = [max(p.size) for row in pictures for p in row if p is not None]
    if not sides:
        raise ValueError("a grid needs at least one picture")
    cell = cell or max(sides)
    columns = max(len(row) for row in pictures)
    per_row, heading = _caption_rows(captions)
    size = min(14, max(9, cell // 8))
    font = ImageFont.load_default(size)
    line = math.ceil(size * 1.5)
    top = pad + (line if heading else 0)
    step = cell + pad + (line if per_row else 0)
    canvas = Image.new("RGB", (pad + columns * (cell + pad), top + len(pictures) * step), background)
    draw = ImageDraw.Draw(canvas)
    ink = (0, 0, 0) if sum(background) > 382 else WHITE

    def write(text: str, column: int, y: int) -> None:
        while text and draw.textlength(text, font=font) > cell:
            text = text[:-2].rstrip("…") + "…" if len(text) > 2 else ""
        draw.text((pad + column * (cell + pad) + cell / 2, y + line / 2), text, ink, font, anchor="mm")

    for column, text in enumerate(heading[:columns]):
        write(text, column, pad // 2)
    for r, row in enumerate(pictures):
        for column, picture in enumerate(row):
            if picture is not None:
                picture = fit_within(picture, cell)
                x = pad + column * (cell + pad) + (cell - picture.width) // 2
                canvas.paste(picture, (x, top + r * step + (cell - picture.height) // 2))
        for column, text in enumerate(per_row[r][:columns] if r < len(per_row) else ()):
            write(text, column, top + r * step + cell)
    return canvas


def _as_rgb(picture: "Image.Image | Tensor | None", background: tuple[int, int, int]) -> Image.Image | None:
    if picture is None:
        return None
    return flatten_alpha(picture if isinstance(picture, Image.Image) else to_pil(picture), background)


def _caption_rows(
    captions: Sequence[str] | Sequence[Sequence[str]] | None,
) -> tuple[list[list[str]], list[str]]:
    """Split captions into (texts under each row, one heading line)."""
    if not captions:
        return [], []
    if isinstance(captions[0], str):
        return [], [str(c) for c in captions]
    return [[str(c) for c in row] for row in captions], []
