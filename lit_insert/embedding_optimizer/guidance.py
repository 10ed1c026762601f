"""Three-way guidance without the row whose weight is zero."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def needed_rows(unet: nn.Module, guidance_scale: float, image_guidance_scale: float) -> Iterator[None]:
    """Let a UNet skip the unconditional third of a guided batch where it cancels out.

    ε = ε(0,0) + s·(ε(c,z) - ε(0,z)) + s_I·(ε(0,z) - ε(0,0)) does not depend on ε(0,0) at s_I = 1. Within the block
    the UNet then gets the first two thirds of its rows, and its caller the scene's rows in place of the last third.

    Args:
        unet: Called with a batch in diffusers' order (full, scene only, none), as a tuple's first item.
        guidance_scale: s; guidance is on above 1.
        image_guidance_scale: s_I.
    """
    if guidance_scale <= 1 or image_guidance_scale != 1:
        yield
        return

    def shorten(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        sample, *rest = args
        rows = len(sample) // 3 * 2
        states = kwargs["encoder_hidden_states"][:rows]
        return (sample[:rows], *rest), {**kwargs, "encoder_hidden_states": states}

    def fill(module: nn.Module, args: tuple[Any, ...], output: tuple[Tensor]) -> tuple[Tensor]:
        noise = output[0]
        return (torch.cat([noise, noise[len(noise) // 2 :]]),)

    hooks = [unet.register_forward_pre_hook(shorten, with_kwargs=True), unet.register_forward_hook(fill)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
