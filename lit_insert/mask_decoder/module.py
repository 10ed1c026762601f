"""Training of the mask decoder on pictures and masks."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from timm.models import group_parameters
from torch import Tensor

from lit_insert.errors import InputError
from lit_insert.mask_decoder.encoder import is_position
from lit_insert.mask_decoder.network import HieraFPN, MaskDecoderOutput, build_network
from lit_insert.mask_decoder.objective import LossWeights, mask_loss
from lit_insert.metrics.mask import IGNORE, mask_metrics
from lit_insert.training.base import BaseModule
from lit_insert.training.parameters import SCALE, frozen, trainable


class MaskDecoderModule(BaseModule):
    """Learn to segment one class of things.

    Args:
        network: `HieraFPN` arguments.
        encoder_weights: Where the encoder starts: a file in timm's layout, a folder exported by this module or by
            `MaskedAutoencoderModule`, or a timm tag such as "mae" (downloaded). Null starts at random.
        freeze_encoder: Train the decoder only; refused where the encoder's weights are random.
        encoder_lr_scale: The encoder's learning rate, in multiples of the optimiser's.
        layer_decay: Each block of the encoder learns at this multiple of the next one's rate; 1 for none.
        loss: Weights of the terms of the loss.
        gradient_checkpointing: Trade the encoder's time for memory.
        optimizer: Makes the optimiser from parameter groups.
        lr_scheduler: Makes the scheduler, stepped every optimiser step.
        noise_seed: Seed of dropped paths.

    Raises:
        InputError: If the network's arguments, the weights or the rates do not fit.
    """

    def __init__(
        self,
        network: dict[str, Any],
        encoder_weights: str | None = None,
        freeze_encoder: bool = False,
        encoder_lr_scale: float = 1.0,
        layer_decay: float = 1.0,
        loss: LossWeights = LossWeights(),  # noqa: B008
        gradient_checkpointing: bool = False,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        noise_seed: int = 0,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, noise_seed)
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.loss_weights = LossWeights(**loss) if isinstance(loss, Mapping) else loss
        self.hparams["loss"] = dataclasses.asdict(self.loss_weights)
        for name, value in (("encoder_lr_scale", encoder_lr_scale), ("layer_decay", layer_decay)):
            if not 0 < value <= 1:
                raise InputError(f"{name} is {value}; give more than 0 and at most 1")
        self.encoder_lr_scale, self.layer_decay = encoder_lr_scale, layer_decay
        self.network: HieraFPN = build_network(network, encoder_weights)
        if freeze_encoder:
            self.network.check_pretrained()
            frozen(self.network.backbone)
        if self.network.presence_head is not None and not self.loss_weights.presence:
            self.network.presence_head.requires_grad_(False)
        self.network.backbone.set_grad_checkpointing(gradient_checkpointing)
        self.metrics = mask_metrics()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Decoder at the learning rate; the encoder's layers at its multiple, falling towards the picture.

        Biases, norms and position embeddings are kept from weight decay.
        """
        backbone = self.network.backbone
        layers = group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True)
        last = max(layers.values())
        groups: dict[str, dict[str, Any]] = {}
        for name, p in trainable(self.network).items():
            own = name.removeprefix("backbone.")
            label, scale = "decoder", 1.0
            if own != name:
                distance = last - layers[own]
                scale = self.encoder_lr_scale * self.layer_decay**distance
                label = "encoder" if self.layer_decay == 1 else f"encoder/{layers[own]}"
            kept = p.ndim < 2 or (own != name and is_position(own))
            label += "/no_decay" if kept else ""
            empty: dict[str, Any] = {"params": [], "name": label, SCALE: scale}
            groups.setdefault(label, {**empty, "weight_decay": 0.0} if kept else empty)["params"].append(p)
        return list(groups.values())

    # Objective

    def segment(self, batch: Mapping[str, Any]) -> MaskDecoderOutput:
        """Logits of a batch's pictures."""
        output: MaskDecoderOutput = self.network(self.network.normalize(batch["image"]))
        return output

    def compute_loss(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """See :func:`~lit_insert.mask_decoder.objective.mask_loss`; notes the metrics where it is not training."""
        output = self.segment(batch)
        if not self.training:
            self.metrics.update(
                probability=output.logits.float().sigmoid(),
                mask=batch["mask"],
                presence=output.presence_logits.float().sigmoid(),
            )
        return mask_loss(output.logits, output.presence_logits, batch["mask"], self.loss_weights)

    def on_validation_epoch_end(self) -> None:
        """Log overlap, boundary F and presence accuracy."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """The same for the test split."""
        self._log_metrics("test")

    def _log_metrics(self, split: str) -> None:
        self.log_dict({f"{split}/{name}": value for name, value in self.metrics.compute().items()}, prog_bar=True)
        self.metrics.reset()

    # Pictures

    @torch.no_grad()
    def sample_grid(self, batch: Mapping[str, Any], generator: torch.Generator) -> list[list[Any]]:
        """Rows of picture, true mask, predicted probability, and errors: false alarms red, misses blue."""
        probability = self.segment(batch).logits.float().sigmoid()
        columns = [batch["image"], None, _grey(probability), None]
        if "mask" in batch:
            mask = batch["mask"]
            counts = mask != IGNORE
            columns[1] = _grey(torch.where(counts, mask, 0.5))
            columns[3] = error_map(batch["image"], probability > 0.5, mask)
        return [list(row) for row in zip(*[c for c in columns if c is not None], strict=True)]

    @torch.no_grad()
    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Masks of a batch: "id", and "image" as (3,H,W) tensors in [-1,1], white where the class is."""
        found = self.segment(batch).logits > 0
        return {"id": list(batch["id"]), "image": list(_grey(found.float()))}

    # Artefact

    def export(self, folder: str | Path) -> None:
        """Write the network as a folder of config and safetensors."""
        if self.network.config["encoder_origin"] is None:
            self.network.register_to_config(encoder_origin="trained with this network")
        self.network.save_pretrained(folder)


def _grey(mask: Tensor) -> Tensor:
    """(B,1,H,W) in [0,1] as pictures (B,3,H,W) in [-1,1]."""
    return (mask * 2 - 1).expand(-1, 3, -1, -1)


def error_map(image: Tensor, found: Tensor, mask: Tensor) -> Tensor:
    """Pictures (B,3,H,W) in [-1,1], dimmed, with hits in white, false alarms in red and misses in blue.

    Args:
        image: (B,3,H,W) in [-1,1].
        found: Predicted masks, bool (B,1,H,W).
        mask: True ones, (B,1,H,W) in {0,1}, 255 where it does not matter.
    """
    grey = (image.mean(1, keepdim=True) * 0.4 - 0.4).expand_as(image)
    truth, counts = mask == 1, mask != IGNORE
    for where, colour in (
        (found & truth, (1.0, 1.0, 1.0)),
        (found & ~truth & counts, (1.0, -0.6, -0.6)),
        (~found & truth, (-0.6, -0.2, 1.0)),
    ):
        grey = torch.where(where, image.new_tensor(colour)[:, None, None].lerp(grey, 0.3), grey)
    return grey
