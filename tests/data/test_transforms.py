import numpy as np
import pytest
import torch
from data_samples import scene
from PIL import Image

from lit_insert.data.loading import sample_generator
from lit_insert.data.transforms import TripletTransform, change_reference, clip_processor, square_crop
from lit_insert.data.triplets import Triplet, collate_triplets
from lit_insert.errors import InputError
from lit_insert.images import to_tensor

PROCESSOR = clip_processor(32)


def triplet(number=0, shape=None, box=None):
    source, target, mask = scene(number, shape=shape, box=box)
    return Triplet(source, target, target.crop(mask.getbbox()), mask, "add it", f"toy-{number}")


def test_shapes_ranges_and_types():
    sample = TripletTransform(48, PROCESSOR)(triplet(), sample_generator(0, 0, 0))
    for key in ("source", "target"):
        assert sample[key].shape == (3, 48, 48)
        assert sample[key].dtype == torch.float32
        assert sample[key].min() >= -1
        assert sample[key].max() <= 1
    assert sample["object"].shape == (3, 32, 32)
    assert sample["mask"].shape == (1, 48, 48)
    assert set(sample["mask"].unique().tolist()) == {0.0, 1.0}
    batch = collate_triplets([sample, sample])
    assert batch["mask"].shape == (2, 1, 48, 48)
    assert batch["instruction"] == ["add it"] * 2
    assert batch["id"] == ["toy-0"] * 2


def test_evaluation_at_full_size_is_the_picture_itself():
    it = triplet()
    sample = TripletTransform(64, PROCESSOR)(it)
    assert torch.equal(sample["source"], to_tensor(it.source))
    assert torch.equal(sample["target"], to_tensor(it.target))
    assert np.array_equal(sample["mask"][0].numpy() * 255, np.asarray(it.mask))


def test_the_reference_is_preprocessed_as_at_inference():
    it = triplet()
    sample = TripletTransform(64, PROCESSOR)(it)
    assert torch.equal(sample["object"], PROCESSOR(it.object, return_tensors="pt").pixel_values[0])
    white = TripletTransform(64, PROCESSOR).reference(Image.new("RGB", (40, 40), "white"))
    assert 1.9 < white.max() <= 2.2


@pytest.mark.parametrize("shape", [(160, 160), (240, 160), (160, 200)])
def test_scene_and_target_are_augmented_alike(shape):
    transform = TripletTransform(144, PROCESSOR)
    windows = set()
    for n in range(20):
        sample = transform(triplet(3, shape), sample_generator(0, 0, n))
        outside = sample["mask"][0] == 0
        # Interpolation reaches over the edge of the object, so look a few pixels away from it.
        away = torch.nn.functional.max_pool2d(1 - outside.float()[None], 9, 1, 4)[0] == 0
        assert torch.allclose(sample["source"][:, away], sample["target"][:, away], atol=2 / 127)
        inside = torch.nn.functional.max_pool2d(outside.float()[None], 5, 1, 2)[0] == 0
        expected = torch.tensor([3, 252, 60]).float() / 127.5 - 1
        assert (sample["target"][:, inside] - expected[:, None]).abs().max() < 0.1
        windows.add(sample["source"][0, 0, 0].item())
    assert len(windows) > 6


def test_one_sample_does_not_follow_another():
    transform = TripletTransform(48, PROCESSOR)
    first, second = (transform(triplet(0, (160, 160)), sample_generator(0, 0, n)) for n in (1, 2))
    assert not torch.equal(first["source"], second["source"])
    again = transform(triplet(0, (160, 160)), sample_generator(0, 0, 1))
    assert all(torch.equal(first[k], again[k]) for k in ("source", "target", "object", "mask"))


def test_the_global_stream_has_no_part():
    transform = TripletTransform(48, PROCESSOR)
    torch.manual_seed(0)
    first = transform(triplet(), sample_generator(0, 0, 1))["object"]
    torch.manual_seed(9)
    assert torch.equal(first, transform(triplet(), sample_generator(0, 0, 1))["object"])


def test_each_augmentation_can_be_switched_off():
    still = TripletTransform(64, PROCESSOR, augment=False)(triplet(), sample_generator(0, 0, 1))
    plain = TripletTransform(64, PROCESSOR)(triplet())
    assert torch.equal(still["source"], plain["source"])
    assert not torch.equal(still["object"], plain["object"])
    kept = TripletTransform(64, PROCESSOR, augment_reference=False)(triplet(), sample_generator(0, 0, 1))
    assert torch.equal(kept["object"], plain["object"])


def test_windows_are_square_inside_and_hold_the_object():
    rng = np.random.default_rng(0)
    for _ in range(500):
        width, height = rng.integers(20, 200, 2).tolist()
        x0, y0 = rng.integers(0, width - 4), rng.integers(0, height - 4)
        x1, y1 = rng.integers(x0 + 1, width + 1), rng.integers(y0 + 1, height + 1)
        a, b, c, d = square_crop(width, height, (x0, y0, x1, y1), rng.uniform(0.9, 1), *rng.random(2))
        assert c - a == d - b
        assert 0 <= a < c <= width
        assert 0 <= b < d <= height
        side = c - a
        if x1 - x0 <= side:
            assert a <= x0
            assert x1 <= c
        if y1 - y0 <= side:
            assert b <= y0
            assert y1 <= d


def test_nothing_is_squashed():
    source, target, mask = scene(0, shape=(200, 64), box=(80, 12, 120, 52))
    sample = TripletTransform(64, PROCESSOR)(Triplet(source, target, target, mask, "", "x"))
    box = Image.fromarray(sample["mask"][0].numpy().astype(np.uint8)).getbbox()
    assert (box[2] - box[0], box[3] - box[1]) == (40, 40)


def test_a_source_and_mask_of_other_size_follow_the_target():
    it = triplet()
    it.source, it.mask = it.source.resize((32, 32)), it.mask.resize((128, 128))
    sample = TripletTransform(64, PROCESSOR)(it)
    assert sample["source"].shape == sample["target"].shape
    assert (sample["mask"] != TripletTransform(64, PROCESSOR)(triplet())["mask"]).float().mean() < 0.02


@pytest.mark.parametrize("size", [(3, 5, 5), (3, 1, 40), (3, 33, 90), (3, 300, 200)])
def test_references_of_any_size_survive_augmentation(size):
    image = torch.randint(0, 255, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    results = [change_reference(image, sample_generator(0, 0, n)) for n in range(30)]
    assert all(r.dtype == torch.uint8 and len(r) == 3 for r in results)
    assert len({tuple(r.float().mean((1, 2)).tolist()) for r in results}) > 20


def test_reference_corners_take_the_border_colour():
    image = torch.full((3, 60, 60), 200, dtype=torch.uint8)
    for n in range(20):
        assert change_reference(image, sample_generator(1, 0, n)).float().std() < 3


def test_processor_comes_from_a_folder(tmp_path):
    PROCESSOR.save_pretrained(tmp_path / "feature_extractor")
    for folder in (tmp_path, tmp_path / "feature_extractor"):
        assert clip_processor(source=folder).to_dict()["crop_size"] == PROCESSOR.to_dict()["crop_size"]
    with pytest.raises(InputError, match=r"no preprocessor_config\.json"):
        clip_processor(source=tmp_path.parent)
