import numpy as np
import pytest
import torch
from PIL import Image
from tiny_generator import SIZE, tiny_pipeline

from lit_insert.consistency.editing import LUMINANCE
from lit_insert.consistency.photos import Square, around, as_masks, mirrored, whole
from lit_insert.consistency.sources import ModelFacts
from lit_insert.consistency.tasks import TASKS
from lit_insert.errors import InputError


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def photo(width=41, height=30, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def mask(width=41, height=30, box=(5, 8, 20, 17)):
    pixels = np.zeros((height, width), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(41, 30), (16, 16), (9, 7), (90, 20)])
@pytest.mark.parametrize("region", ["auto", "whole"])
def test_inpaint_at_any_size_leaves_the_rest_to_the_byte(pipe, size, region):
    picture = photo(*size)
    hole = mask(*size, box=(1, 2, size[0] // 2, size[1] // 2))
    result = pipe.edit("inpaint", picture, hole, seed=0, num_inference_steps=2, region=region).images[0]
    assert result.size == size
    keep = np.asarray(hole) == 0
    assert np.array_equal(np.asarray(result)[keep], np.asarray(picture)[keep])
    assert not np.array_equal(np.asarray(result)[~keep], np.asarray(picture)[~keep])


def test_inpaint_options(pipe):
    made = {
        name: np.asarray(pipe.edit("inpaint", photo(), mask(), seed=0, num_inference_steps=2, **options).images[0])
        for name, options in {
            "plain": {},
            "again": {},
            "surround": {"start": "surround"},
            "repeated": {"repeats": 2},
            "low": {"sigma_start": 1.0},
        }.items()
    }
    assert np.array_equal(made["plain"], made["again"])
    kinds = [made[k].tobytes() for k in ("plain", "surround", "repeated", "low")]
    assert len(set(kinds)) == 4


def test_masks_in_every_form(pipe, tmp_path):
    array = np.asarray(mask()) > 0
    mask().save(tmp_path / "mask.png")
    forms = [mask(), tmp_path / "mask.png", array, torch.from_numpy(array)[None], torch.from_numpy(array).float()]
    for form in forms:
        (found,) = as_masks(form)
        assert torch.equal(found[0], torch.from_numpy(array).float())
    assert len(as_masks([mask(), mask()])) == len(as_masks(torch.zeros(2, 1, 3, 3))) == 2
    for bad in (torch.zeros(3, 4, 4), torch.full((4, 4), 255.0)):
        with pytest.raises(InputError, match="mask"):
            as_masks(bad)


def test_colorize_keeps_the_photos_own_grey(pipe):
    picture = photo()
    made = pipe.edit("colorize", picture, seed=0, num_inference_steps=2, output_type="pt").images[0]
    # pictures with room to move: where a colour leaves [0,1] it is clipped, and the grey with it
    inside = ((made > 0) & (made < 1)).all(0)
    grey = [(x * torch.tensor(LUMINANCE)[:, None, None]).sum(0) for x in (made, pixels(picture))]
    assert inside.float().mean() > 0.1
    assert torch.allclose(grey[0][inside], grey[1][inside], atol=1e-5)


def pixels(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255


@pytest.mark.parametrize("patch", [2, 4])
def test_superres_of_a_small_picture_keeps_its_pixels_as_block_means(pipe, patch):
    low = photo(SIZE // patch, SIZE // patch - 1)
    made = pipe.edit("superres", low, seed=0, num_inference_steps=2, patch=patch, output_type="pt").images[0]
    assert made.shape == (3, patch * low.height, patch * low.width)
    blocks = made.unfold(1, patch, patch).unfold(2, patch, patch)
    inside = ((blocks > 0) & (blocks < 1)).all((3, 4))
    assert inside.any()
    assert torch.allclose(blocks.mean((3, 4))[inside], pixels(low)[inside], atol=1e-5)


@pytest.mark.parametrize("task", ["sdedit", "colorize"])
def test_results_have_the_photos_size_and_do_not_depend_on_company(pipe, task):
    pictures = [photo(), photo(20, 33, 1), photo(SIZE, SIZE, 2)]
    together = pipe.edit(task, pictures, seed=3, num_inference_steps=1).images
    assert [p.size for p in together] == [p.size for p in pictures]
    alone = pipe.edit(task, pictures[1], seed=4, num_inference_steps=1).images[0]
    assert np.abs(np.asarray(together[1]).astype(int) - np.asarray(alone).astype(int)).max() <= 1


def test_interpolate(pipe):
    ends = pipe(1, seed=0, output_type="pt")
    made = pipe.edit("interpolate", seed=0, frames=4, output_type="pt")
    assert len(made.images) == 4
    assert torch.allclose(made.images[0], ends.images[0], atol=1e-5)  # the first noise of the same seed
    between = pipe.edit("interpolate", [photo(), photo(seed=1)], seed=0, frames=3, sigma_start=0.5)
    assert [p.size for p in between.images] == [(SIZE, SIZE)] * 3
    with pytest.raises(InputError, match="two pictures"):
        pipe.edit("interpolate", [photo()])


def test_classes_of_edits():
    pipe = tiny_pipeline(num_classes=3, facts=ModelFacts(labels=[0, 2]))
    assert pipe.edit("sdedit", [photo(), photo()], class_labels=[0, 2], seed=0).labels == [0, 2]
    assert pipe.edit("interpolate", class_labels=2, seed=0, frames=2).labels == [2, 2]
    with pytest.raises(InputError, match="never trained"):
        pipe.edit("sdedit", photo(), class_labels=1)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("paint", {}, "no task is called 'paint'"),
        ("colorize", {"patch": 2}, "colorize has no option patch"),
        ("superres", {"patch": 3}, "does not divide the model's size, 16"),
        ("inpaint", {}, "inpaint needs a mask"),
        ("sdedit", {"mask": mask()}, "takes no mask"),
        ("inpaint", {"mask": mask(8, 8)}, "give them one size"),
        ("inpaint", {"mask": Image.new("L", (41, 30))}, "nothing in it is white"),
        ("inpaint", {"mask": [mask()] * 2}, "2 masks for 1"),
        ("inpaint", {"mask": mask(), "start": "grey"}, "start is 'grey'"),
        ("inpaint", {"mask": mask(), "repeats": 0}, "repeats is 0"),
        ("sdedit", {"sigma_start": 200.0}, "200"),
        ("sdedit", {"num_inference_steps": 0}, "num_inference_steps is 0"),
        ("sdedit", {"sigma_start": 2.0, "sigmas": [2.0]}, "either sigma_start"),
    ],
)
def test_mistakes_are_named(pipe, task, options, message):
    given = dict(options)
    with pytest.raises(InputError, match=message):
        pipe.edit(task, photo(), given.pop("mask", None), **given)
    assert set(TASKS) == {"inpaint", "colorize", "superres", "sdedit", "interpolate"}


def test_mirrored_indices():
    assert mirrored(-2, 9, 4).tolist() == [2, 1, 0, 1, 2, 3, 2, 1, 0]
    assert mirrored(-2, 3, 1).tolist() == [0, 0, 0]


def test_a_square_and_back():
    picture = torch.rand(3, 12, 7)
    square = whole(picture)
    assert (square.side, square.left) == (12, -2)
    assert torch.equal(square.put(square.take(picture, 12)), picture)
    assert torch.equal(square.crop(square.take(picture, 12)), picture)
    inner = Square(2, 3, 4, (12, 7))
    assert torch.equal(inner.put(inner.take(picture, 4)), picture[:, 3:7, 2:6])


def test_the_square_around_a_hole_stays_inside_and_shrinks_no_hole_away():
    hole = torch.zeros(1, 100, 200)
    hole[:, 90:100, 0:20] = 1
    square = around(hole, 16)
    assert (square.left, square.top, square.side) == (0, 70, 30)
    small = torch.zeros(1, 100, 200)
    small[:, 50, 60] = 1
    assert around(small, 16).side == 16
    assert whole(small).take_mask(small, 16).sum() >= 1
