import numpy as np
import pytest
import torch
from PIL import Image
from tiny_fusion import Oracle, autoencoder, scene, seeded, space, thing, transformer

from lit_insert.errors import InputError
from lit_insert.fusion.artifact import FusionArtifact
from lit_insert.fusion.objects import FusionObject, FusionSettings
from lit_insert.fusion.pipeline import FusionPipeline
from lit_insert.fusion.sampling import job_noise

EVERYWHERE = Oracle(
    thing=lambda y, x: ((y - 0.5) ** 2 + (x - 0.5) ** 2 < 0.1).float(), the_wall=lambda y, x: x**4 + 0 * y
)


@pytest.fixture(scope="module")
def pipe():
    return FusionPipeline(space(), transformer(), segmenter=EVERYWHERE)


def objects(**options):
    return [FusionObject(thing(), "thing", **{"base_scale": 0.6, **options})]


def test_an_object_comes_into_the_scene(pipe):
    photo = scene(60, 44)
    out = pipe(photo, objects(target_area="top_left"), strength=0.3, num_inference_steps=10, seed=1)
    assert out.image.size == photo.size
    before, after = np.asarray(photo), np.asarray(out.image)
    changed = np.argwhere((before != after).any(-1))
    assert len(changed)
    assert changed[:, 0].max() < 36
    assert changed[:, 1].max() < 45
    report = out.reports[0]
    assert report.background_max_abs_diff == 0
    assert report.steps == 3
    assert 0 < report.changed_area < 0.7
    assert out.artifact.placements[0]["window"][1] == 0
    assert set(out.memory) == {"segment", "place", "encode", "refine", "decode"}
    assert all(m["process_mb"] > 0 for m in out.memory.values())


@pytest.mark.parametrize("scaling", ["pixel", "latent"])
@pytest.mark.parametrize("backdrop", ["scene", "black"])
def test_the_core_is_the_object_and_the_rest_the_scene(pipe, scaling, backdrop):
    how = FusionSettings(scaling=scaling, backdrop=backdrop, feather=0)
    made = pipe.place(scene(), objects(base_scale=1.0), settings=how)
    new = made.union > 0
    assert new.any()
    assert torch.equal(made.fused[:, ~new], made.base[:, ~new])
    assert not torch.allclose(made.fused[:, new], made.base[:, new], atol=0.1)
    assert set(made.union.unique().tolist()) == {0.0, 1.0}
    if scaling == "pixel" and backdrop == "scene":
        window = made.placements[0]["window"]
        assert window[2] * 4 >= 32 * 0.6 * 0.9
        again = pipe._space(torch.device("cpu"))
        canvas_mean = again.encode(torch.zeros(1, 3, 32, 32))
        assert canvas_mean.shape[1:] == made.fused.shape


def test_words_place_it(pipe):
    made = pipe.place(scene(48, 48), objects(location_prompt="on the wall", base_scale=0.4))
    _, left, _, width = made.placements[0]["window"]
    assert left + width == 8
    assert made.placements[0]["found"]
    inside = pipe.place(
        scene(48, 48), objects(location_prompt="on the wall", target_area="bottom_left", base_scale=0.4)
    )
    top, left, _, width = inside.placements[0]["window"]
    assert left + width <= 4
    assert top >= 4
    assert left + width == 4, "as far right as the area goes"


def test_objects_keep_off_each_other(pipe):
    both = [FusionObject(thing(), "thing", base_scale=0.5, location_prompt="on the wall", z_order=z) for z in (1, 0)]
    made = pipe.place(scene(48, 48), both)
    assert [p["object"] for p in made.placements] == [1, 0], "the lower is painted first"
    assert all(p["overlap"] == 0 for p in made.placements)
    assert made.placements[0]["window"] != made.placements[1]["window"]
    crowded = [FusionObject(thing(), "thing", base_scale=1.6, target_area="center") for _ in range(2)]
    assert "no free place" in pipe.place(scene(48, 48), crowded).notes[0]


