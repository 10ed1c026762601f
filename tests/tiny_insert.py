"""An insertion pipeline of random weights, small enough to run in milliseconds, and pictures for it."""

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from lit_insert.embedding_optimizer.network import EmbeddingOptimizer


def components(**adapter):
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        layers_per_block=1,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
    )
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=37,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
            projection_dim=32,
        )
    )
    sizes = {"input_dim": 32, "output_dim": 32, "num_tokens": 4, "heads": 4, "depth": 1}
    optimizer = EmbeddingOptimizer(**{**sizes, **adapter})
    with torch.no_grad():
        optimizer.null_embedding.normal_()
    return {
        "vae": vae.eval(),
        "unet": unet.eval(),
        "scheduler": DDIMScheduler(1000, clip_sample=False),
        "image_encoder": encoder.eval(),
        "feature_extractor": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        "embedding_optimizer": optimizer.eval(),
    }


def picture(seed, size=(32, 32), mode="RGB"):
    width, height = size
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, len(mode)), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def pixels(image):
    return np.asarray(image).astype(np.float32) / 127.5 - 1


FEW = {"num_inference_steps": 3}
