"""Every configuration parses and can be read back; those that need nothing but the package also run."""

from pathlib import Path

import pytest
import yaml

from lit_insert import pocket
from lit_insert.cli.configs import check_yaml
from lit_insert.cli.train import main

CONFIGS = Path(__file__).parents[1] / "configs"
PARTS = {CONFIGS / "defaults.yaml", *(CONFIGS / "debug").glob("*.yaml")}  # these come on top of others
SETTINGS = set((CONFIGS / "grounding").glob("*.yaml"))  # of a command, not a training: tests/grounding reads them
FILES = sorted(set(CONFIGS.rglob("*.yaml")) - PARTS - SETTINGS)


def name(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def printed(capfd, *args: str) -> dict:
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        main(["fit", *args, "--print_config"])
    out, err = capfd.readouterr()
    assert end.value.code == 0, err
    return yaml.safe_load(out)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_parses_completely(path, capfd):
    config = printed(capfd, f"--config={path}")
    given = check_yaml(path)
    assert config["model"]["class_path"].rsplit(".", 1)[-1] == given["model"]["class_path"].rsplit(".", 1)[-1]
    assert config["trainer"]["max_steps"] not in (None, -1) or config["trainer"]["max_epochs"], "it never ends"
    assert config["checkpoint"]["every_n_steps"] > 0


@pytest.mark.parametrize("path", sorted(PARTS), ids=name)
def test_parts_go_on_top_of_an_experiment(path, capfd):
    config = printed(capfd, f"--config={CONFIGS / 'pocket/vae.yaml'}", f"--config={path}")
    for section, values in check_yaml(path).items():
        if isinstance(values, dict):
            for key, value in values.items():
                if not isinstance(value, dict):
                    assert config[section][key] == value


def offline(path: Path) -> bool:
    """Whether an experiment needs nothing but what the package ships."""
    model = check_yaml(path)["model"]
    base = model.get("init_args", {}).get("base", "pocket")
    data = check_yaml(path).get("data", {}).get("class_path", "")
    if data.rsplit(".", 1)[-1] != "ScenesDataModule":
        return False
    if "base" not in model.get("init_args", {}) and "embedding_optimizer" not in model["class_path"]:
        return True
    return base == "pocket" and (Path(pocket.__file__).parent / "insert" / "model_index.json").exists()


@pytest.mark.parametrize("path", [p for p in FILES if offline(p)], ids=name)
def test_runs_one_step_of_everything(path, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    validation = check_yaml(path).get("trainer", {}).get("limit_val_batches", 1)
    small = ["--trainer.max_steps=1", "--trainer.val_check_interval=1", "--data.batch_size=2"]
    quiet = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_model_summary=false"]
    main([
        *("fit", f"--config={path}", "--out=run", *small, *quiet, "--trainer.strategy=auto"),
        f"--trainer.limit_val_batches={min(validation, 1)}",
    ])  # fmt: skip
    assert (tmp_path / "run/checkpoints/last.ckpt").is_file()
    assert list((tmp_path / "run/export").iterdir())
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    if validation:  # a dry run always validates
        main(["fit", f"--config={path}", "--config=debug/fast_dev_run.yaml", *small[2:], *quiet])
        assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_the_configuration_in_the_documentation_parses(tmp_path, capfd):
    page = (CONFIGS.parent / "docs/distributed.md").read_text()
    blocks = page.split("```yaml\n")[1:]
    assert blocks
    for block in blocks:
        file = tmp_path / "block.yaml"
        file.write_text(block.split("```")[0])
        config = printed(capfd, f"--config={CONFIGS / 'pocket/vae.yaml'}", f"--config={file}")
        assert config["trainer"]["strategy"]["class_path"].endswith("FSDPStrategy")
        assert config["ema"]["decay"] == 0
