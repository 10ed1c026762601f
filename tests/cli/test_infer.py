import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_insert import components, picture

from lit_insert.cli.infer import COMMANDS, main
from lit_insert.embedding_optimizer.pipeline import InsertPipeline
from lit_insert.images import load_image

QUICK = ["--num_inference_steps", "2"]


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    InsertPipeline(**components()).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """scenes/{a,b}.png of different sizes, things/{a,c}.png; the working folder."""
    monkeypatch.chdir(tmp_path)
    for folder, name, size, mode in (
        ("scenes", "a", (37, 45), "RGB"),
        ("scenes", "b", (64, 32), "RGB"),
        ("things", "a", (40, 40), "RGBA"),
        ("things", "c", (20, 50), "RGB"),
    ):
        Path(folder).mkdir(exist_ok=True)
        picture(sum(size), size, mode).save(f"{folder}/{name}.png")
    return tmp_path


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    return end.value.code


def record(folder="out"):
    return json.loads(Path(folder, "results.json").read_text())


def refused(capsys, *arguments):
    """Run, check that it fails as a mistake in the input in one line; returns the line."""
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def test_one_pair(photos, model, capsys):
    assert run("insert", "--image", "scenes/a.png", "--object", "things/c.png", "--model", model, *QUICK) == 0
    assert load_image("out/a__c.png").size == (37, 45)
    (entry,) = record()["results"]
    assert entry["output"] == "a__c.png"
    assert entry["size"] == [37, 45]
    assert entry["seed"] == 0
    assert record()["settings"]["num_inference_steps"] == 2
    assert sorted(p.name for p in Path("out").iterdir()) == ["a__c.png", "grid.png", "results.json"]
    assert "1 pictures of 1 pairs in out" in capsys.readouterr().out


