"""The stages together, with exact stand-ins, and with tiny models."""

import gc

import numpy as np
import pytest
from PIL import Image
from tiny_grounding import ColourSegmenter, StubLoaders, rectangles, save_models
from tiny_segmenters import picture, tiny_sam3

from lit_insert.errors import InputError
from lit_insert.grounding.output import load_result, save_result
from lit_insert.grounding.pipeline import SegmentPipeline
from lit_insert.grounding.settings import settings_from

RULES = {"entities": {"backend": "noun-phrases"}}
# (colour, box) of each scene; the generated one has them rearranged, a new one, and lacks one.
CONTEXT = [
    [("red", (5, 5, 30, 20)), ("blue", (60, 10, 25, 40))],
    [("green", (20, 30, 40, 22)), ("red", (80, 60, 20, 20))],
]
GENERATED = [("green", (70, 50, 44, 24)), ("red", (10, 60, 33, 22)), ("yellow", (5, 5, 20, 20))]
PROMPT = "a red box, a blue box, a green box and a yellow box, soft lighting"


@pytest.fixture
def scenes(tmp_path):
    files = []
    for name, boxes in (("a", CONTEXT[0]), ("b", CONTEXT[1]), ("made", GENERATED)):
        rectangles(boxes).save(tmp_path / f"{name}.png")
        files.append(tmp_path / f"{name}.png")
    return files


def pipeline(**changes):
    settings = settings_from(RULES, changes)
    return SegmentPipeline(settings, loaders=StubLoaders(settings))


def test_planted_rectangles_are_found_exactly_and_paired(scenes):
    result = pipeline()(PROMPT, scenes[:2], scenes[2:])
    assert [e.text for e in result.entities] == ["red box", "blue box", "green box", "yellow box"]
    for own, truth in zip(result.pictures, [*CONTEXT, GENERATED], strict=True):
        assert own.status == "ok"
        assert {(t.label.split()[0], t.instance.box) for t in own.things} == set(truth)
        for thing in own.things:
            x, y, width, height = thing.instance.box
            assert thing.instance.area == width * height  # the mask is the whole rectangle: overlap 1
            assert thing.instance.mask[y : y + height, x : x + width].all()
    made = [t.label for _, t in result.of("generated")]
    source = [t.label for _, t in result.of("context")]
    became = {label: m.context for label, m in zip(made, result.matches, strict=True)}
    assert source[became["green box"]] == "green box"
    assert source[became["red box"]] == "red box"
    assert became["yellow box"] is None


def test_each_picture_is_encoded_once_and_queries_keep_the_negatives(scenes):
    own = pipeline()
    result = own(PROMPT, scenes[:2], scenes[2:])
    assert own.loaders.made.seen == 3
    statuses = {(p.path.stem, q.label): q.status for p in result.pictures for q in p.queries}
    assert len(statuses) == 12
    assert statuses["a", "green box"] == "absent"
    assert statuses["made", "green box"] == "ok"


def test_labels_in_place_of_the_prompt(scenes):
    result = pipeline()("", scenes[:1], labels="red;Red; the red")
    assert [(e.text, e.source) for e in result.entities] == [("red", "given")]
    assert len(result.pictures[0].things) == 1
    with pytest.raises(InputError, match="prompt: is empty"):
        pipeline()("  ", scenes[:1])


def test_nothing_named_is_a_warning(scenes):
    own = pipeline()
    result = own("soft lighting, 4k", scenes[:1])
    assert result.entities == []
    assert "names nothing" in result.warnings[0]
    assert own.loaders.loaded == []


def test_a_broken_picture_does_not_take_the_others_with_it_and_is_all_that_is_done_again(scenes, tmp_path):
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[:60])
    own = pipeline()
    result = own(PROMPT, scenes[:2], scenes[2:])
    assert [p.status for p in result.pictures] == ["ok", "error", "ok"]
    assert "b.png" in result.failed[0].error
    save_result(result, own.settings, tmp_path / "r.json")

    (tmp_path / "b.png").write_bytes(whole)
    again = pipeline()
    previous, _ = load_result(tmp_path / "r.json")
    resumed = again(PROMPT, scenes[:2], scenes[2:], previous=previous)
    assert again.loaders.made.seen == 1
    fresh = pipeline()(PROMPT, scenes[:2], scenes[2:])
    for mine, theirs in zip(resumed.pictures, fresh.pictures, strict=True):
        assert [(t.label, t.instance.rle) for t in mine.things] == [(t.label, t.instance.rle) for t in theirs.things]
    assert [m.context for m in resumed.matches] == [m.context for m in fresh.matches]