def test_sides_areas_and_what_to_avoid():
    ring = lambda y, x: ((y - 0.5).abs() < 0.15) & ((x - 0.4).abs() < 0.15)  # noqa: E731
    pipe = FusionPipeline(space(), segmenter=Oracle(the_ring=ring, thing=lambda y, x: (x < 0.6).float() + 0 * y))
    photo = scene(48, 48)

    def window(settings=None, **options):
        made = pipe.place(photo, [FusionObject(thing(), "x", base_scale=0.35, **options)], settings=settings)
        assert made.placements[0]["overlap"] == 0
        return made.placements[0]["window"]

    top, left, height, _ = window(location_prompt="right of the ring")
    assert left >= 4
    assert 2 <= top <= 5
    assert window(location_prompt="above the ring")[0] + height <= 3
    assert window(location_prompt="in the bottom left corner")[:2] == [8 - height, 0]
    kept = window(FusionSettings(avoid=("thing",)), target_area="anywhere")
    assert kept[1] >= 5


def test_a_phrase_that_is_nowhere_is_told():
    cold = FusionPipeline(space(), segmenter=Oracle(moon=lambda y, x: 0.01 + 0 * x * y))
    made = cold.place(scene(), [FusionObject(thing(), "thing", location_prompt="moon", base_scale=0.5)])
    assert "no 'moon' was found in the scene" in made.notes[0]


def test_the_segmenter_cuts_out_what_has_no_alpha(pipe):
    plain = Image.new("RGB", (30, 30), (200, 30, 30))
    made = pipe.place(scene(), [FusionObject(plain, "thing", base_scale=0.5)])
    assert made.placements[0]["cells"] > 0
    given = np.zeros((30, 30), np.float32)
    given[5:25, 10:15] = 1
    slim = pipe.place(scene(), [FusionObject(plain, mask=given, base_scale=0.8)]).placements[0]
    assert slim["window"][2] > slim["window"][3]
    nothing = FusionPipeline(space(), segmenter=Oracle(thing=lambda y, x: 0.1 + 0 * x * y))
    with pytest.raises(InputError, match="no 'thing' was found in it"):
        nothing.place(scene(), [FusionObject(plain, "thing")])
    with pytest.raises(InputError, match="say what the object is"):
        pipe.place(scene(), [FusionObject(plain)])


def test_size_follows_both_scales(pipe):
    def sides(factor, **options):
        made = pipe.place(scene(48, 48), objects(**options), settings=FusionSettings(global_scale=factor))
        return made.placements[0]["scale"]

    assert sides(0.5, base_scale=1.0) == pytest.approx(0.5)
    assert sides(0.5, base_scale=0.5) == pytest.approx(0.25)
    adaptive = {"use_adaptive_scale": True, "location_prompt": "on the wall"}
    # both factors still count where the room decides
    assert sides(0.5, base_scale=1.0, **adaptive) == pytest.approx(
        0.5 * sides(1.0, base_scale=1.0, **adaptive), abs=0.04
    )
    assert sides(1.0, base_scale=0.5, **adaptive) == pytest.approx(
        0.5 * sides(1.0, base_scale=1.0, **adaptive), abs=0.04
    )


def test_reranking_takes_the_best_and_is_seeded(pipe):
    def judged(seed, scorer):
        chooser = FusionPipeline(space(), segmenter=EVERYWHERE, clip_model=scorer)
        how = FusionSettings(rerank=True)
        one = FusionObject(thing(), "thing", base_scale=0.3, jitter=0.5, num_candidates=6, target_area="anywhere")
        return chooser.place(scene(48, 48), [one], seed=seed, settings=how)

    asked = []

    def bright(picture, words):
        asked.append(words)
        return float(picture.mean())

    made = judged(3, bright)
    assert set(asked) == {"thing"}
    assert len(made.placements[0]["scores"]) > 2
    assert torch.equal(made.fused, judged(3, bright).fused)
    assert judged(4, bright).placements[0]["scores"] != made.placements[0]["scores"]


