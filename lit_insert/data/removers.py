"""Taking an object out of its scene: OpenCV's inpainting, or a diffusers inpainting pipeline."""

from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from PIL import Image, ImageFilter

from lit_insert.data.parquet_join import unit_hash
from lit_insert.errors import InputError
from lit_insert.inpainting import continue_surround


class Remover(Protocol):
    """Fills the place of an object with background."""

    name: str

    def __call__(self, scene: Image.Image, mask: Image.Image, key: str) -> Image.Image:
        """The scene without what ``mask`` (mode L, 0 or 255, same size) covers; ``key`` fixes all randomness."""


def dilated(mask: Image.Image, fraction: float) -> np.ndarray:
    """The mask without holes, grown on all sides by ``fraction`` of the shorter side of the scene, bool (H, W).

    Masks are rarely generous: a part of the object that stays would give away where it was.
    """
    outlines, _ = cv2.findContours(np.array(mask), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    solid = cv2.drawContours(np.zeros((mask.height, mask.width), np.uint8), outlines, -1, 255, cv2.FILLED)
    radius = max(1, round(fraction * min(mask.size)))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return cv2.dilate(solid, kernel) >= 128


class OpenCVRemover:
    """Telea's fast-marching inpainting: no weights, a fraction of a second, smears large holes.

    Large scenes are filled at reduced size; see `lit_insert.inpainting.continue_surround`.

    Args:
        dilation: Growth of the mask as a fraction of the shorter side of the scene.
        radius: Neighbourhood in pixels that a filled pixel is made from.
        side: Scenes with a longer side are filled at this size, and only the hole is scaled back.
    """

    def __init__(self, dilation: float = 0.02, radius: float = 5, side: int = 512) -> None:
        self.dilation, self.radius, self.side = dilation, radius, side
        self.name = f"opencv-telea dilation={dilation:g} radius={radius:g} side={side}"

    def __call__(self, scene: Image.Image, mask: Image.Image, key: str) -> Image.Image:
        """The scene without the object; pixels outside the dilated mask are untouched."""
        hole = dilated(mask, self.dilation)
        pixels = np.asarray(scene)
        filled = continue_surround(pixels, hole, radius=self.radius, side=self.side)
        return Image.fromarray(filled)


class DiffusersRemover:
    """A diffusers inpainting pipeline, prompted for background.

    Args:
        model: Folder in diffusers layout or hub id of an inpainting pipeline.
        prompt: What should be there instead.
        negative_prompt: What should not.
        steps: Denoising steps.
        side: The scene's shorter side while inpainting, a multiple of 8.
        dilation: Growth of the mask as a fraction of the shorter side of the scene.
        device: Where to run; a CUDA device if there is one.

    Raises:
        InputError: If there is no such pipeline.
    """

    def __init__(
        self,
        model: str,
        prompt: str = "background",
        negative_prompt: str = "person, animal, object",
        steps: int = 20,
        side: int = 512,
        dilation: float = 0.02,
        device: str | None = None,
    ) -> None:
        from diffusers import AutoPipelineForInpainting

        if Path(model).is_dir() and not (Path(model) / "model_index.json").is_file():
            raise InputError(f"{model}: no model_index.json there; give a diffusers inpainting pipeline")
        try:
            pipeline: Any = AutoPipelineForInpainting.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise InputError(f"{model}: no inpainting pipeline: {str(error).splitlines()[0]}") from error
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.pipeline = pipeline.to(self.device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.prompt, self.negative_prompt, self.steps = prompt, negative_prompt, steps
        self.side, self.dilation = side, dilation
        self.name = f"{model} {prompt!r} not {negative_prompt!r} steps={steps} side={side} dilation={dilation:g}"

    def __call__(self, scene: Image.Image, mask: Image.Image, key: str) -> Image.Image:
        """The scene without the object; only the dilated mask, with a soft edge, is replaced."""
        hole = Image.fromarray(dilated(mask, self.dilation).astype(np.uint8) * 255)
        scale = self.side / min(scene.size)
        size = (max(8, round(scene.width * scale / 8) * 8), max(8, round(scene.height * scale / 8) * 8))
        generator = torch.Generator().manual_seed(int(unit_hash(key) * 2**53))
        with torch.inference_mode():
            result = self.pipeline(
                prompt=self.prompt,
                negative_prompt=self.negative_prompt,
                image=scene.resize(size, Image.Resampling.LANCZOS),
                mask_image=hole.resize(size, Image.Resampling.NEAREST),
                width=size[0],
                height=size[1],
                num_inference_steps=self.steps,
                generator=generator,
            ).images[0]
        soft = hole.filter(ImageFilter.GaussianBlur(max(1.0, 0.004 * min(scene.size))))
        soft = Image.fromarray(np.maximum(np.asarray(soft), np.asarray(mask)))
        return Image.composite(result.resize(scene.size, Image.Resampling.LANCZOS), scene, soft)