def test_a_run_that_was_stopped_goes_on_where_it_was(scenes, tmp_path):
    class Stops(ColourSegmenter):
        def encode(self, image, name=None):
            if self.seen == 2:
                raise KeyboardInterrupt
            return super().encode(image, name)

    settings = settings_from(RULES)
    first = SegmentPipeline(settings, loaders=StubLoaders(settings, Stops()))
    with pytest.raises(KeyboardInterrupt):
        first(PROMPT, scenes[:2], scenes[2:], save=lambda r: save_result(r, settings, tmp_path / "r.json"))
    previous, _ = load_result(tmp_path / "r.json")
    assert [p.status for p in previous.pictures] == ["segmented", "segmented", "pending"]
    own = pipeline()
    result = own(PROMPT, scenes[:2], scenes[2:], previous=previous)
    assert own.loaders.made.seen == 1
    assert [p.status for p in result.pictures] == ["ok"] * 3


def test_a_label_that_the_segmenter_refuses_costs_only_itself(scenes):
    settings = settings_from(RULES)
    loaders = StubLoaders(settings)
    loaders.made.refused = "blue"
    result = SegmentPipeline(settings, loaders=loaders)(PROMPT, scenes[:1])
    statuses = {q.label: q.status for q in result.pictures[0].queries}
    assert statuses == {"red box": "ok", "blue box": "error", "green box": "absent", "yellow box": "absent"}


def test_small_things_and_duplicates_go(scenes):
    assert len(pipeline(segmenter={"min_area": 700})("", scenes[:1], labels="red;blue").pictures[0].things) == 1
    assert len(pipeline(segmenter={"min_area": 0.07})("", scenes[:1], labels="red;blue").pictures[0].things) == 1
    twice = pipeline()("", scenes[:1], labels="red;red thing").pictures[0]
    assert [t.label for t in twice.things] == ["red thing"]
    assert {q.label: (q.n_found, q.n_kept) for q in twice.queries} == {"red": (1, 0), "red thing": (1, 1)}
    assert (
        len(pipeline(nms={"iou": 2.0, "containment": 2.0})("", scenes[:1], labels="red;red thing").pictures[0].things)
        == 2
    )


def test_the_second_look_drops_what_is_denied(scenes):
    class Doubts:
        def ask(self, content, only):
            assert only == ["yes", "no"]
            assert content[0]["image"].size < (128, 97)
            return "no" if "blue" in content[1]["text"] else "yes"

    own = pipeline(verify={"enabled": True})
    own.loaders.verifier = Doubts
    result = own(PROMPT, scenes[:2], scenes[2:])
    assert all(t.verified for p in result.pictures for t in p.things)
    assert "blue box" not in [t.label for p in result.pictures for t in p.things]
    assert {q.label: q.status for q in result.pictures[0].queries}["blue box"] == "absent"


def test_every_stage_is_freed_before_the_next_loads(tmp_path, monkeypatch):
    folders = save_models(tmp_path)
    picture().save(tmp_path / "a.png")
    settings = settings_from(
        {
            "entities": {"model": str(folders["qwen"]), "constrain": True, "max_new_tokens": 4},
            "segmenter": {"model": str(folders["sam3"]), "threshold": 0.01, "max_instances": 2},
            "embedder": {"model": str(folders["dinov3"]), "image_size": 64, "crop_size": 32},
            "verify": {"enabled": True, "model": str(folders["qwen"])},
        }
    )
    own = SegmentPipeline(settings)
    alive = []
    for name in ("entities", "segmenter", "verifier", "embedder"):
        load = getattr(own.loaders, name)
        monkeypatch.setattr(
            own.loaders, name, lambda *a, load=load: (gc.collect(), alive.append(own.stage.alive()), load(*a))[2]
        )
    monkeypatch.setattr("lit_insert.grounding.entities.QwenEntities.extract", lambda self, prompt: ["dog"])
    result = own("a dog", [tmp_path / "a.png"], [tmp_path / "a.png"])
    assert [name for name, _ in own.stage.history] == ["entities", "segmenter", "verify", "embedder"][: len(alive)]
    assert alive == [[]] * len(alive)
    assert len(alive) >= 3
    assert own.stage.alive() == []
    assert {p.status for p in result.pictures} == {"ok"}


