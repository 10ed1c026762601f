"""One geometry for picture and mask: letterboxing, and augmentation that keeps the aspect."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from lit_insert.data.mask_source import IGNORE, MaskedPicture, MaskSample
from lit_insert.data.transforms import to_signed
from lit_insert.errors import InputError
from lit_insert.letterbox import letterbox, place

_BILINEAR = InterpolationMode.BILINEAR


@dataclass(frozen=True)
class Augmentation:
    """How training changes a picture; the mask follows all that moves.

    Args:
        zoom: Smallest and largest zoom, drawn log-uniformly; 1 shows the whole picture, 2 a window of half its sides
            anywhere in it, 0.8 all of it with margins.
        flip: Probability of mirroring left and right.
        rotation: Largest rotation to either side, degrees.
        brightness: Largest change, as a part.
        contrast: Largest change, as a part.
        saturation: Largest change, as a part.
        hue: Largest turn of the hue, as a part of the circle, 0 to 0.5.
        grayscale: Probability of losing all colour.
        blur: Probability of a slight blur, by at most a hundredth of the side.
        paste: Probability of pasting another picture's object, changed likewise, on top (Ghiasi et al. 2021).
    """

    zoom: tuple[float, float] = (0.8, 2.0)
    flip: float = 0.5
    rotation: float = 10.0
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    hue: float = 0.03
    grayscale: float = 0.1
    blur: float = 0.1
    paste: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise InputError(f"zoom is {list(self.zoom)}; give two numbers above 0, the smaller one first")
        if not 0 <= self.rotation <= 180:
            raise InputError(f"rotation is {self.rotation}; give 0 to 180 degrees")
        if not 0 <= self.hue <= 0.5:
            raise InputError(f"hue is {self.hue}; give 0 to 0.5")
        for name in ("flip", "brightness", "contrast", "saturation", "grayscale", "blur", "paste"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; give 0 to 1")


class PairedTransform:
    """Tensors of a picture with its mask, on a canvas of fixed size.

    Without a generator the picture is letterboxed: scaled until it fits, aspect kept, and centred; a prediction goes
    back through `lit_insert.letterbox.restore`. With a generator, ``augmentation`` chooses a window of the canvas'
    shape, turns and mirrors it, and changes the colours. Where a canvas shows nothing of the picture it is mid-grey
    (0 in [-1,1]).

    Args:
        size: Canvas, (height, width) in pixels.
        augmentation: What a generator is used for; None letterboxes in any case.
        padding: What the mask says outside the picture: "ignore" (255) or "background" (0).
    """

    def __init__(
        self, size: tuple[int, int], augmentation: Augmentation | None = None, padding: str = "ignore"
    ) -> None:
        if min(size) < 1:
            raise InputError(f"image_size is {list(size)}; give pixels")
        if padding not in ("ignore", "background"):
            raise InputError(f"padding is {padding!r}; give ignore or background")
        self.size, self.augmentation = size, augmentation
        self.outside = float(IGNORE) if padding == "ignore" else 0.0

    def shrink(self, picture: MaskedPicture) -> MaskedPicture:
        """As small as the canvas and the largest zoom allow without loss; always the same for the same picture."""
        height, width = picture.mask.shape
        _, _, tall, wide = letterbox(height, width, self.size)
        if self.augmentation is not None:
            largest = max(1.0, self.augmentation.zoom[1])
            tall, wide = math.ceil(tall * largest), math.ceil(wide * largest)
        if tall >= height or wide >= width:
            return picture
        image = F.resize(picture.image, [tall, wide], _BILINEAR, antialias=True)
        object_, known = F.resize(_planes(picture.mask), [tall, wide], _BILINEAR, antialias=True)
        return MaskedPicture(image, _decide(object_, known).to(torch.uint8), picture.id)

    def __call__(self, picture: MaskedPicture, generator: torch.Generator | None = None) -> MaskSample:
        """Tensors of a picture that `shrink` returned."""
        if picture.mask.shape == self.size and (generator is None or self.augmentation is None):
            return {"image": to_signed(picture.image), "mask": picture.mask[None].float(), "id": picture.id}
        # Picture, object, known, inside: one stack, so that all of it moves together; zero means nothing there.
        inside = torch.ones(1, *picture.mask.shape)
        stack = torch.cat([to_signed(picture.image), _planes(picture.mask), inside])
        if generator is None or self.augmentation is None:
            stack = place(stack, self.size)
            image, object_, known, inside = stack[:3], stack[3], stack[4], stack[5]
        else:
            stack = self._moved(stack, self.augmentation, generator)
            image, object_, known, inside = stack[:3], stack[3], stack[4], stack[5]
            image = _recoloured(image, self.augmentation, generator)
        seen = inside >= 0.5
        mask = torch.where(seen, _decide(object_, known), self.outside)
        return {"image": image.clamp(-1, 1) * seen, "mask": mask[None], "id": picture.id}

    def _moved(self, stack: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
        draw = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        low, high = how.zoom
        zoom = low * (high / low) ** draw[0]
        angle = how.rotation * (2 * draw[1] - 1)
        (tall, wide), (height, width) = self.size, stack.shape[1:]
        scale = min(tall / height, wide / width) * zoom  # canvas pixels for one of the picture
        middle_y = draw[2] * (height - tall / scale) + tall / scale / 2
        middle_x = draw[3] * (width - wide / scale) + wide / scale / 2
        # A canvas that holds the turned one: crop that, turn it, keep the middle.
        sin, cos = abs(math.sin(math.radians(angle))), abs(math.cos(math.radians(angle)))
        larger = [math.ceil(tall * cos + wide * sin), math.ceil(tall * sin + wide * cos)]
        rows, columns = max(1, round(larger[0] / scale)), max(1, round(larger[1] / scale))
        top, left = round(middle_y - rows / 2), round(middle_x - columns / 2)
        stack = F.resized_crop(stack, top, left, rows, columns, larger, _BILINEAR, antialias=True)
        if angle:
            stack = F.center_crop(F.rotate(stack, angle, _BILINEAR), list(self.size))
        return F.horizontal_flip(stack) if draw[4] < how.flip else stack


def paste(sample: MaskSample, other: MaskSample) -> MaskSample:
    """The first sample with the object of the other on top; what the other ignores stays as it was.

    The edge is blended over a pixel, as it is in photos, so that it gives nothing away.
    """
    cover = (other["mask"] == 1).float()
    soft = F.gaussian_blur(cover, [3, 3], [0.6, 0.6])
    image = torch.lerp(sample["image"], other["image"], soft)
    return {"image": image, "mask": torch.where(cover > 0, 1.0, sample["mask"]), "id": sample["id"]}


def _planes(mask: Tensor) -> Tensor:
    """(H,W) with 0, 1, 255 to float32 (2,H,W): object, known."""
    return torch.stack([mask == 1, mask != IGNORE]).float()


def _decide(object_: Tensor, known: Tensor) -> Tensor:
    """Back from averaged planes to float32 (H,W) with 0, 1, 255: the larger part decides."""
    return torch.where(known < 0.5, float(IGNORE), (object_ >= 0.5 * known).float())


def _recoloured(image: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Change the colours of float32 (3,H,W) in [-1,1]."""
    draw = torch.rand(7, generator=generator).tolist()
    image = ((image + 1) / 2).clamp(0, 1)
    if how.brightness:
        image = F.adjust_brightness(image, 1 + how.brightness * (2 * draw[0] - 1))
    if how.contrast:
        image = F.adjust_contrast(image, 1 + how.contrast * (2 * draw[1] - 1))
    if draw[4] < how.grayscale:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    else:
        if how.saturation:
            image = F.adjust_saturation(image, 1 + how.saturation * (2 * draw[2] - 1))
        if how.hue:
            image = F.adjust_hue(image, how.hue * (2 * draw[3] - 1))
    if draw[5] < how.blur:
        sigma = max(0.1, min(image.shape[-2:]) * 0.01 * draw[6])
        image = F.gaussian_blur(image, 2 * math.ceil(2 * sigma) + 1, sigma)
    return image * 2 - 1
