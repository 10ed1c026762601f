import json
from pathlib import Path

import numpy as np
import pytest
from mask_samples import SQUARE, write_coco

from lit_insert.data.coco_masks import CocoMasks, CocoRules, annotation_mask, polygon_mask, read_coco
from lit_insert.data.loading import BrokenSample
from lit_insert.errors import InputError
from lit_insert.rle import encode_rle


def inside(points, y, x):
    """Even-odd rule for one point, by its own loop."""
    odd = False
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
            odd = not odd
    return odd


@pytest.mark.parametrize("seed", range(4))
def test_pixels_whose_centres_are_inside(seed):
    generator = np.random.default_rng(seed)
    points = (generator.random((7, 2)) * [44, 34] - 2).round(2)  # crosses itself and the border
    flat = points.ravel().tolist()
    mask = polygon_mask([flat], 30, 40)
    expected = [[inside(points.tolist(), y + 0.5, x + 0.5) for x in range(40)] for y in range(30)]
    assert np.array_equal(mask, np.array(expected, np.uint8))


def test_polygons_of_one_object_unite():
    mask = polygon_mask([[0, 0, 4, 0, 4, 4, 0, 4], [2, 2, 6, 2, 6, 6, 2, 6]], 8, 8)
    assert mask.sum() == 16 + 16 - 4
    assert mask.dtype == np.uint8


def test_the_three_forms_mean_the_same():
    mask = polygon_mask(SQUARE, 48, 64)
    packed = encode_rle(mask)
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    for form in (SQUARE, packed, {"size": [48, 64], "counts": counts}):
        assert np.array_equal(annotation_mask(form, 48, 64), mask)


@pytest.mark.parametrize(
    "segmentation",
    [
        "text",
        {"size": [48, 64]},
        {"size": [4, 4], "counts": [16]},
        {"size": [48, 64], "counts": [5, 5]},
        {"size": [48, 64], "counts": "~~"},
        [[1, 2, 3]],
        [[1, 2, 3, 4]],
        [[0, 0, "a", 1, 2, 3]],
        [[0, 0, float("nan"), 1, 2, 3]],
    ],
)
def test_broken_segmentations(segmentation):
    with pytest.raises(InputError):
        annotation_mask(segmentation, 48, 64)


def names(source):
    return [source.picture(i).id for i in range(len(source))]


def test_masks_unite_the_objects_of_a_picture(tmp_path):
    source = CocoMasks(*write_coco(tmp_path))
    assert names(source) == ["1", "2", "3"]
    one, two, crowded = (source.picture(i) for i in range(3))
    assert one.image.shape == (3, 48, 64)
    assert one.mask.sum() == 400
    assert (one.mask[10:30, 10:30] == 1).all()
    assert two.mask.sum() == 400 + 200
    assert (crowded.mask[:, :10] == 255).all()
    assert (crowded.mask[10:30, 10:30] == 1).all()  # an object in front of the crowd is an object
    assert (crowded.mask[:, 30:] == 0).all()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"crowd": "exclude"}, ["1", "2"]),
        ({"categories": ["dog"]}, ["4"]),
        ({"categories": ["person", "dog"]}, ["1", "2", "3", "4"]),
        ({"max_count": 1}, ["1", "3"]),
        ({"min_area": 0.15}, ["2"]),
        ({"max_area": 0.15}, ["1", "3"]),
        ({"negatives": 1.0}, ["1", "2", "3", "4", "5"]),
        ({"limit": 1}, ["1"]),
    ],
)
def test_rules_choose_the_pictures(tmp_path, options, expected):
    assert names(CocoMasks(*write_coco(tmp_path), **options)) == expected


def test_negatives_are_empty_and_chosen_by_name(tmp_path):
    source = CocoMasks(*write_coco(tmp_path), negatives=1.0)
    assert source.picture(4).mask.sum() == 0
    rules = [CocoRules(negatives=part) for part in (0.2, 0.6)]
    annotations, _ = write_coco(tmp_path / "more", annotations=[], images=60)
    few, many = ({p.name for p in read_coco(Path(annotations)) if not rule.refuses(p)} for rule in rules)
    assert few < many
    assert 4 <= len(few) <= 22
    assert 25 <= len(many) <= 47


def test_an_area_that_is_not_given_is_measured(tmp_path):
    annotation = {"id": 1, "image_id": 2, "category_id": 1, "segmentation": SQUARE}
    path, _ = write_coco(tmp_path, [annotation])
    assert read_coco(Path(path))[1].area == pytest.approx(400 / (48 * 64))


def test_a_picture_of_another_size_is_broken(tmp_path):
    path, images = write_coco(tmp_path)
    data = json.loads(Path(path).read_text())
    data["images"][0]["width"] = 65
    Path(path).write_text(json.dumps(data))
    with pytest.raises(BrokenSample, match="is 64x48, annotated as 65x48"):
        CocoMasks(path, images).picture(0)


def test_a_broken_annotation_breaks_its_picture_only(tmp_path):
    broken = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": {"size": [48, 64], "counts": [3]}, "area": 9}
    good = {"id": 2, "image_id": 2, "category_id": 1, "segmentation": SQUARE, "area": 400}
    source = CocoMasks(*write_coco(tmp_path, [broken, good]))
    with pytest.raises(BrokenSample, match="run lengths add up to 3"):
        source.picture(0)
    assert source.picture(1).mask.sum() == 400


def test_names_stay_in_their_folder(tmp_path):
    path, images = write_coco(tmp_path)
    data = json.loads(Path(path).read_text())
    data["images"][0]["file_name"] = "../../secret.png"
    Path(path).write_text(json.dumps(data))
    with pytest.raises(InputError, match="leads out of"):
        CocoMasks(path, images).picture(0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("{}", "no COCO instances file"),
        ('{"categories": [], "images": [], "annotations": []}', "no category person"),
        ('{"categories": [{"id": 1, "name": "person"}], "images": [], "annotations": []}', "no picture of person"),
        ("[1, 2]", "no COCO instances file"),
    ],
)
def test_files_of_another_kind(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=message):
        CocoMasks(str(tmp_path / "a.json"), str(tmp_path))


def test_missing_files(tmp_path):
    path, images = write_coco(tmp_path)
    with pytest.raises(InputError, match=r"none\.json: no such file"):
        CocoMasks(str(tmp_path / "none.json"), images)
    with pytest.raises(InputError, match="no such folder"):
        CocoMasks(path, str(tmp_path / "none"))
    with pytest.raises(InputError, match="no category cat; there are dog, person"):
        CocoMasks(path, images, categories=["cat"])


@pytest.mark.parametrize("options", [{"crowd": "keep"}, {"min_area": 0.5, "max_area": 0.1}, {"negatives": 2}])
def test_impossible_rules(options):
    with pytest.raises(InputError):
        CocoRules(**options)
