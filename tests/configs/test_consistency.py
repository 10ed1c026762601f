"""Every recipe parses; those for the pocket run, one after another, from teacher to students."""

from pathlib import Path

import pytest
import torch
import yaml
from diffusers import ConsistencyModelPipeline

from lit_insert.cli.train import main

CONFIGS = Path(__file__).parents[2] / "configs" / "consistency"
OBJECTIVES = ("cd", "ct", "ict", "ect")
QUICK = [
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--trainer.limit_val_batches=1",
    "--trainer.enable_model_summary=false",
    "--trainer.precision=32-true",
    "--samples.every_n_steps=2",
    "--samples.num_samples=2",
    "--data.batch_size=2",
]
TINY = "{image_size: 8, channels: 8, channel_mult: [1, 2], num_res_blocks: 1, attention_resolutions: [4], head_dim: 8,"


def read(name: str) -> dict:
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


def test_what_there_is():
    names = {p.stem for p in CONFIGS.glob("*.yaml")}
    assert {f"{o}_pocket" for o in (*OBJECTIVES, "edm_teacher")} <= names
    assert {f"{o}_cifar10" for o in (*OBJECTIVES, "edm_teacher")} <= names
    assert {"edm_teacher_faces64", "cd_faces64", "ct_imagenet64_finetune"} <= names


@pytest.mark.parametrize("name", sorted(p.stem for p in CONFIGS.glob("*.yaml")))
def test_schedules_end_with_the_run(name):
    config = read(name)
    steps = config["trainer"]["max_steps"]
    model = config["model"]["init_args"]
    if "schedule" in model:
        assert model["schedule"]["total_steps"] == steps
    if "lr_scheduler" in model:
        assert model["lr_scheduler"]["init_args"]["total_steps"] == steps
    if "pocket" not in name:
        assert config["trainer"]["precision"] == "bf16-mixed"
        assert config["trainer"]["strategy"] == "ddp"
        assert config["ema"]["decay"] > 0.99


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    out = tmp_path_factory.mktemp("edm") / "run"
    network = f"--model.network={TINY} norm_groups: 4, resblock_updown: false}}"
    main(
        [
            "fit",
            f"--config={CONFIGS / 'edm_teacher_pocket.yaml'}",
            f"--out={out}",
            "--data.image_size=8",
            network,
            *QUICK,
        ]
    )
    return out


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_pocket(teacher, tmp_path, objective):
    swap = {"cd": f"--model.teacher={teacher}", "ect": f"--model.init={teacher}"}
    assert read(f"{objective}_pocket")["trainer"].get("precision", "32-true") == "32-true"  # many CPUs emulate bf16
    network = f"--model.network={TINY} norm_groups: 4, resblock_updown: false}}"
    out = tmp_path / "run"
    main([
        *("fit", f"--config={CONFIGS / objective}_pocket.yaml", f"--out={out}", "--data.image_size=8", *QUICK),
        swap.get(objective, network),
    ])  # fmt: skip
    assert (out / "samples" / "step-0000002.png").is_file()
    pipe = ConsistencyModelPipeline.from_pretrained(out / "export")
    pipe.set_progress_bar_config(disable=True)
    images = pipe(batch_size=2, generator=torch.Generator().manual_seed(0), output_type="np").images
    assert images.shape == (2, 8, 8, 3)


def test_distilling_what_ships_needs_nothing_else(tmp_path):
    out = tmp_path / "run"
    main(["fit", f"--config={CONFIGS / 'cd_pocket.yaml'}", f"--out={out}", *QUICK, "--trainer.max_steps=1"])
    assert ConsistencyModelPipeline.from_pretrained(out / "export").scheduler.config["num_train_timesteps"] == 12
