import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_fusion import scene, space, thing, transformer

from lit_insert.cli.infer import main
from lit_insert.fusion.pipeline import FusionPipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fusion") / "model"
    FusionPipeline(space(), transformer()).save_pretrained(folder)
    return folder


@pytest.fixture
def files(tmp_path):
    for i in range(3):
        scene(48, 36, seed=i).save(tmp_path / f"scene{i}.png")
    thing().save(tmp_path / "disc.png")
    return tmp_path


def fuse(*args, status=0):
    with pytest.raises(SystemExit) as end:
        main(["fuse", *map(str, args)])
    assert end.value.code == status


def pixels(path):
    return np.asarray(Image.open(path))


def test_one_object_and_a_record(files, model, capsys):
    out = files / "out"
    fuse(
        *("--base_image", files / "scene0.png", "--replace_image", files / "disc.png", "--target_area", "bottom_left"),
        *("--scale_factor", 0.5, "--strengths", 0.8, 0.3, "--steps", 5, "--model", model, "--output", out),
        *("--save_artifacts", "--report", out / "page.html"),
    )
    assert {p.name for p in out.iterdir()} == {
        *("scene0_t0.8.png", "scene0_t0.3.png", "scene0.safetensors", "scene0.json", "results.json", "page.html")
    }
    record = json.loads((out / "results.json").read_text())
    entry = record["results"][0]
    assert [r["strength"] for r in entry["results"]] == [0.8, 0.3]
    assert all(r["background_max_abs_diff"] == 0 for r in entry["results"])
    assert entry["placements"][0]["window"][0] >= 4
    before, after = pixels(files / "scene0.png"), pixels(out / "scene0_t0.3.png")
    assert before.shape == after.shape
    assert np.array_equal(before[:10], after[:10])
    assert "1 of 1 fused" in capsys.readouterr().out


def test_stages_apart_make_the_same(files, model):
    common = ("--steps", 4, "--model", model, "--output")
    what = ("--base_image", files / "scene0.png", "--replace_image", files / "disc.png", "--seed", 3)
    fuse(*what, *common, files / "whole")
    fuse(*what, "--stage", 1, *common, files / "parts")
    assert (files / "parts/scene0_fused.png").is_file()
    assert not (files / "parts/scene0.png").exists()
    fuse("--stage", 2, "--input", files / "parts", *common, files / "parts")
    assert np.array_equal(pixels(files / "whole/scene0.png"), pixels(files / "parts/scene0.png"))


def test_jobs_are_resumed_and_one_failure_stops_nothing(files, model, capsys):
    (files / "objects.json").write_text(json.dumps([{"path": "disc.png", "text": "disc", "base_scale": 0.4}]))
    Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save(files / "nothing.png")
    jobs = [
        {"name": "a", "base_image": "scene0.png", "objects": "objects.json"},
        {"name": "b", "base_image": "scene1.png", "replace_image": "nothing.png"},
        {"name": "c", "base_image": "scene2.png", "replace_image": "disc.png", "scale_factor": 0.5, "seed": 4},
    ]
    (files / "jobs.yaml").write_text(yaml.safe_dump({"jobs": jobs}))
    call = ("--jobs", files / "jobs.yaml", "--steps", 4, "--model", model, "--output", files / "out")
    fuse(*call, status=1)
    told = capsys.readouterr()
    assert "failed: b:" in told.err
    assert "the mask is empty" in told.err
    first = (files / "out/a.png").read_bytes()
    stamp = (files / "out/a.png").stat().st_mtime_ns
    thing().save(files / "nothing.png")
    fuse(*call)
    assert "1 of 3 fused, 2 were there already" in capsys.readouterr().out
    assert (files / "out/a.png").stat().st_mtime_ns == stamp
    assert len(json.loads((files / "out/results.json").read_text())["results"]) == 3
    # alone, in another order, it is the same
    (files / "jobs.yaml").write_text(yaml.safe_dump(jobs[::-1]))
    fuse(*call[:-1], files / "again")
    assert (files / "again/a.png").read_bytes() == first
    fuse(*call, "--seed", 9)
    assert (files / "out/a.png").read_bytes() != first
    assert (files / "out/c.png").read_bytes() == (files / "again/c.png").read_bytes(), "its own seed comes first"


def test_a_folder_of_scenes(files, model):
    folder = files / "scenes"
    folder.mkdir()
    for i in range(2):
        (files / f"scene{i}.png").rename(folder / f"scene{i}.png")
    fuse("--base_image", folder, "--replace_image", files / "disc.png", "--steps", 3, "--model", model,
         "--output", files / "out")  # fmt: skip
    assert {p.name for p in (files / "out").glob("*.png")} == {"scene0.png", "scene1.png"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "give --base_image"),
        (("--base_image", "scene0.png"), "--replace_image, or --objects"),
        (("--base_image", "no.png", "--replace_image", "disc.png"), "--base_image no.png: no such file"),
        (("--base_image", "scene0.png", "--replace_image", "disc.png", "--target_area", "middle"), "'middle': unknown"),
        (("--base_image", "scene0.png", "--replace_image", "disc.png", "--strength", "2"), "--strength 2"),
        (("--base_image", "scene0.png", "--replace_image", "disc.png", "--scale_factor", "0"), "base_scale is 0"),
        (("--base_image", "scene0.png", "--replace_image", "disc.png", "--model", "nowhere.x"), "no such folder"),
        (("--base_image", "scene0.png", "--objects", "bad.json"), "the key 'path' is missing"),
        (("--base_image", "scene0.png", "--objects", "bad.json", "--target_text", "x"), "leave out --target_text"),
        (("--jobs", "bad.yaml"), "job 0: no key is called 'scene'"),
        (("--jobs", "none.yaml"), "no such file"),
        (("--jobs", "twice.yaml"), "two jobs are called 'scene0'"),
        (("--jobs", "bad.yaml", "--base_image", "x"), "leave out --base_image"),
        (("--stage", "2"), "--stage 2 needs --input"),
        (("--stage", "2", "--input", "none.pt"), "--input none.pt: no such file"),
        (("--stage", "2", "--input", "code.pt", "--model", "MODEL"), "loading them runs code"),
        (("--overlap_mode", "both"), "invalid choice: 'both'"),
    ],
)
def test_mistakes_take_one_line(files, model, monkeypatch, capsys, args, message):
    monkeypatch.chdir(files)
    (files / "bad.json").write_text('[{"text": "disc"}]')
    (files / "bad.yaml").write_text("- {scene: a.png}")
    entry = "- {base_image: scene0.png, replace_image: disc.png}\n"
    (files / "twice.yaml").write_text(entry * 2)
    torch.save({"fused_features": fuse}, files / "code.pt")
    fuse(*[str(model) if a == "MODEL" else a for a in args], status=2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert message in lines[-1]
    assert not any("Traceback" in line for line in lines)


def test_missing_weights_take_one_line(files, model, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "transformer/diffusion_pytorch_model.safetensors").unlink()
    fuse("--base_image", files / "scene0.png", "--replace_image", files / "disc.png", "--model", broken,
         "--output", files / "o", status=2)  # fmt: skip
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert "transformer" in line
    assert "no model" in line


def test_help_imports_nothing_heavy(root):
    code = (
        "import sys\nfrom lit_insert.cli.infer import main\ntry:\n    main(['fuse', '--help'])\n"
        "except SystemExit:\n    assert not {'torch', 'cv2', 'diffusers'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True).returncode == 0
