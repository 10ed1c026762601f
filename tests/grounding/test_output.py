"""The files of a result."""

import contextlib
import copy
import io
import json

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_grounding import StubLoaders, rectangles

from lit_insert.errors import InputError
from lit_insert.grounding import exports, page
from lit_insert.grounding.output import as_record, load_result, same_settings, save_result, schema
from lit_insert.grounding.pipeline import SegmentPipeline
from lit_insert.grounding.settings import settings_from
from lit_insert.rle import decode_rle

BOXES = {
    "one/a.png": [("red", (5, 5, 30, 20)), ("blue", (60, 10, 25, 40)), ("red", (90, 60, 20, 20))],
    "two/a.png": [("green", (20, 30, 40, 22))],
    "made.png": [("green", (70, 50, 44, 24)), ("red", (10, 60, 33, 22)), ("white", (2, 2, 9, 9))],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("output")
    files = [folder / name for name in BOXES]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        rectangles(BOXES[str(file.relative_to(folder))]).save(file)
    settings = settings_from({"entities": {"backend": "noun-phrases"}})
    own = SegmentPipeline(settings, loaders=StubLoaders(settings))
    result = own("", files[:2], files[2:], labels="red box;blue box;green box;white box")
    record = save_result(result, settings, folder / "out" / "segmentation.json")
    return folder, settings, result, record


def test_the_file_keeps_its_schema(run):
    folder, _, _, record = run
    validator = jsonschema.Draft202012Validator(schema())
    validator.check_schema(schema())
    written = json.loads((folder / "out/segmentation.json").read_text())
    assert written == record
    validator.validate(written)
    broken = copy.deepcopy(written)
    broken["annotations"][0]["area"] = 0
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(broken)


def test_annotations_are_exact(run):
    _, settings, _, record = run
    images = {i["id"]: i for i in record["images"]}
    assert len({a["id"] for a in record["annotations"]}) == len({a["uid"] for a in record["annotations"]}) == 7
    for a in record["annotations"]:
        mask = decode_rle(a["segmentation"]["counts"], a["segmentation"]["size"])
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        expected = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
        assert a["bbox"] == [int(v) for v in expected]
        assert a["area"] == mask.sum() > 0
        image = images[a["image_id"]]
        assert a["bbox"][0] + a["bbox"][2] <= image["width"]
        assert a["bbox"][1] + a["bbox"][3] <= image["height"]
        assert settings.segmenter.threshold < a["score"] <= 1


def test_paths_are_relative_and_vectors_lie_beside(run):
    folder, _, _, record = run
    assert [i["file_name"] for i in record["images"]] == ["../one/a.png", "../two/a.png", "../made.png"]
    assert record["embeddings"] == "segmentation.safetensors"
    assert (folder / "out" / record["embeddings"]).is_file()


def test_pairings_name_ids(run):
    _, _, _, record = run
    roles = {i["id"]: i["role"] for i in record["images"]}
    role = {a["id"]: roles[a["image_id"]] for a in record["annotations"]}
    label = {a["id"]: a["category_id"] for a in record["annotations"]}
    assert len(record["pairings"]) == 3
    for p in record["pairings"]:
        assert role[p["generated_id"]] == "generated"
        if p["accepted"]:
            assert role[p["context_id"]] == "context"
            assert label[p["generated_id"]] == label[p["context_id"]]
            assert p["similarity"] > 0.99
        else:
            assert p["context_id"] is None
            assert p["similarity"] is None
    assert sum(p["accepted"] for p in record["pairings"]) == 2


def test_a_round_trip(run):
    folder, settings, result, record = run
    again, read = load_result(folder / "out/segmentation.json")
    assert read == record
    assert same_settings(read, settings) == []
    changed = settings_from({"entities": {"backend": "noun-phrases"}, "nms": {"iou": 0.1}, "pairing": {"threshold": 0}})
    assert same_settings(read, changed) == ["nms.iou"]
    for mine, theirs in zip(result.pictures, again.pictures, strict=True):
        assert mine.path == theirs.path
        assert [t.label for t in mine.things] == [t.label for t in theirs.things]
        assert [t.instance.rle for t in mine.things] == [t.instance.rle for t in theirs.things]
        assert all(torch.equal(a.vector, b.vector) for a, b in zip(mine.things, theirs.things, strict=True))


def test_what_is_no_result_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_result(tmp_path / "none.json")
    for text in ("{", "{}", "[]", '{"info": {"schema": "coco"}}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(InputError, match=r"x\.json"):
            load_result(tmp_path / "x.json")


def test_cocos_own_tools_read_it(run):
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    folder, _, _, record = run
    (file,) = exports.write_exports(record, ["coco-results"], folder / "out")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO(str(folder / "out/segmentation.json"))
        found = truth.loadRes(str(file))
        for kind in ("bbox", "segm"):
            score = evaluation.COCOeval(truth, found, kind)
            score.evaluate()
            score.accumulate()
            score.summarize()
            assert score.stats[0] == pytest.approx(1.0)
    for a in record["annotations"]:
        assert np.array_equal(truth.annToMask(a), decode_rle(a["segmentation"]["counts"], a["segmentation"]["size"]))


def test_run_lengths_equal_pycocotools_byte_for_byte():
    mask_tools = pytest.importorskip("pycocotools.mask")
    from lit_insert.rle import encode_rle

    generator = np.random.default_rng(0)
    shapes = [(1, 1), (1, 9), (9, 1), (13, 21), (32, 32)]
    for i in range(2000):
        mask = generator.random(shapes[i % 5]) < generator.random()
        mine = encode_rle(mask)
        theirs = mask_tools.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert mine["counts"] == theirs["counts"].decode()
        assert mine["size"] == theirs["size"]
        assert np.array_equal(decode_rle(mine["counts"], mine["size"]), mask)


def test_label_maps(run):
    folder, _, _, record = run
    files = exports.write_exports(record, ["label-map"], folder / "out")
    assert [f.name for f in files] == ["a.png", "a-2.png", "made.png"]
    labels = np.asarray(Image.open(files[0]))
    assert labels.shape == (96, 128)
    assert labels[10, 10] == 1
    assert labels[20, 70] == 2
    assert sorted(np.unique(labels)) == [0, 1, 2]


def test_yolo_outlines(run):
    folder, _, _, record = run
    files = exports.write_exports(record, ["yolo-seg"], folder / "out")
    assert files[0].read_text().splitlines() == ["red box", "blue box", "green box", "white box"]
    lines = [line.split() for line in files[1].read_text().splitlines()]
    assert sorted(line[0] for line in lines) == ["0", "0", "1"]
    first = np.array(lines[0][1:], float).reshape(-1, 2) * (128, 96)
    assert first.min(0) == pytest.approx([5.5, 5.5], abs=1e-3)
    assert first.max(0) == pytest.approx([34.5, 24.5], abs=1e-3)


def test_an_unknown_export_is_named(run):
    with pytest.raises(InputError, match="voc"):
        exports.write_exports(run[3], ["voc"], run[0])


def test_the_originals_layout(run):
    folder, settings, result, _ = run
    record = as_record(result, settings, folder / "legacy")
    files = exports.write_legacy(record, result, folder / "legacy" / "seg.json", 0.5)
    assert [f.name for f in files] == ["seg.json", "seg_embeddings.json"]
    whole, vectors = (json.loads(f.read_text()) for f in files)
    assert list(whole) == [
        *("text_prompt", "detected_entities", "contextual_images", "generated_image"),
        *("box_format", "coordinate_unit", "object_pairings"),
    ]
    first = whole["contextual_images"][0]
    assert first["image_dimensions"] == {"width": 128, "height": 96}
    assert {o["object_id"] for o in first["objects"]} == {"red box_0", "red box_1", "blue box_0"}
    box = next(o for o in first["objects"] if o["object_id"] == "blue box_0")
    assert box["bbox"] == [60, 10, 85, 50]
    pairing = {p["generated_label"]: p for p in whole["object_pairings"]}
    assert pairing["green box"]["best_contextual_object_id"] == "green box_0"
    assert pairing["green box"]["source_image"] == "../two/a.png"
    assert pairing["green box"]["paired"]
    assert not pairing["white box"]["paired"]
    assert all(len(o["dino_embedding"]) == 3 for o in vectors["generated_image"]["objects"])


def test_pictures_and_page(run):
    folder, _, result, _ = run
    files = page.save_annotated(result, folder / "seen")
    assert [f.name for f in files] == [
        "contextual_0_annotated.jpg",
        "contextual_1_annotated.jpg",
        "generated_annotated.jpg",
    ]
    shown = np.asarray(Image.open(files[0]).convert("RGB")).astype(int)
    assert shown.shape == (96, 128, 3)
    assert np.abs(shown[26:40, 66:80] - (30, 40, 220)).max(-1).min() > 8  # tinted
    paint = page.colours(result)
    made = {t.label: paint[id(t)] for _, t in result.of("generated")}
    source = {t.label: paint[id(t)] for _, t in result.of("context")}
    assert made["green box"] == source["green box"]
    text = page.write_page(result, folder / "seen" / "report.html").read_text()
    assert text.count("match: ") == 2
    assert "no match; nearest" in text
    assert "green box" in text
    assert "<script" not in text
