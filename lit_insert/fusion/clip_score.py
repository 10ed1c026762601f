"""How well a picture fits words, by CLIP."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel

from lit_insert.artifacts.hub import pull_model
from lit_insert.artifacts.resolve import resolve_model
from lit_insert.artifacts.weights import load_component
from lit_insert.errors import InputError

_TOKENIZER = ("tokenizer.json", "vocab.json")
# CLIP's own normalisation.
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ClipScorer:
    """Cosine of a picture's and a text's embedding.

    Args:
        model: A CLIP model.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: CLIPModel, tokenizer: Any) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, source: str | Path = "openai/clip-vit-base-patch32") -> "ClipScorer":
        """Load a model.

        Args:
            source: A folder or a hub id.

        Raises:
            InputError: If there is none, or it is broken.
        """
        found = resolve_model(source)
        folder = pull_model(found.location) if found.kind == "hub" else found.path.resolve()
        model = load_component(CLIPModel, folder.parent, folder.name)
        if not any((folder / name).is_file() for name in _TOKENIZER):  # it would come without a vocabulary
            raise InputError(f"{folder}: no tokenizer in it (looked for {', '.join(_TOKENIZER)})")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return cls(model, tokenizer)

    def to(self, device: torch.device | str) -> "ClipScorer":
        """Move to a device; returns the scorer."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def __call__(self, picture: Tensor, text: str) -> float:
        """Score a picture (3,H,W) in [0,1]."""
        side, device = self.model.config.vision_config.image_size, self.model.device
        small = F.interpolate(picture[None].float(), (side, side), mode="bilinear", align_corners=False)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (_MEAN, _STD))
        tokens = self.tokenizer(
            [text],
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(device)
        seen = self.model.get_image_features(pixel_values=((small - mean) / std).to(device)).pooler_output
        said = self.model.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
        return float(F.cosine_similarity(seen.float(), said.float())[0])
