"""Pictures of the class, drawn once by the base itself, so that learning an instance does not change the class."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from lit_insert.diffusion.noise import step_generator
from lit_insert.diffusion.text import draw_prompts
from lit_insert.errors import InputError
from lit_insert.images import IMAGE_SUFFIXES, save_image, to_pil

log = logging.getLogger(__name__)


def draw_class_pictures(
    parts: Any,
    prompts: Sequence[str],
    count: int,
    folder: Path,
    size: int,
    *,
    guidance_scale: float = 7.5,
    batch_size: int = 4,
) -> int:
    """Fill a folder up to ``count`` pictures of prompts in turn; what is there stays, no file is written in half.

    Args:
        parts: The base, as `lit_insert.mifo.sources.TextParts`.
        prompts: What to draw; picture i shows prompt i modulo their number.
        count: Pictures wanted.
        folder: Where they go, as ``0000.png`` and so on.
        size: Side in pixels.
        guidance_scale: Weight of the prompt.
        batch_size: Pictures drawn at a time.

    Returns:
        How many were drawn.

    Raises:
        InputError: If ``count`` is not positive.
    """
    if count < 1:
        raise InputError(f"class_images is {count}; give 1 or more, or no class_prompt")
    have = sum(p.suffix.lower() in IMAGE_SUFFIXES for p in folder.iterdir()) if folder.is_dir() else 0
    missing = max(0, count - have)
    names = (n for i in range(have + missing + count) if not (n := folder / f"{i:04d}.png").exists())
    if missing:
        log.info("drawing %d class pictures of %s into %s", missing, ", ".join(prompts), folder)
    device = next(parts.unet.parameters()).device
    for start in track(range(0, missing, batch_size), "class pictures", disable=not missing):
        number = min(batch_size, missing - start)
        wanted = [prompts[(have + start + i) % len(prompts)] for i in range(number)]
        generator = step_generator(0, 0, have + start, device)
        with torch.no_grad():
            pictures = draw_prompts(
                parts, wanted, generator, num_inference_steps=30, guidance_scale=guidance_scale, size=size
            )
        for picture in pictures:
            save_image(to_pil(picture), next(names))
    return missing
