"""``infer.py segment``: options, exit statuses, files."""

import json
import subprocess
import sys

import jsonschema
import pytest
import yaml
from tiny_grounding import StubLoaders, rectangles, save_models
from tiny_segmenters import picture

from lit_insert.cli.infer import main
from lit_insert.grounding import output, pipeline

RED, BLUE = ("red", (10, 10, 30, 30)), ("blue", (70, 40, 40, 20))


@pytest.fixture
def stub(monkeypatch):
    made = []

    def loaders(settings, device="cpu"):
        made.append(StubLoaders(settings))
        return made[-1]

    monkeypatch.setattr(pipeline, "Loaders", loaders)
    return made


@pytest.fixture
def scenes(tmp_path):
    rectangles([RED, BLUE]).save(tmp_path / "a.png")
    rectangles([("blue", (5, 5, 40, 20))]).save(tmp_path / "b.png")
    return tmp_path


def call(*args):
    with pytest.raises(SystemExit) as end:
        main(["segment", *map(str, args)])
    return end.value.code


PROMPT = "a red box and a blue box"
RULES = ("--entities", "noun-phrases", "--device", "cpu")


def test_everything_is_written_into_a_folder_that_was_not_there(stub, scenes, capsys):
    out = scenes / "deep" / "er"
    status = call(
        *("-p", PROMPT, "-c", scenes / "a.png", "-g", scenes / "b.png", "-o", out, *RULES),
        *("--save-viz", "--viz-dir", "seen", "--export", "coco-results", "label-map", "yolo-seg"),
    )
    assert status == 0
    record = json.loads((out / "segmentation.json").read_text())
    jsonschema.validate(record, output.schema())
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert names == {
        *("segmentation.json", "segmentation.safetensors", "report.html", "coco_results.json"),
        *("seen/contextual_0_annotated.jpg", "seen/generated_annotated.jpg"),
        *("label_map/a.png", "label_map/b.png", "yolo_seg/a.txt", "yolo_seg/b.txt", "yolo_seg/classes.txt"),
    }
    assert "1 of 1 generated ones matched" in capsys.readouterr().out


def test_quiet_json_for_pipes(stub, scenes, capsys):
    args = ("--labels", "red;blue", "-c", scenes / "a.png", "-o", scenes / "out", "--device", "cpu")
    assert call(*args, "--quiet", "--json", "-") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == json.loads((scenes / "out/segmentation.json").read_text())
    assert printed.err == ""


def test_a_file_as_output_and_the_originals_layout(stub, scenes):
    args = ("--labels", "red;blue", "-c", scenes / "a.png", "-g", scenes / "b.png", "-o", scenes / "x" / "seg.json")
    assert call(*args, "--format", "legacy", "--no_report", "--device", "cpu") == 0
    assert json.loads((scenes / "x/seg.json").read_text())["detected_entities"] == ["red", "blue"]
    assert {p.name for p in (scenes / "x").iterdir()} == {
        *("seg.json", "seg_embeddings.json", "seg_coco.json", "seg_coco.safetensors"),
    }


def test_a_broken_picture_is_status_3_and_resume_does_only_that(stub, scenes, capsys):
    for i, name in enumerate("cde"):
        rectangles([("red", (10 + i, 10, 30, 30))]).save(scenes / f"{name}.png")
    whole = (scenes / "d.png").read_bytes()
    (scenes / "d.png").write_bytes(whole[:50])
    args = ("-p", PROMPT, "-c", *(scenes / f"{n}.png" for n in "abcde"), "-o", scenes / "out", *RULES)
    assert call(*args) == 3
    assert "d.png" in capsys.readouterr().err
    first = json.loads((scenes / "out/segmentation.json").read_text())
    assert [i["status"] for i in first["images"]] == ["ok", "ok", "ok", "error", "ok"]
    jsonschema.validate(first, output.schema())
    (scenes / "d.png").write_bytes(whole)
    assert call(*args, "--resume") == 0
    assert stub[-1].made.seen == 1
    second = json.loads((scenes / "out/segmentation.json").read_text())
    assert [i["status"] for i in second["images"]] == ["ok"] * 5
    assert call(*args, "--resume", "--threshold", "0.3") == 0
    assert stub[-1].made.seen == 5
    assert "segmenter.threshold changed" in capsys.readouterr().err