def test_one_result_to_a_file(photos, model):
    command = ["insert", "--image", "scenes/a.png", "--object", "things/a.png", "--model", model, *QUICK]
    assert run(*command, "--output", "deep/result.jpg") == 0
    with Image.open("deep/result.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (37, 45))
    assert sorted(p.name for p in Path("deep").iterdir()) == ["result.jpg", "result.json"]


def test_result_does_not_depend_on_company(photos, model):
    for output, extra in (
        ("all", ["--pairs", "all", "--batch_size", "4"]),
        ("ones", ["--pairs", "all", "--batch_size", "1"]),
    ):
        arguments = ["--image", "scenes", "--object", "things", "--model", model, "--output", output]
        assert run("insert", *arguments, "--seed", "3", *extra, *QUICK) == 0
    names = sorted(p.name for p in Path("all").glob("*__*.png"))
    assert names == ["a__a.png", "a__c.png", "b__a.png", "b__c.png"]
    for name in names:
        together, alone = (np.asarray(load_image(f"{f}/{name}")).astype(int) for f in ("all", "ones"))
        assert np.abs(together - alone).max() <= 1


def test_folders_are_paired_by_name(photos, model, capsys):
    assert run("insert", "--image", "scenes", "--object", "things", "--model", model, *QUICK) == 0
    assert [r["output"] for r in record()["results"]] == ["a__a.png"]
    assert "no partner of their name, left out: scenes/b.png, things/c.png" in capsys.readouterr().err
    Path("things/a.png").unlink()
    assert "--pairs all" in refused(capsys, "insert", "--image", "scenes", "--object", "things", "--model", model)


def test_several_results_a_pair_with_grid_and_report(photos, model):
    arguments = ["--image", "scenes/b.png", "--object", "things", "--model", model, "--num-images=2"]
    extra = ["--report", "out/report.html", "--format", "jpg", "--processing_resolution", "64"]
    assert run("insert", *arguments, *extra, *QUICK) == 0
    results = record()["results"]
    assert [(r["output"], r["number"]) for r in results] == [
        ("b__a_0.jpg", 0),
        ("b__a_1.jpg", 1),
        ("b__c_0.jpg", 0),
        ("b__c_1.jpg", 1),
    ]
    assert all(Path("out", r["output"]).exists() for r in results)
    assert results[0]["processing_size"] == [92, 46]
    first, second = (np.asarray(load_image(f"out/b__c_{k}.jpg")) for k in range(2))
    assert not np.array_equal(first, second)
    assert load_image("out/grid.png").width > 4 * 96
    page = Path("out/report.html").read_text()
    assert page.count("<img") == 8
    assert "euler" not in page


def write_csv(rows, name="pairs.csv"):
    with open(name, "w", newline="") as stream:
        csv.writer(stream).writerows(rows)


def test_csv_with_own_outputs_and_seeds(photos, model):
    write_csv(
        [
            ("image", "object", "output", "seed"),
            ("scenes/a.png", "things/c.png", "x/one.png", "5"),
            ("scenes/a.png", "things/c.png", "x/two", ""),
            ("scenes/a.png", "things/c.png", "", "5"),
        ]
    )
    assert run("insert", "--csv", "pairs.csv", "--model", model, "--seed", "9", *QUICK) == 0
    assert [(r["output"], r["seed"]) for r in record()["results"]] == [
        ("x/one.png", 5),
        ("x/two.png", 9),
        ("a__c.png", 5),
    ]
    one, two, three = (np.asarray(load_image(f"out/{r['output']}")) for r in record()["results"])
    assert np.array_equal(one, three)
    assert not np.array_equal(one, two)


def test_csv_mistakes_are_named(photos, model, capsys):
    def refuse(*rows):
        write_csv(rows)
        return refused(capsys, "insert", "--csv", "pairs.csv", "--model", model)

    assert "no column is called 'object'; is 'objct' meant?" in refuse(("image", "objct"), ("a", "b"))
    assert "'ouput' is unknown; did you mean 'output'" in refuse(("image", "object", "ouput"), ("a", "b", "c"))
    assert "has no rows" in refuse(("image", "object"))
    assert "line 3 has no object" in refuse(("image", "object"), ("a", "b"), ("a", ""))
    head = ("image", "object", "output", "seed")
    assert "line 2: seed 'x' is not a whole number" in refuse(head, ("a", "b", "", "x"))
    assert "leaves the output folder" in refuse(head, ("a", "b", "../c.png", ""))
    assert "named twice" in refuse(head, ("a", "b", "c.png", ""), ("a", "b", "c.png", ""))
    assert "no suffix of a picture" in refuse(head, ("a", "b", "c.exe", ""))
    assert "no such file" in refused(capsys, "insert", "--csv", "absent.csv")
    Path("pairs.csv").write_bytes(b"\xff\xfe\x00image")
    assert "not a CSV file" in refused(capsys, "insert", "--csv", "pairs.csv")


def test_one_bad_pair_does_not_lose_the_others(photos, model, capsys):
    Path("scenes/broken.png").write_bytes(Path("scenes/a.png").read_bytes()[:60])
    Image.new("RGBA", (8, 8)).save("things/ghost.png")  # readable, but nothing in it is visible
    arguments = ["--image", "scenes", "--object", "things", "--pairs", "all", "--model", model]
    assert run("insert", *arguments, "--batch_size", "3", *QUICK) == 1
    captured = capsys.readouterr()
    assert "error: 5 of 9 pairs failed" in captured.err
    assert "broken.png: not a readable picture" in captured.err
    assert "wholly transparent" in captured.err
    assert "4 pictures of 4 pairs" in captured.out
    assert len(record()["results"]) == 4
    assert {Path(f["image"]).name + "+" + Path(f["object"]).name for f in record()["failed"]} == {
        "broken.png+a.png",
        "broken.png+c.png",
        "broken.png+ghost.png",
        "a.png+ghost.png",
        "b.png+ghost.png",
    }
    made = sorted(p.name for p in Path("out").glob("*__*"))
    assert made == ["a__a.png", "a__c.png", "b__a.png", "b__c.png"]


def test_a_single_bad_picture_writes_nothing(photos, capsys):
    Path("scenes/a.png").write_bytes(b"")
    line = refused(capsys, "insert", "--image", "scenes/a.png", "--object", "things/a.png", "--model", "a/b")
    assert "scenes/a.png: the file is empty" in line
    assert not Path("out").exists()


def test_when_all_fail_nothing_is_written(photos, model, capsys):
    for file in Path("scenes").iterdir():
        file.write_bytes(b"")
    arguments = ["--image", "scenes", "--object", "things", "--pairs", "all", "--model", model]
    assert run("insert", *arguments) == 2
    assert "none of 4 pairs could be made" in capsys.readouterr().err
    assert not Path("out").exists()


def test_mistakes_are_one_line(photos, model, capsys):
    pair = ["--image", "scenes/a.png", "--object", "things/a.png"]
    assert "no command is called insret; did you mean insert?" in refused(capsys, "insret")
    assert "did you mean --guidance_scale?" in refused(capsys, "insert", *pair, "--guidence_scale", "3")
    assert "unexpected argument 'stray'" in refused(capsys, "insert", *pair, "stray")
    assert "'none'" in refused(capsys, "insert", *pair, "--num_images", "none")
    assert "invalid choice: 'ddmi'" in refused(capsys, "insert", *pair, "--scheduler", "ddmi")
    assert "give --object" in refused(capsys, "insert", "--image", "scenes/a.png")
    assert "no such file or folder" in refused(capsys, "insert", "--image", "nowhere", "--object", "things")
    assert "model 'nowhere'" in refused(capsys, "insert", *pair, "--model", "nowhere")
    assert "leave out --image" in refused(capsys, "insert", *pair, "--csv", "pairs.csv")
    several = ["--image", "scenes/a.png", "--object", "things", "--output", "one.png"]
    assert "one file for 2 results" in refused(capsys, "insert", *several)
    assert "would overwrite an input" in refused(capsys, "insert", *pair, "--output", "scenes/a.png")
    Path("taken").write_text("a file")
    assert "is a file" in refused(capsys, "insert", *pair, "--output", "taken")
    assert not Path("out").exists()


def test_model_without_its_adapter_is_one_line(photos, model, tmp_path, capsys):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "embedding_optimizer" / "diffusion_pytorch_model.safetensors").unlink()
    pair = ["--image", "scenes/a.png", "--object", "things/a.png"]
    assert "embedding_optimizer: no weights" in refused(capsys, "insert", *pair, "--model", broken)
    assert "hub cannot be reached" in refused(capsys, "insert", *pair, "--model", "no-such/model")
    assert not Path("out").exists()


