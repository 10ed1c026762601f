"""Self-supervised pre-training of the mask decoder's encoder, on pictures without masks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lit_insert.errors import InputError
from lit_insert.mask_decoder.encoder import is_position, load_encoder
from lit_insert.mask_decoder.pretraining import (
    HieraMAE,
    patch_statistics,
    patchify,
    reconstruction_loss,
    unpatchify,
)
from lit_insert.training.base import BaseModule
from lit_insert.training.parameters import trainable


class MaskedAutoencoderModule(BaseModule):
    """Learn what pictures look like by guessing their hidden parts; masks are not needed and not read.

    ``export`` writes a folder that `MaskDecoderModule` takes as ``encoder_weights``.

    Args:
        network: `HieraMAE` arguments.
        encoder_weights: Where the encoder starts; see `MaskDecoderModule`. Null starts at random.
        mask_ratio: Part of each picture that is hidden.
        optimizer: Makes the optimiser from parameter groups.
        lr_scheduler: Makes the scheduler, stepped every optimiser step.
        noise_seed: Seed of what is hidden.

    Raises:
        InputError: If the network's arguments or the ratio do not fit.
    """

    def __init__(
        self,
        network: dict[str, Any],
        encoder_weights: str | None = None,
        mask_ratio: float = 0.6,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        noise_seed: int = 0,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, noise_seed)
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        if not 0 < mask_ratio < 1:
            raise InputError(f"mask_ratio is {mask_ratio}; give more than 0 and less than 1")
        self.mask_ratio = mask_ratio
        try:
            self.network = HieraMAE(**network)
        except TypeError as error:
            raise InputError(f"network: {str(error).split('__init__() ')[-1]}") from error
        if encoder_weights is not None:
            load_encoder(self.network.backbone, encoder_weights, self.network.config["encoder"])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All at one rate; biases, norms, position embeddings and the mask token without weight decay."""
        inputs = {id(self.network.mask_token), id(self.network.positions)}
        inputs |= {id(p) for n, p in self.network.backbone.named_parameters() if is_position(n)}
        groups: tuple[list[Tensor], list[Tensor]] = ([], [])
        for p in trainable(self).values():
            groups[p.ndim < 2 or id(p) in inputs].append(p)
        return [
            {"params": groups[0], "name": "all"},
            {"params": groups[1], "name": "all/no_decay", "weight_decay": 0.0},
        ]

    def compute_loss(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """See :func:`~lit_insert.mask_decoder.pretraining.reconstruction_loss`."""
        pixel_values = self.network.normalize(batch["image"])
        kept = self.network.draw_kept(len(pixel_values), self.mask_ratio, generator)
        return {"loss": reconstruction_loss(self.network(pixel_values, kept), pixel_values)}

    @torch.no_grad()
    def sample_grid(self, batch: Mapping[str, Any], generator: torch.Generator) -> list[list[Any]]:
        """Rows of the picture, what the encoder sees of it, and the picture with the hidden parts drawn.

        What is drawn has the true mean and contrast of each patch, which the network does not predict.
        """
        image = batch["image"]
        kept = self.network.draw_kept(len(image), self.mask_ratio, generator)
        found = self.network(self.network.normalize(image), kept)
        patches = patchify(image.float())
        mean, deviation = patch_statistics(patches)
        drawn = (found.prediction.float() * deviation + mean).clamp(-1, 1)
        hidden = found.hidden[..., None]
        columns = [torch.where(hidden, fill, patches) for fill in (torch.zeros_like(patches), drawn)]
        size = image.shape[-2:]
        pictures = [image, *(unpatchify(column, size) for column in columns)]
        return [list(row) for row in zip(*pictures, strict=True)]

    def export(self, folder: str | Path) -> None:
        """Write encoder and decoder as a folder of config and safetensors."""
        self.network.save_pretrained(folder)
