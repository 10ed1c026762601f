"""Random bases in diffusers/transformers layout on disk, and batches for them; all tiny."""

import json

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from tiny_insert import components
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lit_insert.data.scenes import SceneDataset

TEXT_LENGTH = 7


def write_base(folder, *, text=True, own_adapter=False, channels=8, prediction="epsilon", zero_snr=False):
    """An InstructPix2Pix folder for 32-pixel scenes; returns its path."""
    parts = components()
    parts["vae"].save_pretrained(folder / "vae")
    unet = parts["unet"]
    if channels != 8:
        torch.manual_seed(1)
        unet = UNet2DConditionModel.from_config({**unet.config, "in_channels": channels})
    unet.save_pretrained(folder / "unet")
    parts["image_encoder"].save_pretrained(folder / "image_encoder")
    parts["feature_extractor"].save_pretrained(folder / "feature_extractor")
    DDPMScheduler(1000, prediction_type=prediction, rescale_betas_zero_snr=zero_snr, clip_sample=False).save_pretrained(
        folder / "scheduler"
    )
    if own_adapter:
        parts["embedding_optimizer"].save_pretrained(folder / "embedding_optimizer")
    if text:
        write_text(folder)
    return folder


def write_text(folder, length=TEXT_LENGTH, width=32):
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    raw = folder / "tokenizer"
    raw.mkdir(parents=True)
    (raw / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (raw / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(raw / "vocab.json"), str(raw / "merges.txt"), model_max_length=length).save_pretrained(raw)
    torch.manual_seed(2)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=length,
        bos_token_id=0,
        eos_token_id=1,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


def write_sd15_like(folder, channels=8):
    """Stable Diffusion 1.5's blocks, heads and text length, 16 channels wide; and CLIP in its own folder."""
    parts = components()
    width = 48
    torch.manual_seed(3)
    UNet2DConditionModel(
        sample_size=16,
        in_channels=channels,
        block_out_channels=(16, 16, 16, 16),
        norm_num_groups=8,
        cross_attention_dim=width,
        attention_head_dim=4,
    ).save_pretrained(folder / "base" / "unet")
    parts["vae"].save_pretrained(folder / "base" / "vae")
    DDPMScheduler(1000).save_pretrained(folder / "base" / "scheduler")
    write_text(folder / "base", length=77, width=width)
    parts["image_encoder"].save_pretrained(folder / "clip")
    parts["feature_extractor"].save_pretrained(folder / "clip")
    return folder / "base", folder / "clip"


def scenes(count=4, split="train"):
    """A batch of procedural scenes."""
    return SceneDataset(split, 64).batch(range(count))
