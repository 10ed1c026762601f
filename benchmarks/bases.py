"""Bases of random weights for timing: real ones scaled down in every width, in the layout that diffusers reads."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)


@dataclass(frozen=True)
class Size:
    """Dimensions of a base: constructor arguments of its parts, and the pixels of scene and reference."""

    pixels: int
    object_pixels: int
    tokens: int
    batch: int
    vae: dict[str, Any]
    unet: dict[str, Any]
    vision: dict[str, Any]
    text: dict[str, Any]


def stable_diffusion(divisor: int, batch: int) -> Size:
    """Stable Diffusion 1.5 and CLIP ViT-L/14 with every width and every picture's side divided by ``divisor``.

    Depths, heads per layer and the factor 8 of the VAE stay, and so does the share of each part in the work of a
    step: about half of it is the VAE's, a few hundredths are CLIP's.
    """
    side = 512 // divisor
    object_side = max(14, round(224 / divisor / 14) * 14)
    width, vision, text = 320 // divisor, 1024 // divisor, 768 // divisor
    vae_width = 128 // divisor
    return Size(
        pixels=side,
        object_pixels=object_side,
        tokens=77,
        batch=batch,
        vae={
            "block_out_channels": tuple(vae_width * m for m in (1, 2, 4, 4)),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "layers_per_block": 2,
            "latent_channels": 4,
            "norm_num_groups": 32 // divisor,
            "sample_size": side,
        },
        unet={
            "sample_size": side // 8,
            "block_out_channels": tuple(width * m for m in (1, 2, 4, 4)),
            "layers_per_block": 2,
            "cross_attention_dim": text,
            "attention_head_dim": 8,
            "norm_num_groups": 32 // divisor,
        },
        vision={
            "hidden_size": vision,
            "intermediate_size": 4 * vision,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": object_side,
            "patch_size": 14,
            "projection_dim": text,
        },
        text={
            "hidden_size": text,
            "intermediate_size": 4 * text,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
        },
    )


SIZES = {
    # The pocket model, whose UNet here takes four channels, as the peer's must, and is widened by both.
    "pocket": Size(
        pixels=32,
        object_pixels=32,
        tokens=24,
        batch=32,
        vae={
            "block_out_channels": (16, 32),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "layers_per_block": 1,
            "latent_channels": 4,
            "norm_num_groups": 8,
            "mid_block_add_attention": False,
            "sample_size": 32,
        },
        unet={
            "sample_size": 16,
            "layers_per_block": 1,
            "block_out_channels": (32, 64, 96),
            "norm_num_groups": 8,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 64,
            "attention_head_dim": 4,
            "addition_embed_type": "text",
            "addition_embed_type_num_heads": 4,
            "resnet_time_scale_shift": "scale_shift",
        },
        vision={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 4,
            "projection_dim": 64,
        },
        text={"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4},
    ),
    "eighth": stable_diffusion(8, batch=4),
    "quarter": stable_diffusion(4, batch=4),
    "half": stable_diffusion(2, batch=4),
    "full": stable_diffusion(1, batch=4),
}


def quiet_loading() -> None:
    """Keep the bars of loading and saving out of a benchmark's output."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def networks(size: Size, channels: int) -> dict[str, Any]:
    """VAE, UNet with ``channels`` input channels, CLIP vision model, its preprocessing and noise schedule."""
    torch.manual_seed(0)
    side = size.object_pixels
    return {
        "vae": AutoencoderKL(**size.vae).eval(),
        "unet": UNet2DConditionModel(in_channels=channels, out_channels=4, **size.unet).eval(),
        "scheduler": DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear", clip_sample=False, steps_offset=1),
        "image_encoder": CLIPVisionModelWithProjection(CLIPVisionConfig(**size.vision)).eval(),
        "feature_extractor": CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        ),
    }


def write_base(folder: Path, size: Size, channels: int = 4) -> Path:
    """Write a base that both this package and diffusers' example read, text encoder included; returns its path."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    raw = folder / "tokenizer"
    raw.mkdir(parents=True)
    (raw / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (raw / "merges.txt").write_text("#version: 0.2\n")
    config = CLIPTextConfig(
        vocab_size=len(words), max_position_embeddings=size.tokens, bos_token_id=0, eos_token_id=1, **size.text
    )
    parts = networks(size, channels)
    pipeline = StableDiffusionInstructPix2PixPipeline(
        **parts,
        text_encoder=CLIPTextModel(config),
        tokenizer=CLIPTokenizer(
            str(raw / "vocab.json"), str(raw / "merges.txt"), model_max_length=size.tokens, pad_token="<|endoftext|>"
        ),
        safety_checker=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder
