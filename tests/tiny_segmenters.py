"""Segmenters of a few thousand random weights, and a picture or two for them."""

from typing import Any

import torch
from PIL import Image, ImageDraw
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    Sam3Config,
    Sam3ImageProcessor,
    Sam3Model,
    Sam3Processor,
    ViTImageProcessor,
)

from lit_insert.pocket.words import word_tokenizer

_LAYER = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}


def text_config(tokenizer: Any, **more: Any) -> dict[str, Any]:
    return {
        **_LAYER,
        "num_hidden_layers": 1,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 32,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **more,
    }


def tiny_clipseg(seed: int = 0) -> tuple[CLIPSegForImageSegmentation, CLIPSegProcessor]:
    torch.manual_seed(seed)
    tokenizer = word_tokenizer()
    vision = {**_LAYER, "num_hidden_layers": 3, "image_size": 64, "patch_size": 16}
    config = CLIPSegConfig(
        text_config=text_config(tokenizer),
        vision_config=vision,
        projection_dim=32,
        extract_layers=[0, 1, 2],
        reduce_dim=16,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    )
    return CLIPSegForImageSegmentation(config), CLIPSegProcessor(
        ViTImageProcessor(size={"height": 64, "width": 64}), tokenizer
    )


def tiny_sam3(seed: int = 0) -> tuple[Sam3Model, Sam3Processor]:
    torch.manual_seed(seed)
    tokenizer = word_tokenizer()
    part = {"hidden_size": 32, "num_attention_heads": 2}
    vision = {
        "backbone_config": {
            "model_type": "sam3_vit_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 112,
            "patch_size": 14,
            "window_size": 4,
            "global_attn_indexes": [1],
            "pretrain_image_size": 56,
        },
        "fpn_hidden_size": 32,
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
    }
    config = Sam3Config(
        vision_config=vision,
        text_config=text_config(tokenizer, projection_dim=16),
        geometry_encoder_config={**part, "num_layers": 1, "intermediate_size": 64},
        detr_encoder_config={**part, "num_layers": 1, "intermediate_size": 64},
        detr_decoder_config={**part, "num_layers": 1, "intermediate_size": 64, "num_queries": 8},
        mask_decoder_config={**part},
    )
    return Sam3Model(config).eval(), Sam3Processor(Sam3ImageProcessor(size={"height": 112, "width": 112}), tokenizer)


def picture(width: int = 120, height: int = 80) -> Image.Image:
    """A red disc and a blue bar on grey."""
    image = Image.new("RGB", (width, height), (120, 120, 120))
    draw = ImageDraw.Draw(image)
    draw.ellipse((width * 0.1, height * 0.2, width * 0.4, height * 0.7), fill=(230, 30, 30))
    draw.rectangle((width * 0.6, height * 0.4, width * 0.9, height * 0.6), fill=(30, 60, 230))
    return image
