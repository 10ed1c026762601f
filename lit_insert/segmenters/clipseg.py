"""CLIPSeg (Lüddecke & Ecker 2022, arXiv 2112.10003): a heat map for any words; its parts serve as instances."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

from lit_insert.artifacts.weights import load_component, load_processor
from lit_insert.errors import InputError
from lit_insert.images import Picture
from lit_insert.segmenters.base import Features, Instances, check_request, chunks, connected, upright


class ClipSegSegmenter:
    """CLIPSeg behind the protocol of `lit_insert.segmenters.base.Segmenter`.

    A picture is squashed to the square of training, as the published processor does, and the map is stretched back.
    CLIPSeg knows no single things: `instances` are the connected parts of the map, so two dogs that touch are one.

    Args:
        model: The network.
        processor: Its processor.
        name: What to call it in results.
        chunk: Prompts that go through the decoder at once.
    """

    def __init__(
        self,
        model: CLIPSegForImageSegmentation,
        processor: CLIPSegProcessor,
        name: str = "clipseg",
        chunk: int = 8,
    ) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.processor: Any = processor
        self.name, self.chunk = name, chunk
        self.longest = int(model.config.text_config.max_position_embeddings)

    @classmethod
    def from_folder(cls, folder: str | Path, *, name: str = "clipseg", dtype: torch.dtype = torch.float32) -> Self:
        """Load an exported model with its processor.

        Raises:
            InputError: If a part is missing or broken.
        """
        model = load_component(CLIPSegForImageSegmentation, folder, ".", dtype=dtype)
        return cls(model, load_processor(CLIPSegProcessor, folder, "CLIPSeg processor"), name)

    def to(self, device: str | torch.device) -> Self:
        """Move to a device; returns the segmenter."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def encode(self, image: Picture, name: str | None = None) -> Features:
        """The vision tower's activations at the layers that the decoder reads."""
        picture = upright(image)
        pixels = self.processor.image_processor(picture, return_tensors="pt").pixel_values
        seen = self.model.clip.get_image_features(
            pixels.to(self.model.device, self.model.dtype), output_hidden_states=True
        )
        kept = [seen.hidden_states[i + 1] for i in self.model.extract_layers]
        return Features((picture.height, picture.width), kept)

    @torch.no_grad()
    def logits(self, image: Picture | Features, prompts: Sequence[str]) -> Tensor:
        """The decoder's own maps, float32 (P,S,S).

        Raises:
            InputError: If a prompt is longer than the text tower reads.
        """
        features = image if isinstance(image, Features) else self.encode(image)
        found = []
        for some in chunks(prompts, self.chunk):
            activations = [a.expand(len(some), -1, -1) for a in features.data]
            found.append(self.model.decoder(activations, self.embed(some)).logits.float())
        return torch.cat(found) if found else torch.zeros(0, 1, 1)

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> Tensor:
        """The conditional embeddings of prompts, (P, projection_dim).

        Raises:
            InputError: If a prompt is longer than the text tower reads.
        """
        tokens = self.processor.tokenizer(prompts, padding=True, return_tensors="pt")
        if tokens.input_ids.shape[1] > self.longest:
            worst = max(prompts, key=len)
            raise InputError(f"prompt {worst[:60]!r}: longer than the {self.longest} tokens that {self.name} reads")
        where = self.model.device
        found: Tensor = self.model.clip.get_text_features(
            tokens.input_ids.to(where), attention_mask=tokens.attention_mask.to(where)
        ).pooler_output
        return found

    @torch.no_grad()
    def heatmaps(self, image: Picture | Features, prompts: Sequence[str]) -> Tensor:
        """Probabilities stretched to the picture's size, bilinear; see the protocol."""
        prompts = check_request(prompts)
        features = image if isinstance(image, Features) else self.encode(image)
        if not prompts:
            return torch.zeros(0, *features.size)
        return self._stretch(self.logits(features, prompts).sigmoid(), features.size)

    def instances(
        self,
        image: Picture | Features,
        prompts: Sequence[str],
        *,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        max_instances: int = 100,
    ) -> list[Instances]:
        """Connected parts of the heat maps, with their largest value as score; see the protocol."""
        prompts = check_request(prompts, threshold, mask_threshold, max_instances)
        features = image if isinstance(image, Features) else self.encode(image)
        maps = self.logits(features, prompts).sigmoid()
        found = []
        for prompt, small in zip(prompts, maps, strict=True):
            heat = self._stretch(small[None], features.size)[0].numpy()
            parts = connected(heat, threshold, mask_threshold, max_instances)
            found.append(Instances(prompt, float(small.max()), parts))
        return found

    @staticmethod
    def _stretch(maps: Tensor, size: tuple[int, int]) -> Tensor:
        large = torch.nn.functional.interpolate(maps[None].cpu(), size=size, mode="bilinear", align_corners=False)
        return large[0].clamp(0, 1)
