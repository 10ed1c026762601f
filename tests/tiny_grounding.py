"""Small models of random weights for every stage, pictures of rectangles, and a segmenter that sees colours."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny_segmenters import tiny_clipseg, tiny_sam3
from transformers import (
    AddedToken,
    DINOv3ViTConfig,
    DINOv3ViTImageProcessor,
    DINOv3ViTModel,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from lit_insert.grounding.models import Loaders
from lit_insert.grounding.settings import GroundingSettings
from lit_insert.pocket.words import byte_letters
from lit_insert.segmenters.base import Features, Instance, Instances, best_first, upright
from lit_insert.segmenters.sam3 import Sam3Segmenter

PAINT = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (30, 40, 220),
    "yellow": (230, 220, 30),
    "purple": (150, 40, 180),
    "white": (250, 250, 250),
}
SPECIALS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_qwen(seed: int = 0) -> tuple[Qwen3VLForConditionalGeneration, Qwen3VLProcessor]:
    torch.manual_seed(seed)
    vocabulary = {token: i for i, token in enumerate([*byte_letters(), "<|endoftext|>"])}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[])
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken(s, special=True, normalized=False) for s in SPECIALS]}
    )
    number = dict(zip(SPECIALS, tokenizer.convert_tokens_to_ids(list(SPECIALS)), strict=True))
    tokenizer.eos_token = "<|im_end|>"
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
            },
            "eos_token_id": number["<|im_end|>"],
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=number["<|image_pad|>"],
        video_token_id=number["<|video_pad|>"],
        vision_start_token_id=number["<|vision_start|>"],
        vision_end_token_id=number["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    model = Qwen3VLForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = number["<|im_end|>"]
    model.generation_config.pad_token_id = number["<|im_end|>"]
    size = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(patch_size=8, merge_size=2, temporal_patch_size=2, size=size),
        tokenizer,
        Qwen3VLVideoProcessor(patch_size=8, merge_size=2, temporal_patch_size=2),
        chat_template=TEMPLATE,
    )
    return model, processor


def tiny_dinov3(registers: int = 4, seed: int = 0) -> tuple[DINOv3ViTModel, DINOv3ViTImageProcessor]:
    torch.manual_seed(seed)
    config = DINOv3ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        patch_size=16,
        image_size=64,
        num_register_tokens=registers,
    )
    return DINOv3ViTModel(config).eval(), DINOv3ViTImageProcessor()


def rectangles(
    boxes: Sequence[tuple[str, tuple[int, int, int, int]]], size: tuple[int, int] = (128, 96)
) -> Image.Image:
    """Coloured boxes (x, y, width, height) on grey."""
    pixels = np.full((size[1], size[0], 3), 110, np.uint8)
    for colour, (x, y, width, height) in boxes:
        pixels[y : y + height, x : x + width] = PAINT[colour]
    return Image.fromarray(pixels)


class ColourSegmenter:
    """Finds each connected patch of the colour that a prompt names; exact."""

    name = "colours"

    def __init__(self) -> None:
        self.seen = 0
        self.refused: str | None = None

    def to(self, device: Any) -> "ColourSegmenter":
        return self

    def encode(self, image: Any, name: str | None = None) -> Features:
        self.seen += 1
        picture = upright(image)
        return Features((picture.height, picture.width), np.asarray(picture).astype(int))

    def heatmaps(self, image: Any, prompts: Sequence[str]) -> torch.Tensor:
        features = image if isinstance(image, Features) else self.encode(image)
        return torch.stack([torch.from_numpy(self._where(features, p)).float() for p in prompts])

    def _where(self, features: Features, prompt: str) -> np.ndarray:
        colours = [PAINT[word] for word in prompt.lower().split() if word in PAINT]
        if not colours:
            return np.zeros(features.size, bool)
        return np.abs(features.data - np.array(colours[0])).max(-1) < 12

    def instances(self, image: Any, prompts: Sequence[str], **options: Any) -> list[Instances]:
        import cv2

        from lit_insert.errors import InputError

        features = image if isinstance(image, Features) else self.encode(image)
        found = []
        for prompt in prompts:
            if self.refused is not None and self.refused in prompt:
                raise InputError(f"prompt {prompt!r}: refused")
            count, labels = cv2.connectedComponents(self._where(features, prompt).astype(np.uint8), connectivity=4)
            score = 0.9 + 0.01 * len(prompt.split())
            things = [Instance.from_mask(labels == k, score) for k in range(1, count)]
            found.append(Instances(prompt, float(count > 1), best_first(things, options.get("max_instances", 100))))
        return found


class MeanColour:
    """The mean colour of a thing as its vector."""

    name = "mean-colour"

    def __init__(self) -> None:
        self.seen = 0

    def to(self, device: Any) -> "MeanColour":
        return self

    def vectors(self, image: Any, things: Sequence[Instance]) -> torch.Tensor:
        self.seen += 1
        pixels = np.asarray(upright(image)).astype(np.float32) - 110
        rows = [torch.from_numpy(pixels[thing.mask].mean(0)) for thing in things]
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


class Borrowed:
    """Stands for a model that lives on; this does not, as a loaded model would not."""

    def __init__(self, own: Any) -> None:
        self.own = own

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)


class StubLoaders(Loaders):
    """Exact stand-ins for the segmenter and the embedder; what was loaded is counted."""

    def __init__(self, settings: GroundingSettings, segmenter: Any = None) -> None:
        super().__init__(settings)
        self.made = segmenter or ColourSegmenter()
        self.loaded: list[str] = []

    def segmenter(self) -> Any:
        self.loaded.append("segmenter")
        return Borrowed(self.made)

    def embedder(self) -> Any:
        self.loaded.append("embedder")
        return MeanColour()


def save_models(folder: Path) -> dict[str, Path]:
    """The tiny SAM 3, Qwen3-VL, DINOv3 and CLIPSeg as exported folders."""
    made = {"sam3": tiny_sam3(), "qwen": tiny_qwen(), "dinov3": tiny_dinov3(), "clipseg": tiny_clipseg()}
    for name, parts in made.items():
        for part in parts:
            part.save_pretrained(folder / name)
    return {name: folder / name for name in made}


def tiny_sam3_segmenter() -> Sam3Segmenter:
    return Sam3Segmenter(*tiny_sam3())
