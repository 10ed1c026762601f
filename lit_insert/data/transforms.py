"""From a stored triplet to tensors: one crop and flip for scene and target, more for the reference."""

import math
from pathlib import Path
from typing import Literal

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F
from transformers import CLIPImageProcessor

from lit_insert.data.triplets import Triplet, TripletSample
from lit_insert.errors import InputError

_BICUBIC, _BILINEAR = InterpolationMode.BICUBIC, InterpolationMode.BILINEAR
Box = tuple[int, int, int, int]


def clip_processor(size: int = 224, source: str | Path | None = None) -> CLIPImageProcessor:
    """The one preprocessing of reference pictures, for training and inference alike.

    Args:
        size: Side of the square input in pixels, where ``source`` does not say.
        source: A folder with ``preprocessor_config.json`` (or with a ``feature_extractor`` subfolder, as
            diffusers writes it), or a hub id.

    Raises:
        InputError: If ``source`` holds no image processor.
    """
    if source is None:
        return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    folder = Path(source)
    if (folder / "feature_extractor").is_dir():
        folder = folder / "feature_extractor"
    if folder.is_dir() and not (folder / "preprocessor_config.json").is_file():
        raise InputError(f"{source}: no preprocessor_config.json there or in feature_extractor/")
    try:
        return CLIPImageProcessor.from_pretrained(str(folder) if folder.is_dir() else str(source))
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{source}: no CLIP image processor: {reason}") from error


def square_crop(width: int, height: int, box: Box, scale: float, x: float, y: float) -> Box:
    """A square window that keeps the object in view.

    Args:
        width: Image width in pixels.
        height: Image height in pixels.
        box: Half-open box of the object; the window contains it where it fits, else is centred on it.
        scale: Area of the window relative to the largest square, in (0, 1].
        x: Where the window lies among its possible places, 0 leftmost to 1 rightmost.
        y: The same, 0 topmost to 1 lowest.

    Returns:
        Half-open (x0, y0, x1, y1) within the image.
    """
    side = max(1, round(math.sqrt(scale) * min(width, height)))

    def place(length: int, low: int, high: int, at: float) -> int:
        first, last = max(0, high - side), min(low, length - side)
        if first > last:
            return min(max(0, (low + high - side) // 2), length - side)
        return first + min(int(at * (last - first + 1)), last - first)

    left, top = place(width, box[0], box[2], x), place(height, box[1], box[3], y)
    return left, top, left + side, top + side


def _crop_to(image: Tensor, box: Box, size: int, interpolation: InterpolationMode) -> Tensor:
    x0, y0, x1, y1 = box
    return F.resized_crop(image, y0, x0, y1 - y0, x1 - x0, [size, size], interpolation, antialias=True)


def to_signed(image: Tensor) -> Tensor:
    """Bytes 0..255 to float32 in [-1, 1]."""
    return image.float() / 127.5 - 1


def change_reference(image: Tensor, generator: torch.Generator) -> Tensor:
    """Change the picture of the object so that pasting it back does not reproduce the target.

    Flip (p 0.5), rotation by at most 20°, crop to 70-100 % of the area, colour jitter, and for a third
    each: blur, loss of resolution. Empty corners take the median colour of the border.

    Args:
        image: uint8 (3,H,W).
        generator: Source of all randomness.

    Returns:
        uint8 (3,H',W').
    """
    draw = torch.rand(13, generator=generator).tolist()
    if draw[0] < 0.5:
        image = F.horizontal_flip(image)
    border = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], 1)
    fill = border.float().median(1).values.round()[:, None, None]
    # Rotated around zero: with `fill=` the edge pixels would be darkened before they are blended.
    turned = F.rotate(image.float() - fill, 40 * draw[1] - 20, _BILINEAR) + fill
    image = turned.round().clamp(0, 255).to(torch.uint8)
    height, width = image.shape[-2:]
    area = 0.7 + 0.3 * draw[2]
    tall, wide = max(1, round(height * area**0.5)), max(1, round(width * area**0.5))
    image = F.crop(image, int(draw[3] * (height - tall + 1)), int(draw[4] * (width - wide + 1)), tall, wide)
    image = F.adjust_brightness(image, 0.8 + 0.4 * draw[5])
    image = F.adjust_contrast(image, 0.8 + 0.4 * draw[6])
    image = F.adjust_saturation(image, 0.8 + 0.4 * draw[7])
    image = F.adjust_hue(image, 0.06 * draw[8] - 0.03)
    side = min(tall, wide)
    if draw[9] < 1 / 3:
        # Pillow's, because a convolution would keep compiled code for every size that comes by.
        blur = ImageFilter.GaussianBlur(side / 224 * (0.3 + 1.7 * draw[10]))
        image = F.pil_to_tensor(F.to_pil_image(image).filter(blur))
    if draw[11] < 1 / 3:
        factor = 0.35 + 0.65 * draw[12]
        small = [max(8, round(tall * factor)), max(8, round(wide * factor))]
        image = F.resize(F.resize(image, small, _BILINEAR), [tall, wide], _BICUBIC)
    return image