def test_a_real_network_looks_once_at_each_picture_for_any_number_of_labels(tmp_path):
    from lit_insert.segmenters.sam3 import Sam3Segmenter

    picture().save(tmp_path / "a.png")
    model, processor = tiny_sam3()
    seen = []
    own = model.vision_encoder.forward
    model.vision_encoder.forward = lambda *a, **k: seen.append(1) or own(*a, **k)
    settings = settings_from({**RULES, "segmenter": {"threshold": 0.9, "chunk": 2}})
    loaders = StubLoaders(settings, Sam3Segmenter(model, processor))
    for count in (1, 5):
        labels = ";".join(f"thing {i}" for i in range(count))
        SegmentPipeline(settings, loaders=loaders)("", [tmp_path / "a.png"], labels=labels)
    assert len(seen) == 2


def test_pictures_of_every_kind(tmp_path):
    boxes = [("red", (10, 20, 30, 40))]
    base = rectangles(boxes, (128, 96))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying: turned clockwise when shown
    base.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "exif.png", exif=exif)
    alpha = base.convert("RGBA")
    alpha.putalpha(Image.fromarray(np.where(np.asarray(base)[..., 0] > 150, 255, 0).astype(np.uint8)))
    alpha.save(tmp_path / "alpha.png")
    base.quantize(16).save(tmp_path / "palette.png")
    for name in ("exif", "alpha", "palette"):
        result = pipeline()("", [tmp_path / f"{name}.png"], labels="red;white")
        found = {t.label: t.instance.box for t in result.pictures[0].things}
        assert result.pictures[0].size == (96, 128)
        assert found["red"] == boxes[0][1], name
        assert ("white" in found) == (name == "alpha")  # shows through what is transparent
    grey = (np.asarray(base.convert("L")).astype(np.uint16)) * 257
    grey[5:15, 5:15] = 65535
    Image.fromarray(grey).save(tmp_path / "deep.png")
    result = pipeline()("", [tmp_path / "deep.png"], labels="red;white")
    assert {t.label: t.instance.box for t in result.pictures[0].things} == {"white": (5, 5, 10, 10)}


def test_two_runs_are_equal(scenes, tmp_path):
    texts, vectors = [], []
    for name in ("one", "two"):
        own = pipeline()
        file = tmp_path / name / "r.json"
        save_result(own(PROMPT, scenes[:2], scenes[2:]), own.settings, file)
        texts.append([line for line in file.read_text().splitlines() if '"created"' not in line])
        vectors.append(file.with_suffix(".safetensors").read_bytes())
    assert texts[0] == texts[1]
    assert vectors[0] == vectors[1]


@pytest.mark.parametrize("kind", ["people", "subjects", "insertion"])
def test_real_photos_go_through(kind, shared_data, tmp_path):
    from tiny_segmenters import tiny_clipseg

    from lit_insert.segmenters.clipseg import ClipSegSegmenter

    files = sorted(p for p in (shared_data / kind).rglob("*") if p.suffix.lower() in (".jpg", ".png", ".jpeg"))[:3]
    if not files:
        pytest.skip(f"no photos in {shared_data / kind}")
    settings = settings_from({**RULES, "segmenter": {"threshold": 0.0, "mask_threshold": 0.5, "max_instances": 4}})
    loaders = StubLoaders(settings, ClipSegSegmenter(*tiny_clipseg()))
    result = SegmentPipeline(settings, loaders=loaders)("a red circle and a blue ring", files)
    for own in result.pictures:
        assert own.status == "ok", own.error
        for thing in own.things:
            x, y, width, height = thing.instance.box
            assert x + width <= own.size[1]
            assert y + height <= own.size[0]
            assert 0 < thing.instance.area <= width * height
