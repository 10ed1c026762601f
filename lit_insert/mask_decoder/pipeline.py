"""Inference: a photo in, the mask of its people (or whatever the model was trained on) out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from lit_insert.artifacts.folder import replace_model_folder
from lit_insert.artifacts.resolve import resolve_model
from lit_insert.errors import InputError
from lit_insert.images import Picture, as_pictures, flatten_alpha
from lit_insert.letterbox import letterbox, place, restore
from lit_insert.mask_decoder.components import Components, keep_components
from lit_insert.mask_decoder.network import HieraFPN
from lit_insert.mask_decoder.sources import load_network


@dataclass
class MaskOutput(BaseOutput):
    """What `MaskPipeline` returns, one entry a photo.

    Attributes:
        masks: PIL pictures "L" of the photo's own size, 255 inside and 0 outside.
        probabilities: float32 (H,W) arrays in [0,1] of the same size, before threshold and components.
        presence: How likely there is anything to mask at all, in [0,1].
    """

    masks: list[Image.Image]
    probabilities: list[np.ndarray]
    presence: list[float]

    @property
    def mask(self) -> Image.Image:
        """The first mask."""
        return self.masks[0]


class MaskPipeline:
    """Photos of any size to masks of their own size.

    A photo is letterboxed to the size that the network was trained at, as in validation; its logits, not the mask,
    are scaled back, so outlines stay smooth.

    Example::

        MaskPipeline.from_pretrained("runs/people")("photo.jpg").mask.save("mask.png")

    Args:
        network: A trained network.
    """

    def __init__(self, network: HieraFPN) -> None:
        self.network = network.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(cls, source: str | Path = "pocket", *, dtype: torch.dtype = torch.float32, **hub: Any) -> Self:
        """Load a model.

        Args:
            source: "pocket", a run folder, a training checkpoint (.ckpt), an exported folder, or a hub id.
            dtype: Of the weights and the computation.
            **hub: For a hub id: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.

        Raises:
            InputError: If the model is not found, is no mask decoder, or is truncated or incomplete.
        """
        return cls(load_network(resolve_model(source, default_pocket="mask"), dtype, **hub))

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the exported folder (config.json, safetensors) atomically.

        Raises:
            InputError: If ``save_directory`` holds something that is no exported model.
        """
        with replace_model_folder(save_directory) as temporary:
            self.network.save_pretrained(temporary)

    def to(self, device: str | torch.device) -> Self:
        """Move to a device; returns the pipeline."""
        self.network.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.network.dtype

    @torch.no_grad()
    def __call__(
        self,
        image: Picture | Sequence[Picture],
        *,
        threshold: float = 0.5,
        flip: bool = False,
        components: Components = "all",
        min_area: float = 0.0,
        min_presence: float = 0.0,
        batch_size: int = 8,
    ) -> MaskOutput:
        """Mask each photo.

        Args:
            image: Photo or photos: PIL, a path, or a tensor (3,H,W) or (N,3,H,W) in [-1,1]. Alpha is flattened
                over white; photos that are stored lying (EXIF) are turned, and so are their masks.
            threshold: A pixel is inside where its probability is above it; from 0 up to, not including, 1.
            flip: Also look at the mirrored photo, and average the logits of both: twice the time.
            components: Keep "all" connected parts, or the "largest" only.
            min_area: Drop connected parts smaller than this: below 1 a fraction of the photo, from 1 on pixels.
            min_presence: Photos whose presence score is below it get an empty mask.
            batch_size: Photos that go through the network at once; the result does not depend on it.

        Raises:
            InputError: If a photo is unreadable or a setting is out of range.
        """
        for name, value in (("threshold", threshold), ("min_presence", min_presence)):
            if not 0 <= value <= 1 or (name == "threshold" and value == 1):
                raise InputError(f"{name} is {value:g}; give a probability from 0 to below 1")
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; give 1 or more")
        keep_components(np.zeros((1, 1), bool), components, min_area)  # their mistakes before the work
        photos = as_pictures(image, "image")
        output = MaskOutput(masks=[], probabilities=[], presence=[])
        for start in range(0, len(photos), batch_size):
            chunk = photos[start : start + batch_size]
            logits, presence = self.predict(torch.stack([self.canvas(photo) for photo in chunk]), flip=flip)
            output.presence += presence.sigmoid().tolist()
            for photo, own in zip(chunk, logits, strict=True):
                probability = restore(own, photo.height, photo.width)[0].sigmoid().cpu().numpy()
                inside = keep_components(probability > threshold, components, min_area)
                if output.presence[len(output.masks)] < min_presence:
                    inside = np.zeros_like(inside)
                output.masks.append(Image.fromarray(inside.astype(np.uint8) * 255))
                output.probabilities.append(probability)
        return output

    def canvas(self, photo: Image.Image) -> Tensor:
        """A photo as the network sees it: letterboxed, float32 (3,H,W) in [-1,1], margins 0."""
        pixels = F.pil_to_tensor(flatten_alpha(photo))
        size = self.network.img_size
        _, _, tall, wide = letterbox(photo.height, photo.width, size)
        if tall < photo.height and wide < photo.width:  # in bytes, as training data are
            pixels = F.resize(pixels, [tall, wide], InterpolationMode.BILINEAR, antialias=True)
        return place(pixels.float() / 127.5 - 1, size)

    @torch.no_grad()
    def predict(self, image: Tensor, *, flip: bool = False) -> tuple[Tensor, Tensor]:
        """The network's logits on a batch of canvases.

        Args:
            image: (B,3,H,W) in [-1,1].
            flip: Average with those of the mirrored batch.

        Returns:
            Mask logits (B,1,H,W) and presence logits (B,), float32.

        Raises:
            InputError: If they are not finite.
        """
        found = self._forward(image)
        if flip:
            mirrored = self._forward(image.flip(-1))
            found = (found[0] + mirrored[0].flip(-1)) / 2, (found[1] + mirrored[1]) / 2
        if not found[0].isfinite().all():
            raise InputError(f"the network's numbers overflowed in {self.dtype}; use float32 or bfloat16")
        return found

    def _forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        pixel_values = self.network.normalize(image.to(self.device)).to(self.dtype)
        output = self.network(pixel_values)
        return output.logits.float(), output.presence_logits.float()
