"""Every recipe fits together; those for the pocket run, one after another, from features to a model that fuses."""

from pathlib import Path

import pytest
import yaml
from PIL import Image
from tiny_fusion import scene, thing

from lit_insert.cli.train import main
from lit_insert.fusion.objects import FusionObject
from lit_insert.fusion.pipeline import FusionPipeline

CONFIGS = Path(__file__).parents[2] / "configs" / "fusion"
QUICK = [
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--trainer.limit_val_batches=1",
    "--trainer.enable_model_summary=false",
    "--samples.every_n_steps=2",
    "--samples.num_samples=2",
    "--data.batch_size=2",
]


def read(name: str) -> dict:
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


def test_what_there_is():
    assert {p.stem for p in CONFIGS.glob("*.yaml")} == {
        *("rae_encoder_pocket", "rae_decoder_pocket", "dit_pocket", "rae_decoder_imagenet256", "dit_imagenet256")
    }


@pytest.mark.parametrize("name", sorted(p.stem for p in CONFIGS.glob("*.yaml")))
def test_schedules_end_with_the_run(name):
    config = read(name)
    model = config["model"]["init_args"]
    assert model["lr_scheduler"]["init_args"]["total_steps"] == config["trainer"]["max_steps"]
    if "pocket" not in name:
        assert config["trainer"]["precision"] == "bf16-mixed"
        assert config["trainer"]["strategy"].startswith("ddp")
        # what Lightning refuses under manual optimisation
        assert ("gradient_clip_val" in config["trainer"]) is ("adversary" not in model)


def test_published_settings():
    rae, dit = read("rae_decoder_imagenet256"), read("dit_imagenet256")
    model = rae["model"]["init_args"]
    steps = 1_281_167 // 512
    assert rae["trainer"]["max_steps"] == 16 * steps
    assert model["adversary"]["discriminator_from"] == 6 * steps
    assert model["adversary"]["generator_from"] == 8 * steps
    assert rae["data"]["init_args"]["batch_size"] * 8 == 512
    assert dit["data"]["init_args"]["batch_size"] * 8 == 1024
    assert dit["trainer"]["max_steps"] == 800 * (1_281_167 // 1024)
    assert (rae["ema"]["decay"], dit["ema"]["decay"]) == (0.9978, 0.9995)


def test_the_pocket_from_end_to_end(tmp_path):
    def fit(name, out, *args):
        main(["fit", f"--config={CONFIGS / name}.yaml", f"--out={tmp_path / out}", *QUICK, *args])
        assert (tmp_path / out / "samples/step-0000002.png").is_file()

    small = {"encoder_num_hidden_layers": 1, "decoder_num_hidden_layers": 1, "decoder_hidden_size": 32}
    fit("rae_encoder_pocket", "encoder", *(f"--model.autoencoder.{k}={v}" for k, v in small.items()))
    fit("rae_decoder_pocket", "rae", f"--model.init={tmp_path / 'encoder'}", "--model.statistics_batches=2")
    network = "{encoder_width: 32, encoder_layers: 1, encoder_heads: 2, head_width: 64, head_layers: 1, head_heads: 2}"
    fit("dit_pocket", "dit", f"--model.autoencoder={tmp_path / 'rae'}", f"--model.network={network}")
    pipe = FusionPipeline.from_pretrained(tmp_path / "dit", segmenter="clipseg")
    out = pipe(scene(40, 30), [FusionObject(thing(), base_scale=0.6)], num_inference_steps=4)
    assert isinstance(out.image, Image.Image)
    assert out.image.size == (40, 30)
    assert out.reports[0].background_max_abs_diff == 0
