"""A text-to-image model of random weights whose tokenizer knows a few whole words; runs in milliseconds."""

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from lit_insert.mifo.sources import TextParts, save_parts
from lit_insert.pocket.words import word_tokenizer

WORDS = (
    *("a", "an", "the", "photo", "of", "and", "on", "in", "picture", "red", "blue", "green", "circle", "square"),
    *("beach", "striped", "left", "right"),
)
LENGTH = 16
SETTINGS = {
    "num_inference_steps": 4,
    "guidance_scale": 3.0,
    "guidance": {
        "layers": ["mid", "up:8"],
        "until": 0.5,
        "iterations": 2,
        "step_size": [40.0, 20.0],
        "stop_below": 0.0,
    },
    "refinement": {"layers": ["up:8"], "start": 0.5, "every": 0.25, "restarts": 4},
}


def unet(sample_size=16, **config):
    """A UNet of two levels, with attention at both and in the middle."""
    torch.manual_seed(0)
    sizes = {
        "sample_size": sample_size,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "norm_num_groups": 8,
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
    }
    return UNet2DConditionModel(**{**sizes, **config}).eval()


def components(prediction="epsilon", length=LENGTH):
    """What a ``StableDiffusionPipeline`` of 32-pixel pictures is made of."""
    words = word_tokenizer(WORDS, length)
    torch.manual_seed(1)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=37,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=length,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )
    with torch.no_grad():  # CLIP's own start is so small that every word would look alike
        text.get_input_embeddings().weight.normal_()
    vae = AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        layers_per_block=1,
    )
    scheduler = DDIMScheduler(
        1000,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
    )
    return {
        "vae": vae.eval(),
        "text_encoder": text.eval(),
        "tokenizer": words,
        "unet": unet(),
        "scheduler": scheduler,
    }


def write_model(folder, prediction="epsilon", settings=SETTINGS, length=LENGTH):
    """A model as a folder in the layout of Stable Diffusion; returns its path."""
    save_parts(TextParts(**components(prediction, length), settings=settings), folder)
    return folder
