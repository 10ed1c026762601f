"""The command line: what a user types, what comes out, and the one line that a mistake gets."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from process import ROOT, TOY, environment, finish, start

from lit_insert.cli.train import main

FIT = ["fit", *TOY, "--trainer.max_steps=4", "--trainer.log_every_n_steps=1"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def call(capfd, *args: str, status: int | None = None) -> str:
    """Run a command in this process; returns what it printed."""
    capfd.readouterr()
    if status is None:
        main(args)
    else:
        with pytest.raises(SystemExit) as end:
            main(args)
        assert end.value.code == status
    captured = capfd.readouterr()
    return captured.out + captured.err


def mistake(capfd, *args: str) -> str:
    """The single line that a mistake gets."""
    lines = call(capfd, *args, status=2).splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


@pytest.fixture
def run(capfd):
    call(capfd, *FIT, "--out=a")
    return Path("a")


def test_what_a_run_leaves(run):
    names = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file() and "tb" not in p.parts}
    assert names == {
        "config.yaml",
        "run.json",
        "metrics.jsonl",
        "checkpoints/last.ckpt",
        "export/net/model.safetensors",
        "samples/step-0000004.png",
    }
    assert list((run / "tb").glob("events*"))
    assert list(Path().iterdir()) == [run]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.001
    assert config["ema"]["decay"] == 0.9999  # from defaults.yaml
    assert config["trainer"]["default_root_dir"] is None  # so that a run can be moved
    assert config["trainer"]["logger"]["init_args"]["save_dir"] == "."
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["config"] == config


def test_an_existing_run_is_not_overwritten(run, capfd):
    before = (run / "checkpoints/last.ckpt").read_bytes()
    assert mistake(capfd, *FIT, "--out=a") == "--out a: run exists; pass --resume or another --out"
    assert (run / "checkpoints/last.ckpt").read_bytes() == before


def test_resume_takes_the_configuration_of_the_run(run, capfd):
    printed = call(capfd, "fit", "--out=a", "--resume", "--trust_config=toy", "--trainer.max_steps=7")
    assert "resume: changed trainer.max_steps: 4 -> 7" in printed
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 7
    assert checkpoint["config"]["trainer"]["max_steps"] == 7
    resume = ("fit", "--out=a", "--resume", "--trust_config=toy")
    told = mistake(capfd, *resume, "--model.optimizer.lr=0.5", "--model.width=9", "--ema.decay=0.5")
    for change in ("optimizer.init_args.lr: 0.001 -> 0.5", "width: 8 -> 9", "ema.decay: 0.9999 -> 0.5"):
        assert change in told
    assert "precision" in mistake(capfd, *resume, "--trainer.precision=bf16-mixed")


def test_a_moved_run_resumes_where_it_is(run, capfd):
    run.rename("elsewhere")
    call(capfd, "fit", "--out=elsewhere", "--resume", "--trust_config=toy", "--trainer.max_steps=6")
    assert not Path("a").exists()
    assert torch.load("elsewhere/checkpoints/last.ckpt", weights_only=True)["global_step"] == 6


def test_the_configuration_wins_over_the_checkpoint(run, capfd):
    call(capfd, "validate", "--out=a", "--trust_config=toy", "--model.noise=9", "--ckpt_path=last")
    loud = json.loads((run / "validate.json").read_text())["val/loss"]
    call(capfd, "validate", "--out=a", "--trust_config=toy", "--ckpt_path=a/checkpoints/last.ckpt")
    assert json.loads((run / "validate.json").read_text())["val/loss"] != loud


def test_start_from_weights(run, capfd):
    printed = call(capfd, *FIT, "--out=b", "--init_from=a", "--model.optimizer.lr=0")
    assert "init_from a/checkpoints/last.ckpt: loaded 9 tensors (the average)" in printed
    source = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["callbacks"]["EMA"]["shadow"]
    target = torch.load("b/checkpoints/last.ckpt", weights_only=True)
    assert target["global_step"] == 4
    assert all(torch.equal(target["state_dict"][n], w) for n, w in source.items())
    assert json.loads(Path("b/run.json").read_text())["parts"][0]["source"] == "a"


def test_a_run_stands_for_its_configuration_and_checkpoint(run, capfd):
    before = (run / "metrics.jsonl").read_text(), (run / "config.yaml").read_text()
    for command in ("validate", "test"):
        call(capfd, command, "--out=a", "--trust_config=toy")
        assert json.loads((run / f"{command}.json").read_text())
    call(capfd, "predict", "--out=a", "--trust_config=toy")
    assert sorted(p.name for p in (run / "predictions").iterdir()) == [f"s{i}.png" for i in range(8)]
    (run / "export/net/model.safetensors").unlink()
    call(capfd, "export", "--out=a", "--trust_config=toy")
    assert (run / "export/net/model.safetensors").exists()
    assert before == ((run / "metrics.jsonl").read_text(), (run / "config.yaml").read_text())


def test_nothing_is_written_for_help_and_configuration(capfd):
    assert "resume" in call(capfd, "--help", status=0)
    printed = call(capfd, *FIT, "--print_config", status=0)
    assert yaml.safe_load(printed)["trainer"]["max_steps"] == 4
    helped = call(capfd, "fit", "--help", status=0)
    for text in ("--init_from", "--checkpoint.every_n_steps", "--ema.decay", "EmbeddingOptimizerModule"):
        assert text in helped
    helped = call(capfd, "fit", "--trust_config=toy", "--model.help=toy.ToyModule", status=0)
    assert "Hidden units" in helped
    call(capfd, *FIT, "--config=debug/fast_dev_run.yaml")
    assert list(Path().iterdir()) == []


def test_short_class_names(capfd):
    printed = call(capfd, "fit", "--trust_config=toy", "--model=toy.ToyModule", "--data=ScenesDataModule",
                   "--model.lr_scheduler=WarmupCosine", "--model.lr_scheduler.total_steps=9", "--print_config",
                   status=0)  # fmt: skip
    assert "class_path: lit_insert.data.scenes.ScenesDataModule" in printed.replace(
        "lit_insert.Scenes", "lit_insert.data.scenes.Scenes"
    )
    assert "WarmupCosine" in printed


B = "model:\n  class_path: toy.ToyModule\n  init_args:\n"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["fitt"], "'fitt' is not a command; give one of fit, validate, test, predict, export; did you mean fit?"),
        ([*FIT], "--out DIR is missing: where should the run be kept?"),
        ([*FIT, "--out=z", "--model.widht=3"], "model.widht: toy.ToyModule has no such argument; did you mean width?"),
        ([*FIT, "--out=z", "--model.width=abc"], "model.width: expected int, got 'abc'"),
        (
            [*FIT, "--out=z", "--trainer.max_epoch=3"],
            "no option is called --trainer.max_epoch; did you mean --trainer.max_epochs?",
        ),
        ([*FIT, "--ouut=z"], "no option is called --ouut; did you mean --out?"),
        (
            [*FIT, "--out=z", "--model.optimizer=AdamW", "--model.optimizer.lrr=3"],
            "model.optimizer.lrr: torch.optim.AdamW has no such argument; did you mean lr?",
        ),
        (
            [*FIT, "--out=z", "--model.optimizer=AdamX"],
            "model.optimizer: no class is called 'AdamX'; did you mean Adam?",
        ),
        ([*FIT, "--out=z", "extra"], "unexpected argument 'extra'; options start with --"),
        ([*FIT, "--out=z", "--resume", "--init_from=a"], "--resume and --init_from exclude each other"),
        (["fit", "--out=z", "--resume"], "--out z: no run is there"),
        (["fit", "--resume"], "--resume needs --out DIR"),
        (["test", "--out=z", "--resume"], "--resume belongs to fit"),
        (["fit", "--out=z"], "data and model must be given"),
        ([*FIT, "--out=z", "--init_from=none"], "--init_from none: no such run, checkpoint or folder"),
        ([*FIT, "--out=z", "--ckpt_path=last"], "fit takes no --ckpt_path; use --resume"),
        ([*FIT, "--out=z", "--ema.decay=2"], "ema.decay is 2.0; give 0 (off) or more, and less than 1"),
        ([*FIT, "--out=z", "--checkpoint.mode=mix"], "checkpoint.mode: 'mix' is none of min, max; did you mean min?"),
        ([*FIT, "--out=z", "--config=none.yaml"], "--config none.yaml: no such file; the package has: "),
        (["fit", "--model=ScenesDataModul", "--data=x", "--out=z"], "did you mean ScenesDataModule?"),
        (
            ["fit", "--model=shutil.rmtree", "--data=ScenesDataModule", "--out=z"],
            "shutil.rmtree is not of a trusted package; if you trust it: --trust_config shutil",
        ),
        ([*FIT, "--out=z", "--model.nan_at=s3", "--data.batch_size=22"], "loss is nan at step "),
        ([*FIT, "--out=z", "--data.batch_size=0"], "batch_size is 0; give 1 or more"),
        ([*FIT, "--out=z", "--trainer.devices=0"], "devices"),
    ],
)
def test_mistakes(capfd, args, told):
    lines = call(capfd, *args, status=2).splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, lines
    assert told in errors[0]
    assert not any("Traceback" in line for line in lines)
    if "nan" not in told and "batch_size" not in told:  # these are met after the model was printed
        assert lines == errors
        assert not Path("z/checkpoints").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (B + "    width: 3\n    width: 4\n", "x.yaml:5: key 'model.init_args.width' was already given in line 4"),
        (B + "    widht: 3\n", "model.widht: toy.ToyModule has no such argument; did you mean width?"),
        ("trainer:\n  max_step: 3\n", "no key is called trainer.max_step; did you mean trainer.max_steps?"),
        ("trainer: [1,\n", "x.yaml:2: not valid YAML"),
        ("- 1\n", "x.yaml: must be a mapping of keys to values"),
        ("trainer:\n  callbacks:\n  - class_path: EMAA\n", "no class is called 'EMAA'"),
    ],
)
def test_mistakes_in_a_file(capfd, text, told):
    Path("x.yaml").write_text(text)
    assert told in mistake(capfd, "fit", "--trust_config=toy", "--config=x.yaml", "--data=toy.ToyData", "--out=z")
    assert not Path("z").exists()


def test_bad_checkpoints_get_one_line(run, capfd):
    last = run / "checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:2000])
    told = mistake(capfd, "fit", "--out=a", "--resume", "--trust_config=toy")
    assert told.startswith("a/checkpoints/last.ckpt: cannot be read (2000 bytes; truncated or damaged)")
    assert "truncated" in mistake(capfd, *FIT, "--out=b", "--init_from=a")
    last.unlink()
    assert "start the run without --resume" in mistake(capfd, "fit", "--out=a", "--resume", "--trust_config=toy")


def test_ranks_that_a_launcher_started_do_not_take_the_run_for_an_old_one(run, capfd, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert "run exists" not in call(capfd, *FIT, "--out=a", "--trainer.strategy=none", status=2)


def test_as_a_module_and_a_script():
    for command in ([sys.executable, "-m", "lit_insert"], [sys.executable, str(ROOT / "train.py")]):
        done = subprocess.run(
            [*command, "--help"], env=environment(), capture_output=True, text=True, check=True, timeout=60
        )
        assert "pocket/insert.yaml" in done.stdout


def test_help_does_not_import_what_it_does_not_need():
    """Help must cost about what importing Lightning's command line costs."""
    code = (
        "import sys\n"
        "sys.argv = ['train.py', *sys.argv[1:]]\n"
        "from lit_insert.cli.train import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('LOADED', *sorted(m for m in sys.modules if '.' not in m))"
    )

    def loaded(*args):
        done = subprocess.run(
            [sys.executable, "-c", code, *args], env=environment(), capture_output=True, text=True, check=True
        )
        return set(done.stdout.split("LOADED")[1].split())

    assert "torch" not in loaded("--help")
    alone = subprocess.run(
        [sys.executable, "-c", "import sys, lightning.pytorch.cli; print(*sys.modules)"],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    extra = loaded("fit", "--help") - {m for m in alone if "." not in m}
    assert not extra & {"diffusers", "transformers", "peft", "accelerate", "datasets", "torchvision", "cv2"}


def test_an_error_in_a_process_of_its_own_has_its_status():
    output = finish(start(*FIT, "--out=z", "--model.widht=3"), 2)
    assert output == "error: model.widht: toy.ToyModule has no such argument; did you mean width?\n"


def test_a_run_that_failed_before_its_first_checkpoint_may_start_again(capfd):
    call(capfd, *FIT, "--out=a", "--model.nan_at=s3", "--data.batch_size=22", status=2)
    call(capfd, *FIT, "--out=a")
    assert json.loads(Path("a/run.json").read_text())["status"] == "finished"


def test_a_checkpoint_loads_without_the_command_line(run):
    from toy import ToyModule

    path = run / "checkpoints/last.ckpt"
    model = ToyModule.load_from_checkpoint(path)
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(model.state_dict()[k], v) for k, v in saved.items())


def test_a_full_disk_gets_one_line_wherever_it_is_met(capfd, monkeypatch):
    from lit_insert.training.record import JsonLines

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", "z/metrics.jsonl")

    monkeypatch.setattr(JsonLines, "log_metrics", full)
    lines = call(capfd, *FIT, "--out=z", status=2).splitlines()
    assert lines[-1] == "error: cannot write z/metrics.jsonl: No space left on device"
    assert not any("Traceback" in line for line in lines)
