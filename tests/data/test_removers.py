import json

import numpy as np
import pytest
import torch
from data_samples import scene
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
from PIL import Image, ImageDraw
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lit_insert.data.removers import DiffusersRemover, OpenCVRemover, dilated
from lit_insert.errors import InputError


def smooth(size=(120, 90)):
    """A backdrop that is easy to continue, and an object on it."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    back = Image.fromarray(np.stack([x, y, x // 2 + y // 2], -1).astype(np.uint8))
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse((40, 25, 80, 65), fill=255)
    with_object = back.copy()
    with_object.paste("red", mask=mask)
    return back, with_object, mask


@pytest.mark.parametrize("side", [512, 60])
def test_opencv_takes_the_object_away_and_leaves_the_rest(side):
    back, with_object, mask = smooth()
    result = np.asarray(OpenCVRemover(side=side)(with_object, mask, "x")).astype(int)
    untouched = ~dilated(mask, 0.02)
    assert np.array_equal(result[untouched], np.asarray(with_object)[untouched])
    error = np.abs(result - np.asarray(back))[~untouched]
    assert error.mean() < 8
    assert error.max() < 60


def test_masks_grow_and_lose_their_holes():
    mask = Image.new("L", (100, 100))
    draw = ImageDraw.Draw(mask)
    draw.rectangle((20, 20, 79, 79), fill=255)
    draw.rectangle((40, 40, 59, 59), fill=0)
    grown = dilated(mask, 0.05)
    assert grown[50, 50]
    assert np.flatnonzero(grown.any(0))[[0, -1]].tolist() == [15, 84]


def test_an_empty_mask_changes_nothing():
    back, _, _ = smooth()
    assert np.array_equal(OpenCVRemover()(back, Image.new("L", back.size), "x"), back)


def tiny_pipeline(folder):
    letters = "abcdefghijklmnopqrstuvwxyz,"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    torch.manual_seed(0)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=64, in_channels=9, out_channels=4,
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, attention_head_dim=4,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    pipe = StableDiffusionInpaintPipeline(
        vae, text, tokenizer, unet, DDIMScheduler(), None, None, requires_safety_checker=False
    )
    pipe.save_pretrained(folder / "pipe")
    return folder / "pipe"


def test_a_diffusers_pipeline_replaces_the_hole_only_and_repeats_itself(tmp_path):
    folder = tiny_pipeline(tmp_path / "tiny")
    remover = DiffusersRemover(str(folder), steps=2, side=32, device="cpu")
    _, target, mask = scene(0, shape=(80, 64))
    first = np.asarray(remover(target, mask, "a"))
    assert first.shape == (64, 80, 3)
    assert np.array_equal(first, np.asarray(remover(target, mask, "a")))
    assert not np.array_equal(first, np.asarray(remover(target, mask, "b")))
    far = ~dilated(mask, 0.12)
    assert np.array_equal(first[far], np.asarray(target)[far])
    inside = np.asarray(mask) > 0
    assert np.abs(first.astype(int) - np.asarray(target))[inside].mean() > 10


def test_what_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no model_index\.json"):
        DiffusersRemover(str(tmp_path))
    with pytest.raises(InputError, match="no inpainting pipeline"):
        DiffusersRemover("owner/nothing-of-the-kind")
