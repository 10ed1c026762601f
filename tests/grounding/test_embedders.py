"""Vectors of things."""

import numpy as np
import pytest
import torch
from tiny_grounding import tiny_dinov3
from tiny_segmenters import picture
from transformers import (
    BitImageProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

from lit_insert import pocket
from lit_insert.errors import InputError
from lit_insert.grounding.embedders import PatchEmbedder, load_embedder, window
from lit_insert.rle import encode_rle
from lit_insert.segmenters.base import Instance


def thing(x: int, y: int, width: int, height: int, size: tuple[int, int] = (80, 120)) -> Instance:
    mask = np.zeros(size, bool)
    mask[y : y + height, x : x + width] = True
    return Instance.from_mask(mask, 1.0)


EMPTY = Instance(encode_rle(np.zeros((80, 120), bool)), 0.5, (10, 10, 5, 5), 1, (0, 0, 1, 1))
WHOLE, DISC, BAR, SPECK = thing(0, 0, 120, 80), thing(12, 16, 36, 40), thing(72, 32, 36, 16), thing(100, 70, 2, 2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("embedders")
    for name, registers in (("four", 4), ("none", 0)):
        for part in tiny_dinov3(registers):
            part.save_pretrained(root / name)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    Dinov2Model(Dinov2Config(**small)).save_pretrained(root / "v2")
    Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**small, num_register_tokens=3)).save_pretrained(root / "v2r")
    for name in ("v2", "v2r"):
        BitImageProcessor().save_pretrained(root / name)
    clip = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    CLIPVisionModelWithProjection(clip).save_pretrained(root / "clip")
    CLIPImageProcessor().save_pretrained(root / "clip")
    return root


@pytest.mark.parametrize("name", ["four", "none", "v2", "v2r", "clip", "pocket"])
def test_unit_vectors_from_every_kind(folders, name):
    backend = name if name in ("clip", "pocket") else "dinov2" if name.startswith("v2") else "dinov3"
    embedder = load_embedder(backend, pocket.path("judge") if name == "pocket" else folders / name)
    found = embedder.vectors(picture(), [WHOLE, DISC, SPECK, EMPTY])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.tensor([1.0, 1, 1, 0]))
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    assert not torch.allclose(found[0], found[2], atol=1e-3)
    assert len(embedder.vectors(picture(), [])) == 0


def counted(embedder, monkeypatch):
    """Pictures that go through the network, call by call."""
    seen = []
    own = embedder.model.forward
    monkeypatch.setattr(embedder.model, "forward", lambda pixels, **k: seen.append(len(pixels)) or own(pixels, **k))
    return seen


def test_a_picture_is_seen_once_and_small_things_are_cut_out(folders, monkeypatch):
    embedder = load_embedder("dinov3", folders / "four", image_size=256, min_patches=4)
    seen = counted(embedder, monkeypatch)
    embedder.vectors(picture(), [WHOLE, DISC, BAR])
    assert seen == [1]
    embedder.vectors(picture(), [WHOLE, SPECK, DISC, SPECK])
    assert seen == [1, 1, 2]


def test_a_vector_is_the_mean_of_the_patches_inside(folders):
    embedder = load_embedder("dinov3", folders / "four", image_size=128)
    image = picture(128, 64)
    left = thing(0, 0, 64, 64, (64, 128))
    tokens = embedder._tokens([image], [64, 128])[0].reshape(4, 8, -1)
    expected = torch.nn.functional.normalize(tokens[:, :4].flatten(0, 1).mean(0), dim=-1)
    torch.testing.assert_close(embedder.vectors(image, [left])[0], expected)


def test_patch_and_registers_are_read_from_the_config(folders):
    assert load_embedder("dinov3", folders / "four").extra == 5
    assert load_embedder("dinov3", folders / "none").extra == 1
    assert load_embedder("dinov2", folders / "v2r").extra == 4
    assert load_embedder("dinov2", folders / "v2").patch == 14
    wrong = load_embedder("dinov3", folders / "four")
    wrong.extra = 1
    with pytest.raises(InputError, match="tokens for"):
        wrong.vectors(picture(), [WHOLE])


def test_the_same_thing_elsewhere_has_nearly_the_same_vector_and_another_has_not():
    embedder = load_embedder("pocket", pocket.path("judge"))
    small, large = picture(), picture(240, 160)
    one = embedder.vectors(small, [DISC, BAR])
    two = embedder.vectors(large, [thing(24, 32, 72, 80, (160, 240)), thing(144, 64, 72, 32, (160, 240))])
    similar = one @ two.T
    assert similar.diagonal().min() > 0.9
    assert (similar - torch.eye(2) * 2).max() < similar.diagonal().min() - 0.05


def test_windows_are_square_and_hold_the_thing():
    for own in (DISC, BAR, SPECK, WHOLE):
        left, top, right, bottom = window(own)
        x, y, width, height = own.box
        assert right - left == bottom - top
        assert left <= x
        assert top <= y
        assert right >= x + width
        assert bottom >= y + height


def test_what_is_no_embedder_is_refused(folders, tmp_path):
    with pytest.raises(InputError, match="give dinov3, dinov2, clip or pocket"):
        load_embedder("resnet", folders / "clip")
    with pytest.raises(InputError, match="not one of"):
        load_embedder("dinov3", folders / "clip")
    with pytest.raises(InputError, match="no model of transformers"):
        load_embedder("dinov3", tmp_path)
    assert isinstance(load_embedder("dinov3", folders / "v2"), PatchEmbedder)
