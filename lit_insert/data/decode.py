"""Pictures for training: any failure is a broken sample that names its origin."""

import io
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageOps

from lit_insert.data.loading import BrokenSample
from lit_insert.errors import InputError
from lit_insert.images import MAX_PIXELS, flatten_alpha, load_image


def read_picture(path: Path, mode: Literal["RGB", "L"] = "RGB") -> Image.Image:
    """Load a file.

    Raises:
        BrokenSample: If it is missing, empty, truncated, no picture or a decompression bomb.
    """
    try:
        return load_image(path, mode=mode)
    except InputError as error:
        raise BrokenSample(str(path), str(error).removeprefix(f"{path}: ")) from error


def picture_bytes(value: Any) -> bytes:
    """The encoded picture of a parquet cell, ``{"bytes": …}`` or plain bytes; empty if there is none."""
    data = value.get("bytes") if isinstance(value, dict) else value
    return data or b""


def decode_picture(value: Any, name: str, mode: Literal["RGB", "L"] = "RGB") -> Image.Image:
    """Decode a parquet cell.

    Args:
        value: ``{"bytes": …}`` or bytes.
        name: Origin for messages.
        mode: "RGB" (alpha flattened over white) or "L".

    Raises:
        BrokenSample: If the bytes are missing, truncated, no picture or a decompression bomb.
    """
    data = picture_bytes(value)
    if not data:
        raise BrokenSample(name, "the cell is empty")
    try:
        with Image.open(io.BytesIO(data)) as file:
            if file.width * file.height > MAX_PIXELS:
                raise BrokenSample(name, f"{file.width}x{file.height} pixels is over the limit of {MAX_PIXELS}")
            file.load()
            image = ImageOps.exif_transpose(file)
    except BrokenSample:
        raise
    except Exception as error:  # Pillow's decoders raise nearly every type on broken bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BrokenSample(name, f"not a readable picture ({reason})") from error
    image = flatten_alpha(image) if mode == "RGB" or image.has_transparency_data else image
    return image if image.mode == mode else image.convert(mode)
