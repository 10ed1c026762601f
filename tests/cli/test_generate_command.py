import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_generator import SIZE, tiny_pipeline

from lit_insert.cli.infer import main
from lit_insert.consistency.sources import ModelFacts
from lit_insert.images import load_image


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generators")
    tiny_pipeline().save_pretrained(folder / "plain")
    tiny_pipeline(num_classes=3, facts=ModelFacts(labels=[0, 2])).save_pretrained(folder / "labelled")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    return end.value.code


def record(folder="out"):
    return json.loads(Path(folder, "results.json").read_text())


def refused(capsys, *arguments):
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.strip().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert not Path("out").exists()
    return lines[0]


def test_pictures_grid_npz_and_report(models):
    command = ["generate", "--model", models / "labelled", "--num_images", "5", "--steps", "2", "--seed", "3"]
    assert run(*command, "--class_label", "2,0", "--batch_size", "2", "--npz", "--report", "out/page.html") == 0
    names = [f"{i:05d}.png" for i in range(5)]
    made = ["grid.png", "page.html", "results.json", "samples.npz"]
    assert sorted(p.name for p in Path("out").iterdir()) == sorted(names + made)
    arrays = np.load("out/samples.npz")
    assert arrays["arr_0"].shape == (5, SIZE, SIZE, 3)
    assert arrays["arr_0"].dtype == np.uint8
    assert arrays["arr_1"].tolist() == [2, 0, 2, 0, 2]
    assert np.array_equal(arrays["arr_0"][4], np.asarray(load_image("out/00004.png")))
    results = record()["results"]
    assert [r["output"] for r in results] == names
    assert [(r["seed"], r["class_label"]) for r in results[:2]] == [(3, 2), (4, 0)]
    assert record()["settings"]["sigmas"] == pytest.approx([80.0, 2.24044])
    assert Path("out/page.html").read_text().count("<img") == 5


def test_one_of_many_can_be_made_again(models):
    assert run("generate", "--model", models / "plain", "--num_images", "3", "--ts", "0,22,39", "--output", "many") == 0
    again = ["--num_images", "1", "--seed", "2", "--sigmas", "80,1.3823664", "--output", "one"]
    assert run("generate", "--model", models / "plain", *again) == 0
    pair = [np.asarray(load_image(f)).astype(int) for f in ("many/00002.png", "one/00000.png")]
    assert np.abs(pair[0] - pair[1]).max() <= 1
    assert "class_label" not in record("one")["results"][0]


def test_mistakes_of_generate(models, capsys):
    command = ["generate", "--model", models / "labelled"]
    assert "class 1 was never trained; the model knows 0, 2" in refused(capsys, *command, "--class_label", "1")
    assert "not numbers" in refused(capsys, *command, "--sigmas", "80;1")
    assert "in 0..39" in refused(capsys, *command, "--ts", "0,50")
    assert "label dropout" in refused(capsys, *command, "--guidance_scale", "2")
    assert "one of num_inference_steps, sigmas and ts" in refused(capsys, *command, "--steps", "2", "--sigmas", "80")
    assert "model 'nowhere'" in refused(capsys, "generate", "--model", "nowhere")
    Path("file").write_text("")
    assert "is a file" in refused(capsys, *command, "--output", "file")


@pytest.fixture
def photo():
    rng = np.random.default_rng(0)
    Path("photos").mkdir()
    for name, size in (("a", (30, 22)), ("b", (17, 40))):
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(f"photos/{name}.png")
        hole = np.zeros((size[1], size[0]), np.uint8)
        hole[4:12, 3:11] = 255
        Path("masks").mkdir(exist_ok=True)
        Image.fromarray(hole).save(f"masks/{name}.png")
    return "photos/a.png"


def test_inpaint_a_folder(models, photo):
    command = ["edit", "--model", models / "plain", "--task", "inpaint", "--image", "photos", "--mask", "masks"]
    assert run(*command, "--steps", "2", "--start", "surround", "--report", "out/page.html") == 0
    for name in "ab":
        before, after, hole = (np.asarray(load_image(f"{d}/{name}.png")) for d in ("photos", "out", "masks"))
        assert np.array_equal(before[hole[..., 0] == 0], after[hole[..., 0] == 0])
        assert (before[hole[..., 0] > 0] != after[hole[..., 0] > 0]).any()
    assert [r["output"] for r in record()["results"]] == ["a.png", "b.png"]
    assert load_image("out/grid.png").width > 200
    assert Path("out/page.html").read_text().count("<img") == 6


@pytest.mark.parametrize(
    ("task", "more", "size"), [("colorize", [], (30, 22)), ("superres", ["--patch", "4"], (16, 12))]
)
def test_other_edits_to_a_file(models, photo, task, more, size):
    command = ["edit", "--model", models / "plain", "--task", task, "--image", photo, "--steps", "1", *more]
    assert run(*command, "--output", "made.png") == 0
    assert load_image("made.png").size == size
    assert len(json.loads(Path("made.json").read_text())["results"][0]["sigmas"]) == 1


def test_several_results_and_interpolation(models, photo):
    command = ["edit", "--model", models / "plain", "--steps", "1"]
    assert run(*command, "--task", "sdedit", "--image", photo, "--num_images", "2", "--sigma_start", "1.5") == 0
    first, second = (np.asarray(load_image(f"out/a_{k}.png")) for k in range(2))
    assert not np.array_equal(first, second)
    ends = ["--image", photo, "--to", "photos/b.png", "--frames", "3", "--output", "way"]
    assert run(*command, "--task", "interpolate", *ends) == 0
    assert [r["output"] for r in record("way")["results"]] == ["a_0.png", "a_1.png", "a_2.png"]
    assert run(*command, "--task", "interpolate", "--frames", "2", "--output", "noises") == 0


def test_one_bad_photo_does_not_lose_the_others(models, photo, capsys):
    Path("photos/broken.png").write_bytes(b"")
    command = ["edit", "--model", models / "plain", "--task", "sdedit", "--image", "photos", "--steps", "1"]
    assert run(*command) == 1
    assert "failed: photos/broken.png" in capsys.readouterr().err
    assert len(record()["results"]) == 2


def test_mistakes_of_edit(models, photo, capsys):
    command = ["edit", "--model", models / "plain", "--image", photo]
    assert "give --task" in refused(capsys, *command)
    assert "inpaint needs --mask" in refused(capsys, *command, "--task", "inpaint")
    assert "sdedit takes no --mask" in refused(capsys, *command, "--task", "sdedit", "--mask", "masks")
    assert "no option patch" in refused(capsys, *command, "--task", "sdedit", "--patch", "2")
    assert "does not divide" in refused(capsys, *command, "--task", "superres", "--patch", "3")
    assert "would overwrite an input" in refused(capsys, *command, "--task", "sdedit", "--output", "photos")
    assert "give --image" in refused(capsys, "edit", "--task", "colorize")
    assert "go together" in refused(capsys, *command, "--task", "interpolate")
    assert "give two files" in refused(
        capsys, "edit", "--task", "interpolate", "--image", "photos", "--to", "photos/a.png"
    )