class TripletTransform:
    """Tensors of one triplet; the same generator gives the same tensors.

    Scene, target and mask share one square window (90-100 % of the largest, containing the object where it
    fits) and one flip; nothing is squashed. Without a generator the window is the largest, around the object,
    and nothing else changes: that is how evaluation and inference see the data.

    Args:
        size: Side of scene, target and mask in pixels.
        processor: CLIP preprocessing of the reference.
        augment: Crop and flip scene and target when a generator is given; "flip" only flips.
        augment_reference: Change the reference when a generator is given.
    """

    def __init__(
        self,
        size: int,
        processor: CLIPImageProcessor,
        augment: bool | Literal["flip"] = True,
        augment_reference: bool = True,
    ) -> None:
        self.size, self.processor = size, processor
        self.augment, self.augment_reference = augment, augment_reference
        crop = processor.crop_size
        self._reference_side = 2 * int(crop["height"] if isinstance(crop, dict) else crop.height)

    def reference(self, image: Image.Image, generator: torch.Generator | None = None) -> Tensor:
        """The object picture as CLIP gets it, float32 (3,S,S)."""
        pixels = F.pil_to_tensor(image.convert("RGB"))
        if generator is not None and self.augment_reference:
            # Bounded work per sample: more than twice the final size is thrown away below anyway.
            if min(pixels.shape[-2:]) > self._reference_side:
                pixels = F.resize(pixels, [self._reference_side], _BICUBIC)
            pixels = change_reference(pixels, generator)
        return self.processor(pixels, return_tensors="pt").pixel_values[0]

    def __call__(self, triplet: Triplet, generator: torch.Generator | None = None, flip: bool = False) -> TripletSample:
        """Tensors of ``triplet``, augmented if ``generator`` is given, else only flipped if ``flip``."""
        target = F.pil_to_tensor(triplet.target)
        height, width = target.shape[-2:]
        source = F.pil_to_tensor(triplet.source)
        if source.shape != target.shape:
            source = F.resize(source, [height, width], _BICUBIC)
        mask = triplet.mask
        if mask.size != (width, height):
            mask = mask.resize((width, height), Image.Resampling.BILINEAR)
        present = F.pil_to_tensor(mask) >= 128
        box = mask.point(lambda v: 255 * (v >= 128)).getbbox() or (0, 0, width, height)

        scale, x, y = 1.0, 0.5, 0.5
        if generator is not None and self.augment:
            draw = torch.rand(4, generator=generator).tolist()
            flip = draw[3] < 0.5
            if self.augment is True:
                scale, x, y = 0.9 + 0.1 * draw[0], draw[1], draw[2]
        window = square_crop(width, height, box, scale, x, y)
        pair = _crop_to(torch.stack([source, target]), window, self.size, _BICUBIC)
        seen = _crop_to(present.float(), window, self.size, _BILINEAR) >= 0.5
        if flip:
            pair, seen = F.horizontal_flip(pair), F.horizontal_flip(seen)
        source, target = to_signed(pair)
        return {
            "source": source,
            "target": target,
            "object": self.reference(triplet.object, generator),
            "mask": seen.float(),
            "instruction": triplet.instruction,
            "id": triplet.id,
        }
