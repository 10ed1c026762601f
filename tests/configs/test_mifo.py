"""Configurations that learn instances, and the one that trains their pocket base."""

from pathlib import Path

import pytest
import yaml
from tiny_instances import write_instances
from tiny_text import write_model

from lit_insert.cli.train import main
from lit_insert.mifo.artifact import MifoArtifact
from lit_insert.mifo.checkpoint import checkpoint_artifact

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "mifo"
QUICK = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_model_summary=false"]


def of(name):
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    return config["model"]["init_args"], config["trainer"]["max_steps"]


def test_what_there_is():
    modes = {"mifo_paper_sd21", "mifo_joint_sd21", "break_a_scene_sd21", "none_sd21"}
    assert {p.stem for p in CONFIGS.glob("*.yaml")} == {*modes, "pocket"}
    for name in modes:
        assert of(name)[0]["attention"]["mode"] == name.removesuffix("_sd21")


def test_the_published_schedules_are_literal():
    model, steps = of("mifo_paper_sd21")
    loss = model["attention"]
    assert (model["token_steps"], loss["reward_steps"], steps) == (600, 200, 1000)
    assert (loss["reward_weight"], loss["penalty_weight"]) == (1e-2, 2e-2)
    assert (loss["layers"], loss["finetune_layers"]) == (["up:16", "up:32"], [":16"])
    assert model["optimizer"]["init_args"]["lr"] == 5e-3
    assert model["lr_scheduler"]["init_args"] == {"total_steps": 600, "warmup_steps": 10}
    peer, steps = of("break_a_scene_sd21")
    assert (peer["token_steps"], steps, peer["prior_from_start"]) == (400, 800, True)
    assert (peer["attention"]["layers"], peer["attention"]["reward_weight"]) == ([":16"], 1e-2)
    assert peer["optimizer"]["init_args"]["lr"] == 5e-4
    assert {of(n)[0]["finetune_optimizer"]["init_args"]["lr"] for n in ("mifo_paper_sd21", "none_sd21")} == {2e-6}


def test_a_picture_is_learned_and_continued_from_the_command_line(tmp_path, capfd):
    base = write_model(tmp_path / "base", "v_prediction")
    folder = write_instances(tmp_path / "two")
    out = tmp_path / "run"
    small = [
        *(f"--model.base={base}", f"--data.folder={folder}", "--data.batch_size=2", "--model.token_steps=2"),
        *("--model.sketching.num_inference_steps=2", "--trainer.log_every_n_steps=1", "--trainer.val_check_interval=2"),
        *("--samples.every_n_steps=2", "--data.class_prompt=a red circle", "--data.class_images=1", *QUICK),
    ]
    main(["fit", f"--config={CONFIGS / 'pocket.yaml'}", f"--out={out}", *small, "--trainer.max_steps=2"])
    first = MifoArtifact.load(out / "export")
    assert not first.changed
    assert set(first.tokens) == {"<asset0>", "<asset1>"}
    main(["fit", f"--out={out}", "--resume", "--trainer.max_steps=4"])
    learned = MifoArtifact.load(out / "export")
    assert {n.partition(".")[0] for n in learned.changed} == {"unet", "text_encoder"}
    assert checkpoint_artifact(out / "checkpoints/last.ckpt").changed.keys() == learned.changed.keys()
    assert len(list((out / "samples").glob("step-*.png"))) == 2
    page = (out / "report.html").read_text()
    assert "train/diffusion" in page
    assert page.count("<img") >= 2
    main(["export", f"--out={out}"])
    assert MifoArtifact.load(out / "export").changed.keys() == learned.changed.keys()
    lines = (out / "metrics.jsonl").read_text()
    assert '"val/in_frac"' in lines
    capfd.readouterr()
    (folder / "mask0.png").unlink()
    with pytest.raises(SystemExit):
        main(["fit", f"--config={CONFIGS / 'pocket.yaml'}", f"--out={tmp_path / 'other'}", *small])
    assert "mask0.png is missing, but there is mask1.png" in capfd.readouterr().err.strip().splitlines()[-1]


def test_the_base_trains_from_the_shipped_weights(tmp_path):
    small = ["--trainer.max_steps=1", "--trainer.val_check_interval=1", "--data.batch_size=2", "--data.val_length=2"]
    fast = ["--model.num_inference_steps=2", "--samples.every_n_steps=0"]
    config = ROOT / "configs/pocket/text.yaml"
    main(["fit", f"--config={config}", f"--out={tmp_path / 'run'}", *small, *fast, *QUICK])
    assert (tmp_path / "run/export/model_index.json").is_file()
    assert '"val/both"' in (tmp_path / "run/metrics.jsonl").read_text()