def test_strengths_files_and_batches_do_not_touch_each_other(pipe, tmp_path):
    photos = [scene(48, 32, seed=i) for i in range(3)]
    made = [pipe.place(p, objects(target_area="center"), seed=i) for i, p in enumerate(photos)]

    def run(order, strengths, batch_size=1):
        out = pipe.refine(
            [made[i] for i in order],
            base_images=[photos[i] for i in order],
            strengths=strengths,
            num_inference_steps=6,
            batch_size=batch_size,
        )
        return {
            (i, t): np.asarray(p)
            for i, o in zip(order, out, strict=True)
            for t, p in zip(strengths, o.images, strict=True)
        }

    first = run([0, 1, 2], [0.3, 0.8])
    torch.manual_seed(1234)
    for other in (run([2, 0, 1], [0.8, 0.3]), run([1, 0, 2], [0.8, 0.3])):
        assert all(np.array_equal(first[k], other[k]) for k in first)
    batched = run([0, 1, 2], [0.3], batch_size=3)
    assert all(np.abs(first[k].astype(int) - v.astype(int)).max() <= 1 for k, v in batched.items())
    made[0].seed = 99
    assert not np.array_equal(run([0], [0.8])[0, 0.8], first[0, 0.8])


def test_both_stages_apart_are_the_same(pipe, tmp_path):
    file = tmp_path / "scene.png"
    scene().save(file)
    whole = pipe(str(file), objects(), strength=0.4, num_inference_steps=5, seed=2)
    path = pipe.place(str(file), objects(), seed=2).save(tmp_path / "one")
    apart = pipe.refine([FusionArtifact.load(path)], strengths=[0.4], num_inference_steps=5)[0]
    assert np.array_equal(np.asarray(whole.image), np.asarray(apart.image))
    assert pipe.preview(whole.artifact).size == (32, 32)


def test_no_change_without_background_hold_differs(pipe):
    photo = scene(48, 32)
    free = pipe(photo, objects(), strength=0.6, num_inference_steps=5, hold_background=False)
    held = pipe(photo, objects(), strength=0.6, num_inference_steps=5)
    assert free.reports[0].background_max_abs_diff == 0, "the composite protects it all the same"
    assert not np.array_equal(np.asarray(free.image), np.asarray(held.image))


def test_a_file_of_the_original_program_is_finished(pipe, tmp_path):
    scene(40, 30).save(tmp_path / "base.png")
    union = torch.zeros(1, 1, 8, 8)
    union[..., 2:5, 2:5] = 0.7
    torch.save(
        {
            "fused_features": torch.randn(1, 64, 8, 8, generator=seeded()),
            "union_mask": union,
            "base_image": str(tmp_path / "base.png"),
        },
        tmp_path / "old.pt",
    )
    out = pipe.refine([FusionArtifact.load(tmp_path / "old.pt")], num_inference_steps=4)[0]
    assert out.image.size == (40, 30)
    assert out.reports[0].background_max_abs_diff == 0


@pytest.mark.parametrize("size", [(1, 1), (400, 20), (20, 400), (33, 57)])
def test_any_size_of_scene_and_object(pipe, size):
    out = pipe(scene(48, 32).resize(size), objects(), num_inference_steps=4)
    assert out.image.size == size
    out = pipe(
        scene(), [FusionObject(thing().resize(size).convert("RGB"), mask=np.ones(size[::-1]))], num_inference_steps=4
    )
    assert out.image.size == (48, 32)