def test_a_prompt_that_names_nothing_is_status_4(stub, scenes, capsys):
    assert call("-p", "soft light, 4k", "-c", scenes / "a.png", "-o", scenes / "out", *RULES) == 4
    assert "names nothing" in capsys.readouterr().err
    assert json.loads((scenes / "out/segmentation.json").read_text())["entities"] == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-c", "a.png"], "give --prompt, or --labels"),
        (["-p", "a dog"], "give --contextual"),
        (["-p", "a dog", "-c", "none.png"], "none.png: no such file"),
        (["-p", "a dog", "-c", "a.png", "--config", "none.yaml"], "none.yaml: no such file"),
        (["-p", "a dog", "-c", "a.png", "--config", "bad.yaml"], "nms.iuo"),
        (["-p", "a dog", "-c", "a.png", "--model", "pocket", "--config", "bad.yaml"], "not both"),
        (["-p", "a dog", "-c", "a.png", "--threshold", "1"], "segmenter.threshold"),
        (["-p", "a dog", "-c", "a.png", "--segmenter", "sam2"], "segmenter.backend"),
        (["-p", "a dog", "-c", "a.png", "--set", "nms.iou"], "KEY=VALUE"),
        (["-p", "a dog", "-c", "a.png", "--set", "nms.oui=1"], "nms.oui"),
        (["-p", "a dog", "-c", "a.png", "--set", "nms=1"], "nms is 1"),
        (["-p", "a dog", "-c", "a.png", "--entities", "given"], "--labels"),
        (["--labels", ";", "-c", "a.png"], "labels: none given"),
        (["-p", "a dog", "-c", "a.png", "--resume"], "--resume"),
        (["-p", "a dog", "-c", "a.png", "-o", "a.png/out"], "is a file"),
        (["-p", "a dog", "-c", "a.png", "--treshold", "1"], "did you mean --threshold"),
    ],
)
def test_mistakes_are_status_2_and_name_what_is_wrong(args, message, scenes, capsys, monkeypatch):
    monkeypatch.chdir(scenes)
    (scenes / "bad.yaml").write_text("nms: {iuo: 0.5}\n")
    assert call(*args) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_model_that_cannot_be_had_names_two_that_can(scenes, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    base = ("-c", scenes / "a.png", "-g", scenes / "b.png", "-o", scenes / "out", "--device", "cpu", "-q")
    assert call("-p", "a dog", *base) == 2
    error = capsys.readouterr().err
    assert "huggingface.co/Qwen/Qwen3-VL-8B-Instruct" in error
    assert "noun-phrases or given" in error
    assert call("-p", "a dog", *base, "--entities", "noun-phrases") == 2
    error = capsys.readouterr().err
    assert "huggingface.co/facebook/sam3" in error
    assert "clipseg or pocket" in error
    assert error.count("\n") == 1


def flat(values, above=""):
    for key, value in values.items():
        yield from flat(value, f"{above}{key}.") if isinstance(value, dict) else [(f"{above}{key}", value)]


def test_the_command_line_wins_over_yaml_and_yaml_over_the_defaults(stub, scenes):
    """For every key: a value in the file is used; another one on the command line is used instead."""
    from lit_insert.grounding.settings import GroundingSettings

    choices = {
        "device": ("cpu", "cpu:0"),
        "entities.backend": ("noun-phrases", "given"),
        "segmenter.backend": ("clipseg", "pocket"),
        "embedder.backend": ("dinov2", "clip"),
        "pairing.labels": ("same", "any"),
        "output.format": ("legacy", "coco"),
        "output.exports": (["yolo-seg"], ["label-map"]),
        **{f"{part}.dtype": ("float16", "bfloat16") for part in ("entities", "segmenter", "embedder")},
    }
    first, second = {}, []
    expected = {}
    for key, default in flat(GroundingSettings().as_dict()):
        if key in choices:
            one, two = choices[key]
        elif isinstance(default, bool):
            one, two = not default, default
        elif isinstance(default, float):
            one, two = 0.125, 0.25
        elif isinstance(default, int):
            one, two = default + 1, default + 2
        elif isinstance(default, list):
            one, two = ["x"], ["y"]
        else:
            one, two = "one", "two"
        assert one not in (default, two)
        target = first
        *parts, last = key.split(".")
        for part in parts:
            target = target.setdefault(part, {})
        target[last] = one
        second += ["--set", f"{key}={json.dumps(two)}"]
        expected[key] = one, two
    (scenes / "all.yaml").write_text(yaml.safe_dump(first))
    base = ("--labels", "red", "-c", scenes / "a.png", "-o", scenes / "out", "--config", scenes / "all.yaml", "-q")
    assert call(*base) == 0
    assert {k: stub[-1].settings[k] for k in expected} == {k: v[0] for k, v in expected.items()}
    assert call(*base, *second) == 0
    assert {k: stub[-1].settings[k] for k in expected} == {k: v[1] for k, v in expected.items()}


def test_options_of_their_own_set_the_same_keys(stub, scenes):
    args = ("--labels", "red", "-c", scenes / "a.png", "-o", scenes / "out", "--device", "cpu", "-q")
    options = {
        "--text-model": ("m", "entities.model", "m"),
        "--seg-model": ("m", "segmenter.model", "m"),
        "--threshold": ("0.25", "segmenter.threshold", 0.25),
        "--mask-threshold": ("0.75", "segmenter.mask_threshold", 0.75),
        "--max-instances": ("7", "segmenter.max_instances", 7),
        "--min-area": ("0.001", "segmenter.min_area", 0.001),
        "--embedder": ("clip", "embedder.backend", "clip"),
        "--embed-model": ("m", "embedder.model", "m"),
        "--pairing-threshold": ("0.1", "pairing.threshold", 0.1),
        "--pairing-labels": ("any", "pairing.labels", "any"),
        "--dtype": ("float16", "segmenter.dtype", "float16"),
    }
    given = [part for option, (text, _, _) in options.items() for part in (option, text)]
    assert call(*args, *given) == 0
    for option, (_, key, value) in options.items():
        assert stub[-1].settings[key] == value, option


def test_help_answers_without_torch():
    code = (
        "import sys\nfrom lit_insert.cli.infer import main\n"
        "try:\n    main(['segment', '--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for text in ("--contextual", "exit status", "4 if the prompt names nothing"):
        assert text in " ".join(done.stdout.split())


def test_tiny_models_of_every_stage_end_to_end(tmp_path):
    folders = save_models(tmp_path / "models")
    picture().save(tmp_path / "a.png")
    picture(90, 130).save(tmp_path / "b.jpg")
    config = {
        "device": "cpu",
        "entities": {"model": str(folders["qwen"]), "constrain": True, "max_new_tokens": 40},
        "segmenter": {"model": str(folders["sam3"]), "threshold": 0.02, "max_instances": 3},
        "embedder": {"model": str(folders["dinov3"]), "image_size": 128, "crop_size": 64},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    code = """
import resource, sys
from lit_insert.cli.infer import main

def run(*args):
    try:
        main(["segment", *sys.argv[1:], *args])
    except SystemExit as end:
        return end.code

print(run("--labels", "dog;red sofa"), any("qwen3_vl" in name for name in sys.modules))
print(run("-p", "A dog on a sofa"), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    args = ["-c", tmp_path / "a.png", "-g", tmp_path / "b.jpg", "-o", tmp_path / "new" / "results"]
    args += ["--config", tmp_path / "tiny.yaml", "-q"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True)
    given, named = (line.split() for line in done.stdout.splitlines())
    assert given == ["0", "False"], done.stderr  # the language model was not even imported
    assert named[0] == "0", done.stderr
    assert int(named[1]) < 1.5 * 2**20  # kilobytes
    record = json.loads((tmp_path / "new/results/segmentation.json").read_text())
    jsonschema.validate(record, output.schema())
    assert record["entities"][0]["source"] == "qwen3-vl"
    assert record["annotations"]
    assert {i["status"] for i in record["images"]} == {"ok"}
    assert (tmp_path / "new/results/report.html").is_file()


def test_every_key_of_the_settings_is_read(scenes, monkeypatch):
    import dataclasses
    import pathlib

    from tiny_grounding import ColourSegmenter, MeanColour

    from lit_insert.cli import segment
    from lit_insert.grounding import embedders, entities
    from lit_insert.grounding.settings import settings_from
    from lit_insert.segmenters import loading

    read = set()

    def recording(part, above):
        """The same settings, of a class that notes who reads what."""
        kind = type(part)

        def get(self, name):
            reader = pathlib.Path(sys._getframe(1).f_code.co_filename).name
            if name in kind.__dataclass_fields__ and reader not in ("settings.py", "dataclasses.py"):
                read.add(f"{above}{name}")
            return object.__getattribute__(self, name)

        made = type(kind.__name__, (kind,), {"__getattribute__": get})()
        for field in dataclasses.fields(kind):
            value = getattr(part, field.name)
            inner = dataclasses.is_dataclass(value)
            object.__setattr__(made, field.name, recording(value, f"{field.name}.") if inner else value)
        return made

    class Model:
        name, chunk = "qwen3-vl", 1

        def __init__(self, *args, **kwargs):
            pass

        def to(self, device):
            return self

        def extract(self, prompt):
            return ["red box", "blue box"]

        def ask(self, content, only=None):
            return "yes"

    class Chunked(ColourSegmenter):
        chunk = 1

    output_settings = {"annotated": True, "exports": ["yolo-seg"]}
    own = settings_from({"device": "cpu", "verify": {"enabled": True}, "output": output_settings})
    monkeypatch.setattr(segment, "_settings", lambda options: recording(own, ""))
    monkeypatch.setattr(loading, "model_folder", lambda *a, **k: scenes)
    monkeypatch.setattr(loading, "load_segmenter", lambda *a, **k: Chunked())
    monkeypatch.setattr(embedders, "load_embedder", lambda *a, **k: MeanColour())
    monkeypatch.setattr(entities.QwenEntities, "from_folder", Model)
    assert call("-p", PROMPT, "-c", scenes / "a.png", "-g", scenes / "b.png", "-o", scenes / "out", "-q") == 0
    assert {key for key, _ in flat(own.as_dict())} - read == set()
