import pytest
import torch
from tiny_fusion import seeded
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from lit_insert.errors import InputError
from lit_insert.fusion.clip_score import ClipScorer

WORDS = {f"{w}</w>": i for i, w in enumerate("abcdefgh")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("clip") / "model"
    vocabulary = {**WORDS, "<|startoftext|>": 8, "<|endoftext|>": 9}
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 10, "max_position_embeddings": 8, "bos_token_id": 8, "eos_token_id": 9}
    vision = {**tower, "image_size": 8, "patch_size": 4}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(path)
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(path)
    return path


def test_a_score_is_a_cosine(folder):
    scorer = ClipScorer.from_pretrained(folder).to("cpu")
    picture = torch.rand(3, 20, 30, generator=seeded())
    score = scorer(picture, "a b c")
    assert -1 <= score <= 1
    assert score == scorer(picture, "a b c")
    assert score != scorer(picture, "f g")
    assert score != scorer(1 - picture, "a b c")
    assert isinstance(scorer(picture, "a b c d e f g h a b c d"), float), "long texts are cut"


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        ClipScorer.from_pretrained("nowhere.at.all")
    CLIPModel.from_pretrained(folder).save_pretrained(tmp_path / "bare")
    with pytest.raises(InputError, match="tokenizer"):
        ClipScorer.from_pretrained(tmp_path / "bare")
