"""A text-to-image pipeline of random weights with a word-level tokenizer; runs in milliseconds."""

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

WORDS = [
    "a",
    "an",
    "the",
    "photo",
    "of",
    "and",
    "on",
    "in",
    "picture",
    "red",
    "blue",
    "green",
    "circle",
    "square",
    "beach",
    "striped",
    "left",
    "right",
]
START, END, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<|unknown|>"
LENGTH = 16


def tokenizer(length=LENGTH):
    """Words to ids, framed and padded as CLIP's are."""
    vocab = {w: i for i, w in enumerate([END, START, UNKNOWN, *WORDS])}
    raw = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, vocab[START]), (END, vocab[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=START,
        eos_token=END,
        unk_token=UNKNOWN,
        pad_token=END,
        model_max_length=length,
        clean_up_tokenization_spaces=False,
    )


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
    words = tokenizer(length)
    torch.manual_seed(1)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=37,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=length,
            bos_token_id=1,
            eos_token_id=0,
            pad_token_id=0,
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
        1000, clip_sample=False, set_alpha_to_one=False, prediction_type=prediction, beta_schedule="scaled_linear"
    )
    return {
        "vae": vae.eval(),
        "text_encoder": text.eval(),
        "tokenizer": words,
        "unet": unet(),
        "scheduler": scheduler,
    }
