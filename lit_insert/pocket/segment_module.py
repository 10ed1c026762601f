"""The LightningModule that trains the pocket segmenter: CLIPSeg from nothing, on scenes with phrases."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegProcessor, ViTImageProcessor

from lit_insert.data import world
from lit_insert.data.phrase_scenes import ANY, named
from lit_insert.pocket.words import word_tokenizer
from lit_insert.training.base import BaseModule

_KINDS = (len(world.SHAPES), len(world.COLORS), len(world.TEXTURES))


class SegmentModule(BaseModule):
    """CLIPSeg whose two towers learn together with its decoder.

    From scratch the decoder soon finds "all things", and then has no reason to listen to the phrase while the towers
    tell it nothing. So both have to name what they see: each patch of the picture its thing's shape, colour and
    texture, and each phrase the same three; at first that is all they do, for it costs less than half a whole step.
    The heads for that are no part of the model. Patches that lie close or look alike attend to each other from the
    start, after Trockman & Kolter 2023 (arXiv 2305.09828).

    Args:
        width: Width of the vision tower.
        depth: Its layers.
        patch_size: Side of a patch in pixels.
        image_size: Side of the pictures in pixels.
        text_width: Width of the text tower.
        text_depth: Its layers.
        reduce_dim: Width of the decoder.
        extract_layers: Layers of the vision tower that the decoder reads; the last is where the phrase comes in.
        naming_weight: Weight of the naming losses.
        naming_steps: Steps at the start in which nothing but naming is learnt.
        choice_weight: Weight of the loss that asks of each thing whether the phrase names it.
        max_length: Longest phrase in tokens.
        optimizer: Makes the optimiser from parameter groups.
        lr_scheduler: Makes the scheduler, stepped every optimiser step.
        noise_seed: Seed of the run's random numbers.
    """

    def __init__(
        self,
        width: int = 128,
        depth: int = 4,
        patch_size: int = 8,
        image_size: int = 64,
        text_width: int = 64,
        text_depth: int = 1,
        reduce_dim: int = 64,
        extract_layers: Sequence[int] = (0, 2, 3),
        naming_weight: float = 0.5,
        naming_steps: int = 450,
        choice_weight: float = 1.0,
        max_length: int = 32,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        noise_seed: int = 0,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, noise_seed)
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.naming_weight, self.naming_steps, self.choice_weight = naming_weight, naming_steps, choice_weight
        self.patch_size, self.image_size = patch_size, image_size
        self.tokenizer: Any = word_tokenizer(max_length=max_length)
        heads = 4
        config = CLIPSegConfig(
            text_config={
                "hidden_size": text_width,
                "intermediate_size": 2 * text_width,
                "num_hidden_layers": text_depth,
                "num_attention_heads": heads,
                "max_position_embeddings": max_length,
                "vocab_size": len(self.tokenizer),
                "bos_token_id": self.tokenizer.bos_token_id,
                "eos_token_id": self.tokenizer.eos_token_id,
                "pad_token_id": self.tokenizer.pad_token_id,
            },
            vision_config={
                "hidden_size": width,
                "intermediate_size": 2 * width,
                "num_hidden_layers": depth,
                "num_attention_heads": heads,
                "image_size": image_size,
                "patch_size": patch_size,
            },
            projection_dim=text_width,
            extract_layers=list(extract_layers),
            reduce_dim=reduce_dim,
            decoder_num_attention_heads=heads,
            decoder_intermediate_size=2 * reduce_dim,
        )
        self.model: Any = CLIPSegForImageSegmentation(config)
        self._start_well()
        self.name_patch = nn.Linear(width, sum(_KINDS) + 1)
        self.name_phrase = nn.Linear(text_width, sum(_KINDS) + len(_KINDS))

    def _start_well(self, nearness: float = 1.2) -> None:
        """Positions by which neighbours are alike, attention to what is alike, and maps that begin at "nothing"."""
        vision = self.model.clip.vision_model
        embeddings = vision.embeddings
        width, side = embeddings.embed_dim, self.image_size // self.patch_size
        axis = torch.arange(side, dtype=torch.float64)
        place = torch.cartesian_prod(axis, axis)
        kernel = torch.exp(-torch.cdist(place, place).square() / (2 * nearness**2))
        values, vectors = torch.linalg.eigh(kernel)
        count = min(width, len(values))  # the largest are last
        table = vectors[:, -count:] * values[-count:].clamp(min=0).sqrt()
        turn = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0)).double())[0]
        with torch.no_grad():
            nn.init.normal_(embeddings.patch_embedding.weight, std=(3 * self.patch_size**2) ** -0.5)
            embeddings.position_embedding.weight[1:] = (table @ turn[:count]).float() * 0.6 * width**0.5
            for layer in vision.encoder.layers:
                for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                    projection.weight.mul_(0.3).add_(torch.eye(width))
            # transformers draws the decoder's linear weights with deviation 1, which steps of 1e-3 hardly ever move.
            for layer in self.model.decoder.modules():
                if isinstance(layer, nn.Linear | nn.ConvTranspose2d):
                    layer.reset_parameters()
            self.model.decoder.transposed_convolution.bias.fill_(-2.0)

    def encode(self, image: Tensor) -> list[Tensor]:
        """Activations (N,1+patches,width), a layer each that the decoder reads, of pictures (N,3,S,S) in [-1,1]."""
        states = self.model.clip.get_image_features(image, output_hidden_states=True).hidden_states
        return [states[i + 1] for i in self.model.extract_layers]

    def embed(self, phrases: Sequence[str]) -> Tensor:
        """Conditional embeddings (N·P, projection_dim) of N pictures' phrases, P each with ``;`` between."""
        single = [phrase for own in phrases for phrase in own.split(";")]
        tokens = self.tokenizer(single, padding=True, return_tensors="pt").to(self.device)
        found: Tensor = self.model.clip.get_text_features(
            tokens.input_ids, attention_mask=tokens.attention_mask
        ).pooler_output
        return found

    def decode(self, activations: Sequence[Tensor], condition: Tensor, phrases: int) -> Tensor:
        """Logits (N,P,S,S) of N pictures with P phrases each."""
        repeated = [a.repeat_interleave(phrases, 0) for a in activations]
        logits: Tensor = self.model.decoder(repeated, condition).logits.float()
        return logits.reshape(-1, phrases, *logits.shape[-2:])

    def compute_loss(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Cross-entropy and overlap of the maps, and the naming losses; beside them how well it does."""
        phrases = batch["masks"].shape[1]
        activations = self.encode(batch["image"])
        condition = self.embed(batch["phrases"])
        naming, right = self._naming(batch, activations[-1], condition)
        if self.training and self.global_step < self.naming_steps:
            return {"loss": naming, "naming": naming.detach(), **right}
        logits = self.decode(activations, condition, phrases)
        masks = batch["masks"]
        bce = F.binary_cross_entropy_with_logits(logits, masks)
        present = masks.flatten(2).amax(-1) > 0
        inside = logits.sigmoid()
        both = (inside * masks).sum((2, 3))
        dice = 1 - (2 * both + 1) / (inside.sum((2, 3)) + masks.sum((2, 3)) + 1)
        overlap = (dice * present).sum() / present.sum().clamp(min=1)
        choice = choice_loss(logits, batch)
        loss = 2 * bce + overlap + self.choice_weight * choice + self.naming_weight * naming
        parts = {"bce": bce.detach(), "choice": choice.detach(), "naming": naming.detach()}
        return {"loss": loss, **parts, **right, **_measure(logits, masks)}

    def _naming(
        self, batch: Mapping[str, Any], activation: Tensor, condition: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropies of what patches and phrases are, and the patches' accuracy."""
        share = F.avg_pool2d(batch["things"], self.patch_size).flatten(2)  # (N,4,patches)
        most, which = share.max(1)
        label = batch["labels"].gather(1, which[..., None].expand(-1, -1, 3))
        named = self.name_patch(activation[:, 1:]).float().split([*_KINDS, 1], -1)
        there = most > 0.4
        loss = F.binary_cross_entropy_with_logits(named[3][..., 0], (most > 0.2).float())
        right = {}
        for i, key in enumerate(("shape", "color", "texture")):
            logits, truth = named[i][there], label[there][:, i]
            if len(truth):
                loss = loss + F.cross_entropy(logits, truth)
                right[key] = (logits.argmax(-1) == truth).float().mean()
        said = self.name_phrase(condition).float().split([k + 1 for k in _KINDS], -1)
        kinds = batch["kinds"].flatten(0, 1)
        for i, logits in enumerate(said):
            loss = loss + 0.3 * F.cross_entropy(logits, torch.where(kinds[:, i] == ANY, _KINDS[i], kinds[:, i]))
        return loss, right

    @torch.no_grad()
    def sample_grid(self, batch: Mapping[str, Any], generator: torch.Generator) -> list[list[Any]]:
        """Rows of picture and the map of each phrase."""
        phrases = batch["masks"].shape[1]
        maps = self.decode(self.encode(batch["image"]), self.embed(batch["phrases"]), phrases)
        shown = maps.sigmoid() * 2 - 1
        return [
            [image, *(m[None].expand(3, -1, -1) for m in own)] for image, own in zip(batch["image"], shown, strict=True)
        ]

    def export(self, folder: str | Path) -> None:
        """Write CLIPSeg with its processor, as `lit_insert.segmenters.clipseg` loads it."""
        half = [0.5, 0.5, 0.5]
        size = {"height": self.image_size, "width": self.image_size}
        pictures = ViTImageProcessor(size=size, image_mean=half, image_std=half)
        self.model.save_pretrained(folder)
        CLIPSegProcessor(pictures, self.tokenizer).save_pretrained(folder)


def choice_loss(logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Cross-entropy of each thing's mean logit with whether the phrase names it; outlines and backdrop do not count.

    Args:
        logits: (N,P,S,S).
        batch: With ``things`` (N,4,S,S), ``labels`` (N,4,3) and ``kinds`` (N,P,3).
    """
    area = batch["things"].flatten(2).sum(-1)
    mean = torch.einsum("nphw,nkhw->npk", logits, batch["things"]) / area.clamp(min=1)[:, None]
    truth = named(batch["kinds"], batch["labels"], area > 0)
    there = (area > 0)[:, None].expand_as(truth)
    if not there.any():
        return logits.sum() * 0
    return F.binary_cross_entropy_with_logits(mean[there], truth[there].float())


@torch.no_grad()
def _measure(logits: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Overlap where the phrase names something, and with what another phrase names; how often absence is seen."""
    inside, truth = logits > 0, masks > 0.5
    present = truth.flatten(2).any(-1)
    empty = ~inside.flatten(2).any(-1)
    iou = _iou(inside, truth)
    other = truth.roll(1, 1)
    differs = present & other.flatten(2).any(-1) & ~(truth & other).flatten(2).any(-1)
    found = {}
    for key, value, where in (
        ("iou", iou, present),
        ("wrong_phrase", _iou(inside, other), differs),
        ("absent", empty.float(), ~present),
    ):
        if where.any():
            found[key] = value[where].mean()
    return found


def _iou(one: Tensor, other: Tensor) -> Tensor:
    return (one & other).sum((2, 3)) / (one | other).sum((2, 3)).clamp(min=1)
