"""SAM 3 behind the protocol, with random weights."""

import numpy as np
import pytest
import torch
from tiny_segmenters import picture, tiny_sam3
from transformers import Sam3ImageProcessor, Sam3Processor
from transformers.models.sam3.modeling_sam3 import Sam3ImageSegmentationOutput

from lit_insert.errors import InputError
from lit_insert.rle import encode_rle
from lit_insert.segmenters import sam3
from lit_insert.segmenters.base import Segmenter
from lit_insert.segmenters.loading import load_segmenter
from lit_insert.segmenters.sam3 import RawInstances, Sam3Segmenter

PROMPTS = ["red circle", "a striped blue ring", "dog", "the sofa", "cup"]


@pytest.fixture(scope="module")
def parts():
    return tiny_sam3()


@pytest.fixture(scope="module")
def segmenter(parts):
    return Sam3Segmenter(*parts)


def answer(queries: int = 20, seed: int = 0, side: int = 16) -> RawInstances:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(1, queries, 2, 2, generator=generator).sort(2).values
    return RawInstances(
        scores=torch.rand(1, queries, generator=generator),
        boxes=corners.flatten(2) * 1.2 - 0.1,
        masks=torch.randn(1, queries, side, side, generator=generator) * 3,
        presence=torch.ones(1),
        semantic=torch.zeros(1, side, side),
    )


def test_it_keeps_the_protocol(segmenter):
    assert isinstance(segmenter, Segmenter)


def test_the_vision_encoder_runs_once_and_chunks_change_nothing(parts, monkeypatch):
    model, processor = parts
    seen = []
    own = model.vision_encoder.forward
    monkeypatch.setattr(model.vision_encoder, "forward", lambda *a, **k: seen.append(1) or own(*a, **k))
    image = picture()
    together = {}
    for chunk in (1, 4, len(PROMPTS)):
        segmenter = Sam3Segmenter(model, processor, chunk=chunk)
        features = segmenter.encode(image)
        answers = list(segmenter.raw(features, PROMPTS))
        segmenter.instances(features, PROMPTS)
        together[chunk] = [torch.cat([getattr(a, k) for a in answers]) for k in ("scores", "boxes", "masks")]
    assert len(seen) == 3  # once for each encode above
    for chunk in (4, len(PROMPTS)):
        for mine, single in zip(together[chunk], together[1], strict=True):
            torch.testing.assert_close(mine, single, atol=1e-5, rtol=1e-4)


def test_answers_equal_the_librarys_own_forward(parts, segmenter):
    model, processor = parts
    inputs = processor(images=picture(), text="red circle", return_tensors="pt")
    with torch.no_grad():
        expected = model(**{k: v for k, v in inputs.items() if k != "original_sizes"})
    (got,) = segmenter.raw(picture(), ["red circle"])
    torch.testing.assert_close(got.boxes, expected.pred_boxes, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got.masks, expected.pred_masks, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got.scores, expected.pred_logits.sigmoid() * expected.presence_logits.sigmoid())


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_equal_the_librarys_masks(seed):
    raw = answer(seed=seed)
    height, width = 37, 53
    output = Sam3ImageSegmentationOutput(
        pred_logits=raw.scores.logit(), pred_boxes=raw.boxes, pred_masks=raw.masks, presence_logits=None
    )
    (expected,) = Sam3ImageProcessor().post_process_instance_segmentation(
        output, threshold=0.4, mask_threshold=0.6, target_sizes=[(height, width)]
    )
    found = sam3._pick(raw, 0, (height, width), 0.4, 0.6, 100)
    order = expected["scores"].argsort(descending=True)
    assert len(found) == len(order) > 3
    for thing, k in zip(found, order.tolist(), strict=True):
        mask = expected["masks"][k].numpy()
        assert thing.rle == encode_rle(mask)
        assert thing.area == mask.sum() > 0
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        tight = columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
        assert thing.box == tuple(int(v) for v in tight)
        left, top, right, bottom = thing.model_box
        assert 0 <= left <= right <= width
        assert 0 <= top <= bottom <= height


def test_boxes_scale_in_float32_whatever_the_network_computes_in(parts):
    exact = torch.tensor([0.123456, 0.234567, 0.876543, 0.765432])
    raw = answer(4)
    raw.boxes[:] = exact
    raw.scores[:] = 0.9
    things = sam3._pick(raw, 0, (3000, 4000), 0.5, 0.5, 1)
    expected = exact.double() * torch.tensor([4000.0, 3000.0, 4000.0, 3000.0])
    assert torch.allclose(torch.tensor(things[0].model_box).double(), expected, atol=0.01)
    assert (exact.bfloat16().float() * 4000 - exact * 4000).abs().max() > 1  # what it would be otherwise


def test_a_network_in_bfloat16_gives_float32(parts):
    model, processor = tiny_sam3()
    segmenter = Sam3Segmenter(model.bfloat16(), processor)
    (raw,) = segmenter.raw(picture(), ["dog"])
    assert raw.boxes.dtype == raw.scores.dtype == raw.masks.dtype == torch.float32
    assert segmenter.heatmaps(picture(), ["dog"]).dtype == torch.float32


def test_instances_are_sorted_capped_and_above_the_threshold(segmenter):
    found = segmenter.instances(picture(), PROMPTS, threshold=0.05, max_instances=3)
    assert [f.prompt for f in found] == PROMPTS
    for own in found:
        scores = [thing.score for thing in own]
        assert scores == sorted(scores, reverse=True)
        assert len(own) <= 3
        assert all(0.05 < s <= own.presence + 1e-6 for s in scores)
        assert all(thing.mask.shape == (80, 120) for thing in own)
    assert not any(segmenter.instances(picture(), PROMPTS, threshold=0.99))


def test_memory_of_many_large_masks_stays_small(monkeypatch):
    resource = pytest.importorskip("resource")
    raw = answer(40, side=32)
    raw.masks = torch.nn.functional.avg_pool2d(raw.masks, 9, stride=1, padding=4) * 9
    raw.scores[:] = 0.9
    sam3._pick(raw, 0, (300, 400), 0.5, 0.5, 40)
    stretched = []
    own = sam3._stretch
    monkeypatch.setattr(sam3, "_stretch", lambda maps, size: stretched.append(len(maps)) or own(maps, size))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = sam3._pick(raw, 0, (3000, 4000), 0.5, 0.5, 40)
    assert len(found) == 40
    assert stretched == [2] * 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 0.5 * 2**20  # kilobytes


def test_heatmaps_have_the_pictures_size(segmenter):
    maps = segmenter.heatmaps(picture(50, 70), PROMPTS)
    assert maps.shape == (5, 70, 50)
    assert maps.min() >= 0
    assert maps.max() <= 1


def test_a_prompt_that_is_too_long_is_named(segmenter):
    with pytest.raises(InputError, match="longer than the 32 tokens"):
        segmenter.instances(picture(), ["dog", "red circle " * 20])


def test_a_processor_of_another_size_is_refused(parts):
    model, processor = parts
    other = Sam3Processor(Sam3ImageProcessor(size={"height": 56, "width": 56}), processor.tokenizer)
    with pytest.raises(InputError, match="112x112"):
        Sam3Segmenter(model, other)


def test_save_and_load(parts, segmenter, tmp_path):
    for part in parts:
        part.save_pretrained(tmp_path)
    again = load_segmenter("sam3", tmp_path)
    mine, theirs = (s.instances(picture(), ["dog"], threshold=0.05)[0] for s in (segmenter, again))
    assert [t.rle for t in mine] == [t.rle for t in theirs]
    assert np.allclose([t.score for t in mine], [t.score for t in theirs])
