import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_text
import torch

from lit_insert.cli.infer import main
from lit_insert.cli.synthesize_jobs import file_stem
from lit_insert.images import load_image
from lit_insert.mifo.artifact import MifoArtifact

PROMPT = "a photo of <asset0> and <asset1>"
BOXES = ["--box", "<asset0>:0,0.2,0.5,1", "--box", "<asset1>:0.5,0,1,0.8"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthesis")
    tiny_text.write_model(folder / "base")
    draw = torch.Generator().manual_seed(5)
    tokens = {f"<asset{i}>": torch.randn(32, generator=draw) for i in range(2)}
    MifoArtifact(base=str(folder / "base"), tokens=tokens).save(folder / "learned")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in ("synthesize", *arguments)])
    return end.value.code


def refused(capsys, *arguments):
    assert run(*arguments) == 2
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert not Path("out").exists()
    return lines[0]


def record(folder="out"):
    return json.loads(Path(folder, "results.json").read_text())


def test_pictures_grid_record_and_report(models):
    more = ["--num_images", "3", "--seed", "4", "--batch_size", "2", "--report", "out/page.html"]
    assert run("--model", models / "learned", "--prompt", PROMPT, *BOXES, *more) == 0
    names = [f"{i:05d}.png" for i in range(3)]
    assert sorted(p.name for p in Path("out").iterdir()) == [*names, "grid.png", "page.html", "results.json"]
    results = record()["results"]
    assert [(r["output"], r["seed"], r["prompt"]) for r in results] == [(n, 4 + i, PROMPT) for i, n in enumerate(names)]
    assert results[0]["boxes"][1] == {"subject": "<asset1>", "box": [0.5, 0, 1, 0.8]}
    assert results[0]["guidance_loss"][1] < results[0]["guidance_loss"][0]
    assert record()["settings"]["num_inference_steps"] == 4
    assert Path("out/page.html").read_text().count("<img") == 4  # three pictures and the layout
    Path("boxes.yaml").write_text("- [0, .2, .5, 1]\n- [.5, 0, 1, .8]\n")
    again = ["--boxes", "boxes.yaml", "--seed", "6", "--output", "again"]
    assert run("--model", models / "learned", "--prompt", PROMPT, *again) == 0
    pair = [np.asarray(load_image(f)).astype(int) for f in ("out/00002.png", "again/00000.png")]
    assert np.abs(pair[0] - pair[1]).max() <= 1


def test_several_prompts_with_boxes_of_their_own(models):
    jobs = [
        {"prompt": "a red circle/../x", "boxes": {"red circle": [0, 0, 0.5, 0.5]}},
        {"prompt": "A red circle, x", "boxes": {"red circle": [0.5, 0.5, 1, 1]}},
        "a blue square",
    ]
    Path("prompts.json").write_text(json.dumps(jobs))
    flags = ["--steps", "2", "--end_tokens", "nowhere", "--separate_words"]
    assert run("--model", models / "base", "--prompts", "prompts.json", "--no_guidance", *flags) == 0
    assert [r["output"] for r in record()["results"]] == [
        "a-red-circle-x_00000.png",
        "a-red-circle-x-2_00000.png",
        "a-blue-square_00000.png",
    ]
    assert [len(r["boxes"]) for r in record()["results"]] == [1, 1, 0]
    assert all(Path("out", r["output"]).is_file() for r in record()["results"])


def test_the_original_options_mean_what_they_meant(models):
    (Path("Model_Ours")).mkdir()
    (Path("Model_Ours") / "toy car").symlink_to(models / "learned")
    Path("boxes.json").write_text("[[0, 0.2, 0.5, 1], [0.5, 0, 1, 0.8]]")
    command = ["--model_id", "toy car", "--prompt", PROMPT, "--boxes", "boxes.json", "--batch_size", "2"]
    command += ["--subject_token_indices", "[[4], [6]]", "--output_path", "output", "--steps", "2", "--no_guidance"]
    assert run(*command) == 0
    assert run(*command, "--seed", "9") == 0
    folder = Path("output/sample_toy_car")
    assert sorted(p.name for p in folder.glob("?.png")) == ["0.png", "1.png", "2.png", "3.png"]
    named = [arg for arg in command if arg not in ("--subject_token_indices", "[[4], [6]]")]
    assert run(*named, "--output_path", "named") == 0
    same = [np.asarray(load_image(f)) for f in (folder / "0.png", "named/sample_toy_car/0.png")]
    assert np.array_equal(*same)


def test_a_layout_needs_no_model_and_no_torch():
    script = (
        "import sys\nfrom lit_insert.cli.infer import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules\n"
    )
    layout = ["synthesize", "--prompt", PROMPT, *BOXES, "--boxes_only", "layout.png", "--width", "96"]
    for arguments in (layout, ["synthesize", "--help"]):
        subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True)
    assert load_image("layout.png").size == (96, 96)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --prompt or --prompts"),
        (["--prompt", "a", "--prompts", "f"], "not both"),
        (["--prompt", PROMPT, *BOXES[:2]], "has <asset1>, for which there is no box"),
        (["--prompt", PROMPT, *BOXES, "--box", "dog:0,0,1,1"], "'dog' has a box but is not in the prompt"),
        (["--prompt", PROMPT, *BOXES[:2], "--box", "<asset1>:0,0,1,1.1"], "outside the picture"),
        (["--prompt", PROMPT, *BOXES, "--boxes", "b.json"], "--boxes or --box, not both"),
        (["--prompt", PROMPT, "--boxes", "none.json"], "none.json: No such file"),
        (["--prompt", PROMPT, *BOXES, "--subject_token_indices", "[4]"], "such as [[4],[6]]"),
        (["--prompt", PROMPT, *BOXES, "--subject_token_indices", "[[4]]"], "2 boxes for 1 lists"),
        (["--prompt", PROMPT, "--subject_token_indices", "[[4]]"], "give --boxes or --box too"),
        (["--prompts", "none.txt"], "none.txt: No such file"),
        (["--prompt", PROMPT, "--boxes_only", "x.png"], "there are no boxes"),
        (["--prompt", "a", "--step_size", "3"], "not two numbers"),
        (["--prompt", "a", "--model", "nowhere"], "model 'nowhere'"),
    ],
)
def test_mistakes_answer_before_anything_is_loaded(arguments, message, capsys):
    assert message in refused(capsys, *arguments)


def test_mistakes_that_only_the_model_knows(models, capsys):
    model = ["--model", models / "learned"]
    assert "<asset7>, which the model does not know" in refused(capsys, *model, "--prompt", "<asset7>")
    assert "the model takes 16" in refused(capsys, *model, "--prompt", "a " * 20)
    Path("p.txt").write_text("a red circle\na photo of <asset9>\n")
    assert "'a photo of <asset9>': the prompt has <asset9>" in refused(capsys, *model, "--prompts", "p.txt")


def test_names_are_safe():
    assert file_stem("A photo of <asset0>, on/the beach!") == "a-photo-of-asset0-on-the-beach"
    assert file_stem("../..") == "prompt"
    assert len(file_stem("word " * 50)) <= 60
    assert file_stem("x" * 200) == "x" * 60
