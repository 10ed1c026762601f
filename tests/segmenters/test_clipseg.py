"""CLIPSeg behind the protocol, with random weights."""

import copy

import pytest
import torch
from tiny_segmenters import picture, tiny_clipseg

from lit_insert.errors import InputError
from lit_insert.segmenters.base import Segmenter
from lit_insert.segmenters.clipseg import ClipSegSegmenter
from lit_insert.segmenters.loading import load_segmenter

PROMPTS = ["red circle", "a striped blue ring", "a dog on the sofa"]


@pytest.fixture(scope="module")
def parts():
    return tiny_clipseg()


@pytest.fixture(scope="module")
def segmenter(parts):
    return ClipSegSegmenter(*parts)


def test_it_keeps_the_protocol(segmenter):
    assert isinstance(segmenter, Segmenter)


def test_maps_equal_the_librarys_own_forward(parts, segmenter):
    model, processor = parts
    image = picture(64, 64)
    inputs = processor(text=PROMPTS, images=[image] * 3, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits
    torch.testing.assert_close(segmenter.logits(image, PROMPTS), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(segmenter.heatmaps(image, PROMPTS), expected.sigmoid(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(120, 80), (31, 200), (1, 1)])
def test_maps_have_the_pictures_size(segmenter, size):
    maps = segmenter.heatmaps(picture(*size), PROMPTS)
    assert maps.shape == (3, size[1], size[0])
    assert maps.dtype == torch.float32
    assert maps.min() >= 0
    assert maps.max() <= 1
    assert segmenter.heatmaps(picture(*size), []).shape == (0, size[1], size[0])


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_chunks_change_nothing_and_the_picture_is_seen_once(parts, chunk, monkeypatch):
    # in float64: CPUs differ in how they round a batch of another size
    model, processor = copy.deepcopy(parts[0]).double(), parts[1]
    segmenter = ClipSegSegmenter(model, processor)
    expected = segmenter.heatmaps(picture(), PROMPTS)
    seen = []
    own = model.clip.vision_model.forward
    monkeypatch.setattr(model.clip.vision_model, "forward", lambda *a, **k: seen.append(1) or own(*a, **k))
    other = ClipSegSegmenter(model, processor, chunk=chunk)
    features = other.encode(picture())
    torch.testing.assert_close(other.heatmaps(features, PROMPTS), expected, atol=1e-6, rtol=0)
    other.instances(features, PROMPTS)
    assert len(seen) == 1


def test_instances_are_the_parts_of_the_map(segmenter):
    image = picture()
    heat = segmenter.heatmaps(image, PROMPTS)
    middle = float(heat.median())
    for own, found in zip(heat, segmenter.instances(image, PROMPTS, threshold=0, mask_threshold=middle), strict=True):
        covered = sum(torch.from_numpy(thing.mask).int() for thing in found)
        assert torch.equal(covered, (own > middle).int())
        assert own.max() <= found.presence + 1e-6
        assert [t.score for t in found] == sorted((t.score for t in found), reverse=True)


def test_a_prompt_that_is_too_long_is_named(segmenter):
    with pytest.raises(InputError, match="longer than the 32 tokens"):
        segmenter.heatmaps(picture(), ["red circle " * 20])


def test_save_and_load(parts, segmenter, tmp_path):
    for part in parts:
        part.save_pretrained(tmp_path)
    again = load_segmenter("clipseg", tmp_path)
    torch.testing.assert_close(
        again.heatmaps(picture(), PROMPTS), segmenter.heatmaps(picture(), PROMPTS), atol=1e-6, rtol=0
    )
    (tmp_path / "processor_config.json").unlink(missing_ok=True)
    (tmp_path / "preprocessor_config.json").unlink(missing_ok=True)
    with pytest.raises(InputError, match="no CLIPSeg processor"):
        load_segmenter("clipseg", tmp_path)
