import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny_base import TEXT_LENGTH, write_base

from lit_insert.diffusion.frozen import (
    empty_prompt_states,
    has_part,
    image_processor,
    load_part,
    resolve_base,
)
from lit_insert.errors import InputError


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


def test_names_of_bases(base, tmp_path, monkeypatch):
    assert resolve_base(str(base)) == str(base)
    assert resolve_base("timbrooks/instruct-pix2pix") == "timbrooks/instruct-pix2pix"
    with pytest.raises(InputError, match="does not exist"):
        resolve_base("./nowhere")
    with pytest.raises(InputError, match="no pocket model is called 'mug'"):
        resolve_base("pocket:mug")
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="'runs/a' does not exist"):  # not taken for a hub id, nothing is downloaded
        resolve_base("runs/a")


def test_a_missing_or_broken_part_is_named_in_one_line(base, tmp_path):
    with pytest.raises(InputError, match="has no controlnet/ folder"):
        load_part(UNet2DConditionModel, str(base), "controlnet")
    (tmp_path / "unet").mkdir()
    with pytest.raises(InputError, match="cannot load UNet2DConditionModel from") as caught:
        load_part(UNet2DConditionModel, str(tmp_path), "unet")
    assert "\n" not in str(caught.value)


def test_empty_prompt_is_what_the_text_encoder_says(base):
    from transformers import CLIPTextModel

    states = empty_prompt_states(str(base))
    assert states.shape == (1, TEXT_LENGTH, 32)
    encoder = CLIPTextModel.from_pretrained(base / "text_encoder").eval()
    tokens = torch.tensor([[0] + [1] * (TEXT_LENGTH - 1)])
    assert torch.equal(states, encoder(tokens)[0])
    with pytest.raises(InputError, match="has no tokenizer/"):
        empty_prompt_states(str(base / "unet"))


def test_parts_that_a_base_has(base):
    assert has_part(str(base), "text_encoder")
    assert not has_part(str(base), "embedding_optimizer")
    assert has_part("owner/model", "text_encoder")  # the hub will tell


def test_preprocessing_comes_from_the_base_or_the_encoder(base, tmp_path):
    processor = image_processor(str(base), None, 32)
    assert processor.crop_size["height"] == 32
    assert image_processor(str(tmp_path), None, 224).crop_size["height"] == 224  # nothing stored: CLIP's own
    with pytest.raises(InputError, match="makes 32 pixels, the encoder takes 224"):
        image_processor(str(base), None, 224)