def test_full_disk_is_one_line_and_leaves_no_half_file(photos, model, capsys, monkeypatch):
    real = Image.Image.save

    def full(self, where, *args, **options):
        if "a__c" in str(where):
            Path(where).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(self, where, *args, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    arguments = ["--image", "scenes/a.png", "--object", "things", "--model", model]
    assert run("insert", *arguments, *QUICK) == 2
    assert "a__c.png: No space left on device" in capsys.readouterr().err
    assert sorted(p.name for p in Path("out").iterdir()) == ["a__a.png", "grid.png", "results.json"]
    assert [r["output"] for r in record()["results"]] == ["a__a.png"]


def test_exif_orientation_and_alpha_of_the_scene(photos, model):
    upright = picture(4, (60, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save("scenes/turned.png", exif=exif)
    arguments = ["--image", "scenes/turned.png", "--object", "things/a.png", "--model", model, *QUICK]
    assert run("insert", *arguments) == 0
    assert load_image("out/turned__a.png").size == (60, 40)


def test_help_is_light_and_lists_only_what_exists():
    for arguments in (["--help"], ["insert", "--help"]):
        code = (
            "import sys; from lit_insert.cli.infer import main\n"
            f"try: main({arguments!r})\n"
            "except SystemExit as end: assert end.code == 0\n"
            "heavy = {'torch', 'diffusers', 'transformers', 'lightning'} & set(sys.modules)\n"
            "assert not heavy, heavy"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "insert" in done.stdout
    for module, _ in COMMANDS.values():
        __import__(module)


def test_script_and_bare_call(photos):
    script = Path(__file__).parents[2] / "infer.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "infer.py COMMAND --help" in done.stdout
    done = subprocess.run([sys.executable, str(script), "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("lit-insert ")
