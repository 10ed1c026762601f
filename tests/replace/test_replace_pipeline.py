import numpy as np
import pytest
from PIL import Image
from replace_samples import FindsStrongColours, backdrop, figure, sticker

from lit_insert.errors import InputError
from lit_insert.replace.fills import FillRequest
from lit_insert.replace.pipeline import ReplacePipeline
from lit_insert.replace.settings import ReplaceSettings

PLAIN = ReplaceSettings(colour_strength=0.0)


class PaintsGreen:
    """A model that follows everything, and remembers what it was asked."""

    name, sees_paste, follows = "green", True, frozenset({"prompt", "class_label", "start"})

    def __init__(self):
        self.request: FillRequest | None = None

    def __call__(self, request):
        self.request = request
        return np.where(request.replace_mask[..., None], np.array([0, 200, 0], np.uint8), request.image)


def array(picture):
    return np.asarray(picture).astype(int)


@pytest.mark.parametrize("region_scale", [1.2, 1.5, None])
@pytest.mark.parametrize("seamless", [False, True])
@pytest.mark.parametrize("box", [(40, 20, 60, 64), (0, 30, 22, 79), (70, 0, 95, 79)])
def test_the_background_is_untouched_to_the_bit(box, seamless, region_scale):
    photo, mask = figure(box=box)
    settings = ReplaceSettings(seamless=seamless, region_scale=region_scale)
    output = ReplacePipeline()(photo, mask=mask, cut_out=sticker(), settings=settings)
    assert output.image.size == photo.size
    kept = output.steps.alpha == 0
    assert kept.mean() > 0.3
    assert np.array_equal(np.asarray(output.image)[kept], np.asarray(photo)[kept])
    assert output.report.background_max_abs_diff == 0
    assert output.report.replaced


def test_the_person_is_gone_and_the_other_stands_there():
    photo, mask = figure()
    output = ReplacePipeline()(photo, mask=mask, cut_out=sticker(), settings=PLAIN)
    pixels = array(output.image)
    assert not (pixels[..., 0] > 150).any()
    blue = pixels[..., 2] - pixels[..., 0] > 190
    rows, columns = np.flatnonzero(blue.any(1)), np.flatnonzero(blue.any(0))
    assert abs(rows[-1] - 64) <= 4  # feet on feet
    assert abs((columns[0] + columns[-1]) / 2 - 50) <= 1.5
    assert output.report.hole_change > 20


def test_where_the_paste_does_not_reach_the_background_goes_on():
    photo, mask = figure(box=(30, 20, 66, 64))
    output = ReplacePipeline()(photo, mask=mask, cut_out=sticker(), settings=PLAIN)
    beside = (output.steps.alpha > 0) & ~(array(output.image)[..., 2] > 180)
    assert np.abs(array(output.image) - array(backdrop()))[beside].mean() < 12


def test_the_same_seed_gives_the_same_result():
    photo, mask = figure()
    first, again = (ReplacePipeline()(photo, mask=mask, cut_out=sticker(), seed=5) for _ in range(2))
    assert np.array_equal(first.image, again.image)


def test_colours_move_towards_the_photo():
    photo, mask = figure()
    far = array(ReplacePipeline()(photo, mask=mask, cut_out=sticker(), settings=PLAIN).image)
    near = array(
        ReplacePipeline()(photo, mask=mask, cut_out=sticker(), settings=ReplaceSettings(colour_strength=1.0)).image
    )
    middle = np.s_[40:50, 46:54]
    background = array(backdrop())[middle].mean((0, 1))
    assert np.abs(near[middle].mean((0, 1)) - background).sum() < np.abs(far[middle].mean((0, 1)) - background).sum()


def test_a_segmenter_finds_both_and_judges_the_result():
    photo, _ = figure()
    other, _ = figure((50, 60), (10, 10, 40, 50), (20, 30, 220))
    finder = FindsStrongColours()
    output = ReplacePipeline(segmenter=finder)(photo, cut_out=other, settings=PLAIN)
    assert finder.seen == [photo.size, other.size, photo.size]
    assert output.report.presence_before == output.report.presence_after == 1
    assert output.report.found_after > 0.9
    assert output.steps.mask_after is not None


def test_no_person_is_an_outcome_not_a_crash():
    output = ReplacePipeline(segmenter=FindsStrongColours())(backdrop(), cut_out=sticker())
    assert not output.report.replaced
    assert output.report.reason == "no person found (presence 0.00)"
    assert np.array_equal(output.image, backdrop())
    assert list(output.steps.pictures()) == ["photo", "mask"]


def test_an_empty_mask_and_a_part_that_is_not_there_are_outcomes():
    photo, mask = figure()
    empty = ReplacePipeline()(photo, mask=Image.new("L", photo.size), cut_out=sticker())
    assert empty.report.reason == "no person to replace (the mask is empty)"
    second = ReplacePipeline()(photo, mask=mask, cut_out=sticker(), settings=ReplaceSettings(components=1))
    assert second.report.reason == "no person to replace (no part of the mask is the one asked for)"


