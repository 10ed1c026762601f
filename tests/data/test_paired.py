import pytest
import torch
from mask_samples import told

from lit_insert.data.mask_source import MaskedPicture
from lit_insert.data.paired import Augmentation, PairedTransform
from lit_insert.errors import InputError
from lit_insert.letterbox import restore

STILL = {"flip": 0.0, "rotation": 0.0, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "grayscale": 0}
GEOMETRY = Augmentation(**(STILL | {"zoom": (0.7, 2.0), "flip": 0.5, "rotation": 25.0, "blur": 0}))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def bounds(mask):
    y, x = torch.nonzero(mask[0] == 1, as_tuple=True)
    return int(y.min()), int(x.min()), int(y.max()) + 1, int(x.max()) + 1


def test_the_size_of_the_canvas_is_left_bit_for_bit():
    picture = told(32, 48, (3, 4, 20, 21))
    sample = PairedTransform((32, 48))(picture)
    assert torch.equal(sample["image"], picture.image.float() / 127.5 - 1)
    assert torch.equal(sample["mask"][0], picture.mask.float())
    assert sample["image"].dtype == sample["mask"].dtype == torch.float32


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (250, 333), (10, 17)])
def test_letterboxed_pictures_go_back_to_where_they_came_from(shape):
    height, width = shape
    picture = told(height, width, (height // 4, width // 5, 3 * height // 4, 4 * width // 5))
    transform = PairedTransform((96, 96))
    sample = transform(transform.shrink(picture))
    assert sample["image"].shape == (3, 96, 96)
    back = restore((sample["mask"] == 1).float(), height, width)[0] >= 0.5
    union = (back | (picture.mask == 1)).sum()
    assert (back & (picture.mask == 1)).sum() / union > 0.93
    outside = sample["mask"][0] == 255
    assert (sample["image"][:, outside] == 0).all()  # mid-grey
    shown = (~outside).nonzero()
    extent = (shown.max(0).values - shown.min(0).values + 1).tolist()
    assert extent[0] / extent[1] == pytest.approx(height / width, rel=0.03)


def test_picture_and_mask_move_together():
    picture = told(90, 120, (20, 30, 70, 75))
    transform = PairedTransform((64, 64), GEOMETRY)
    shown = 0
    for seed in range(40):
        sample = transform(picture, generator(seed))
        seen = sample["mask"][0] != 255
        wrong = ((sample["image"][0] > 0) != (sample["mask"][0] == 1)) & seen
        # At the rim of the picture white fades into grey; elsewhere the two are the same lines of pixels.
        assert wrong.sum() <= 0.004 * seen.sum(), seed
        shown += int((sample["mask"] == 1).any())
    assert shown > 35


def test_aspect_is_kept_on_canvases_of_any_shape():
    how = Augmentation(**(STILL | {"zoom": (0.5, 1.2), "blur": 0}))
    transform = PairedTransform((64, 96), how)
    for seed in range(20):
        y0, x0, y1, x1 = bounds(transform(told(200, 200, (60, 60, 140, 140)), generator(seed))["mask"])
        assert abs((y1 - y0) - (x1 - x0)) <= 1


@pytest.mark.parametrize(("zoom", "side"), [(1.0, 20), (2.0, 40), (0.5, 10)])
def test_zoom_scales_objects(zoom, side):
    how = Augmentation(**(STILL | {"zoom": (zoom, zoom), "blur": 0}))
    sizes = set()
    for seed in range(8):
        mask = PairedTransform((64, 64), how)(told(128, 128, (44, 44, 84, 84)), generator(seed))["mask"]
        y0, x0, y1, x1 = bounds(mask)
        sizes |= {y1 - y0, x1 - x0}
    assert max(sizes) <= side + 1
    assert max(sizes) >= side - 1


def test_flips_are_half_of_all():
    how = Augmentation(**(STILL | {"zoom": (1.0, 1.0), "flip": 0.5, "blur": 0}))
    transform = PairedTransform((32, 32), how)
    left = [bounds(transform(told(32, 32, (4, 2, 20, 10)), generator(s))["mask"])[1] == 2 for s in range(100)]
    assert 30 < sum(left) < 70


def test_only_the_generator_decides():
    picture = MaskedPicture(torch.randint(256, (3, 80, 60), dtype=torch.uint8), told(80, 60, (9, 9, 50, 50)).mask, "x")
    transform = PairedTransform((48, 48), Augmentation(blur=1.0, grayscale=0.3))
    before = torch.get_rng_state()
    first, again, other = (transform(picture, generator(s)) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["mask"], again["mask"])
    assert not torch.equal(first["image"], other["image"])
    assert first["image"].abs().max() <= 1


@pytest.mark.parametrize(("padding", "outside"), [("ignore", 255), ("background", 0)])
def test_padding_and_what_is_ignored_anyway(padding, outside):
    picture = told(20, 40, (0, 0, 20, 10))
    picture.mask[:, 20:30] = 255
    mask = PairedTransform((40, 40), padding=padding)(picture)["mask"][0]
    assert (mask[:10] == outside).all()
    assert (mask[30:] == outside).all()
    assert (mask[10:30, 20:30] == 255).all()
    assert (mask[10:30, :10] == 1).all()
    assert (mask[10:30, 30:] == 0).all()


def test_shrinking_loses_nothing_that_would_be_seen():
    big = told(600, 800, (100, 200, 500, 600))
    big.mask[:, 700:] = 255
    transform = PairedTransform((64, 64), GEOMETRY)
    small = transform.shrink(big)
    assert tuple(small.mask.shape) == (96, 128)  # letterboxed 48x64, times the largest zoom
    assert transform.shrink(small) is small
    assert set(small.mask.unique().tolist()) == {0, 1, 255}
    for seed in range(5):
        one, other = (transform(p, generator(seed)) for p in (big, small))
        assert (one["mask"] != other["mask"]).float().mean() < 0.03
        assert (one["image"] - other["image"]).abs().mean() < 0.04


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"zoom": (2.0, 1.0)}, "zoom is"),
        ({"zoom": (0.0, 1.0)}, "zoom is"),
        ({"flip": 1.5}, "flip is 1.5"),
        ({"hue": 0.7}, "hue is 0.7"),
        ({"rotation": -1}, "rotation is -1"),
    ],
)
def test_impossible_augmentations(options, message):
    with pytest.raises(InputError, match=message):
        Augmentation(**options)


def test_impossible_canvases():
    with pytest.raises(InputError, match="image_size"):
        PairedTransform((0, 64))
    with pytest.raises(InputError, match="padding is 'white'"):
        PairedTransform((64, 64), padding="white")