def test_any_kind_of_picture(pipe, tmp_path):
    turned = scene(48, 32)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    turned.save(tmp_path / "jpeg.tmp.jpg")
    (tmp_path / "jpeg.tmp.jpg").rename(tmp_path / "really_jpeg.png")
    turned.convert("L").save(tmp_path / "grey.png")
    turned.convert("P").save(tmp_path / "palette.png")
    Image.fromarray(np.asarray(turned.convert("L")).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name, size in (("turned.jpg", (32, 48)), ("really_jpeg.png", (48, 32)), ("grey.png", (48, 32)),
                       ("palette.png", (48, 32)), ("deep.png", (48, 32))):  # fmt: skip
        assert pipe(str(tmp_path / name), objects(), num_inference_steps=3).image.size == size
    clear = scene().convert("RGBA")
    clear.putalpha(Image.fromarray(np.tile(np.arange(48, dtype=np.uint8) * 5, (32, 1))))
    out = pipe(clear, objects(base_scale=0.4, target_area="left"), num_inference_steps=3)
    before, after = np.asarray(clear), np.asarray(out.image)
    assert after.shape == before.shape
    assert np.array_equal(after[:, 30:], before[:, 30:]), "alpha and colours below it too"
    assert after[16, 8, 3] == 255


def test_guidance_and_classes(pipe):
    guide = FusionPipeline(space(), transformer(), transformer(1), segmenter=EVERYWHERE)
    photo, options = scene(), {"strength": 0.6, "num_inference_steps": 5}
    plain = np.asarray(pipe(photo, objects(), **options).image)
    for other in (
        pipe(photo, objects(), class_label=1, **options),
        pipe(photo, objects(), class_label=1, guidance_scale=3.0, **options),
        guide(photo, objects(), guidance_scale=1.5, **options),
    ):
        assert not np.array_equal(np.asarray(other.image), plain)
    assert np.array_equal(np.asarray(guide(photo, objects(), **options).image), plain)
    with pytest.raises(InputError, match="class_label 3: the transformer's classes are 0 to 2"):
        pipe(photo, objects(), class_label=3)
    with pytest.raises(InputError, match="needs a class_label, or a weaker"):
        pipe(photo, objects(), guidance_scale=2.0)


def test_exported_and_loaded(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    again = FusionPipeline.from_pretrained(tmp_path / "model", segmenter=EVERYWHERE)
    photo = scene()
    first, second = (p(photo, objects(), num_inference_steps=4, seed=5).image for p in (pipe, again))
    assert np.abs(np.asarray(first).astype(int) - np.asarray(second)).max() <= 1
    assert again._transformer.value is None, "let go after its stage"
    autoencoder(1).save_pretrained(tmp_path / "rae")
    parts = FusionPipeline.from_pretrained(
        None, autoencoder=tmp_path / "rae", transformer=tmp_path / "model/transformer", segmenter=EVERYWHERE
    )
    assert parts(photo, objects(), num_inference_steps=3).image.size == photo.size


def test_mistakes(pipe, tmp_path):
    with pytest.raises(InputError, match=r"strength is 1\.5"):
        pipe(scene(), objects(), strength=1.5)
    with pytest.raises(InputError, match="at least one"):
        pipe(scene(), [])
    with pytest.raises(InputError, match="no transformer"):
        FusionPipeline(space(), segmenter=EVERYWHERE)(scene(), objects())
    with pytest.raises(InputError, match="names no scene"):
        pipe.refine([pipe.place(scene(), objects())])
    with pytest.raises(InputError, match="of one with"):
        pipe.refine([pipe.place(scene(48, 32), objects())], base_images=[scene(32, 32)])
    other = pipe.place(scene(), objects())
    other.autoencoder = "dinov2-64x1-32px-8x8"
    with pytest.raises(InputError, match="made with dinov2"):
        pipe.refine([other], base_images=[scene()])
    with pytest.raises(InputError, match="no such folder"):
        FusionPipeline.from_pretrained("nowhere.at.all")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no model"):
        FusionPipeline.from_pretrained(tmp_path / "empty")
    with pytest.raises(InputError, match=r"x\.pt: no such file"):
        FusionPipeline.from_pretrained(None, transformer="x.pt")


def test_the_noise_is_the_artifacts_own():
    assert not torch.equal(job_noise(0, (2, 4, 4)), job_noise(1, (2, 4, 4)))


def test_one_call_reads_the_autoencoder_once_a_stage(pipe, tmp_path, monkeypatch):
    pipe.save_pretrained(tmp_path / "model")
    named = FusionPipeline.from_pretrained(tmp_path / "model", segmenter=EVERYWHERE)
    load, read = named._space.load, []

    def counted():
        read.append(1)
        return load()

    monkeypatch.setattr(named._space, "load", counted)
    named(scene(32, 32), objects(), strength=0.5, num_inference_steps=2)
    assert len(read) == 2, "to place and encode, and to decode"
    assert named._space.value is None
    assert not named._space.keep