def test_a_prompt_fills_the_hole():
    photo, mask = figure()
    fill = PaintsGreen()
    output = ReplacePipeline(fill)(photo, mask=mask, prompt="a green ghost", seed=3)
    assert (fill.request.prompt, fill.request.class_label, fill.request.seed) == ("a green ghost", None, 3)
    assert fill.request.start is None
    assert np.array_equal(fill.request.replace_mask, fill.request.replace_mask.astype(bool))
    inside = np.asarray(mask) > 0
    assert np.array_equal(np.asarray(output.image)[inside], np.tile([0, 200, 0], (inside.sum(), 1)))
    assert output.report.placed is None


def test_a_reference_is_what_the_fill_begins_from():
    photo, mask = figure()
    fill = PaintsGreen()
    output = ReplacePipeline(fill)(photo, mask=mask, reference=sticker(), class_label=2, settings=PLAIN)
    start, hole = fill.request.start, fill.request.replace_mask
    assert fill.request.class_label == 2
    assert (array(start)[..., 2] > 200).sum() > 200  # the sticker is in it
    assert not (array(start)[..., 0] > 150).any()  # the person is not
    assert hole[array(start)[..., 2] > 200].all()
    assert np.array_equal(fill.request.image, output.steps.region)
    assert not (array(output.image)[..., 2] > 190).any()  # it is not pasted


def test_an_opaque_reference_without_a_person_is_used_whole():
    photo, mask = figure()
    fill = PaintsGreen()
    reference = Image.new("RGB", (30, 20), (20, 30, 220))
    output = ReplacePipeline(fill)(photo, mask=mask, reference=reference, settings=PLAIN)
    person = output.steps.region[..., 0] > 150
    assert (fill.request.start[person] == (20, 30, 220)).all()
    assert output.report.notes == ["no person found in the reference; all of it is used"]


def test_a_model_fills_around_the_paste():
    photo, mask = figure()
    fill = PaintsGreen()
    output = ReplacePipeline(fill)(photo, mask=mask, cut_out=sticker(), settings=PLAIN)
    pasted = output.steps.paste[..., 3] == 255
    assert not fill.request.replace_mask[pasted].any()
    assert np.abs(array(fill.request.image)[pasted] - (20, 30, 220)).max() < 16  # scaling rings a little
    assert not fill.request.image[..., 0].max() > 150
    assert (array(output.image)[..., 2] > 200).any()
    assert (array(output.image)[..., 1] > 190).any()


def test_a_person_that_is_the_whole_photo():
    photo = Image.new("RGB", (20, 30), "red")
    everything = Image.new("L", photo.size, 255)
    with pytest.raises(InputError, match="nothing to continue"):
        ReplacePipeline()(photo, mask=everything, cut_out=sticker())
    output = ReplacePipeline(PaintsGreen())(photo, mask=everything, prompt="")
    assert output.report.replaced
    assert output.report.seam_gradient_ratio is None


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 2), (3, 3)])
def test_tiny_photos(size):
    photo = Image.new("RGB", size, "grey")
    mask = Image.new("L", size)
    mask.putpixel((size[0] - 1, size[1] - 1), 255)
    output = ReplacePipeline(PaintsGreen())(photo, mask=mask, cut_out=sticker(), settings=ReplaceSettings(min_area=0))
    assert output.image.size == size


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({}, "say what to put in"),
        ({"cut_out": sticker(), "reference": sticker()}, "not both"),
        ({"prompt": "a ghost"}, "the opencv fill cannot follow a prompt"),
        ({"class_label": 1}, "cannot follow a class"),
        ({"reference": sticker()}, "cannot follow a reference"),
        ({"cut_out": sticker().convert("RGB")}, "no transparency, and no person found in it"),
        ({"cut_out": sticker().convert("RGB"), "cut_out_mask": Image.new("L", (9, 2))}, "mask of the cut-out: 9x2"),
        ({"cut_out": sticker(), "mask": Image.new("L", (9, 2))}, "mask: 9x2 pixels do not fit"),
    ],
)
def test_wishes_that_cannot_be_met(wish, message):
    photo, mask = figure()
    with pytest.raises(InputError, match=message):
        ReplacePipeline()(photo, **{"mask": mask, **wish})


def test_no_mask_and_no_segmenter():
    with pytest.raises(InputError, match="give a mask of the person, or a mask model"):
        ReplacePipeline()(backdrop(), cut_out=sticker())


def test_a_lying_photo_is_turned_and_keeps_its_profile(tmp_path):
    photo, mask = figure()
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "lying.jpg"
    photo.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, icc_profile=b"profile", quality=95)
    output = ReplacePipeline()(path, mask=mask, cut_out=sticker())
    assert output.image.size == photo.size
    assert output.image.info == {"icc_profile": b"profile"}
    assert output.report.background_max_abs_diff == 0
