"""Every configuration parses and trains; hub ids give way to tiny random models of the same layout."""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny_base import write_base, write_sd15_like

from lit_insert.cli.train import main
from lit_insert.embedding_optimizer.pipeline import InsertPipeline

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "data"))
from data_samples import write_pipe, write_triplets  # noqa: E402

CONFIGS = ROOT / "configs" / "embedding_optimizer"
PIPE = sorted(p.stem for p in CONFIGS.glob("pipe_*.yaml"))
QUICK = [
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.strategy=auto",
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=1",
    "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1",
    "--data.batch_size=2",
    "--model.sampling.num_inference_steps=2",
    "--samples.every_n_steps=2",
    "--samples.num_samples=2",
]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Bases with 8 and 4 channels, an image encoder, PIPE and PIPE_Masks."""
    root = tmp_path_factory.mktemp("hub")
    base, clip = write_sd15_like(root / "ip2p")
    text_to_image, _ = write_sd15_like(root / "sd15", channels=4)
    for split in ("train", "test"):
        write_pipe(root / "data", rows=8, split=split, files=1, box=(8, 8, 56, 56))
    return {
        "paint-by-inpaint/add-base": base,
        "stable-diffusion-v1-5/stable-diffusion-v1-5": text_to_image,
        "openai/clip-vit-large-patch14": clip,
        "paint-by-inpaint/PIPE": root / "data" / "PIPE",
        "paint-by-inpaint/PIPE_Masks": root / "data" / "PIPE_Masks",
    }


def test_what_there_is():
    assert {"pipe_ip2p", "pipe_ip2p_lora", "pipe_ip_adapter", "pipe_legacy", "pipe_sd15"} == set(PIPE)


@pytest.mark.parametrize("name", PIPE)
def test_published_bases_and_pipe(places, tmp_path, name):
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert config["trainer"]["precision"] == "bf16-mixed"
    assert config["trainer"]["strategy"] == "ddp"
    assert config["ema"]["decay"] > 0.99
    assert model["conditioning_dropout"] == 0.05
    swaps = [
        *(f"--model.{key}={places[model[key]]}" for key in ("base", "image_encoder")),
        *(f"--data.{key}={places[data[key]]}" for key in ("path", "masks", "image_processor")),
        "--data.num_workers=0",
        "--data.size=32",
        "--data.val_fraction=0",
    ]
    out = tmp_path / "run"
    main(["fit", f"--config={CONFIGS / name}.yaml", f"--out={out}", *QUICK, *swaps])
    assert {p.name for p in (out / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert (out / "samples" / "step-0000002.png").is_file()
    exported, from_checkpoint = (
        InsertPipeline.from_pretrained(source) for source in (out / "export", out / "checkpoints" / "last.ckpt")
    )
    for part in ("unet", "embedding_optimizer"):
        ours, theirs = (getattr(p, part).state_dict() for p in (exported, from_checkpoint))
        assert ours.keys() == theirs.keys()
        assert all(torch.allclose(ours[key], theirs[key], atol=1e-6) for key in ours)


@pytest.mark.parametrize("name", ["pocket", "photos_pocket"])
def test_the_pocket_base(tmp_path, name):
    base = write_base(tmp_path / "base", own_adapter=True)
    swaps = [f"--model.base={base}"]
    if name == "pocket":
        swaps += ["--data.test_length=4"]
    else:
        for split, count in (("train", 6), ("val", 3)):
            write_triplets(tmp_path / "set", split, count)
        swaps += [f"--data.path={tmp_path / 'set'}", "--data.num_workers=0"]
    out = tmp_path / "run"
    main(["fit", f"--config={CONFIGS / name}.yaml", f"--out={out}", *QUICK, *swaps])
    assert (out / "export" / "model_index.json").is_file()
    main(["predict", f"--out={out}"] if name == "pocket" else ["validate", f"--out={out}"])


@pytest.mark.parametrize("cache", [False, True])
def test_resuming_the_real_module_is_exact(tmp_path, cache):
    base = write_base(tmp_path / "base", own_adapter=True)
    write_triplets(tmp_path / "set", "train", 14)
    options = [
        f"--config={CONFIGS / 'photos_pocket.yaml'}",
        f"--model.base={base}",
        f"--data.path={tmp_path / 'set'}",
        "--data.num_workers=0",
        "--data.batch_size=4",
        "--data.augment=flip",
        "--data.augment_reference=false",
        "--checkpoint.every_n_steps=3",
        "--trainer.limit_val_batches=0",
        "--samples.every_n_steps=0",
        *([f"--model.feature_cache={tmp_path / 'cache'}"] if cache else []),
    ]
    main(["fit", *options, f"--out={tmp_path / 'whole'}", "--trainer.max_steps=9"])
    main(["fit", *options, f"--out={tmp_path / 'parts'}", "--trainer.max_steps=6"])  # in the middle of an epoch
    main(["fit", "--resume", f"--out={tmp_path / 'parts'}", "--trainer.max_steps=9"])
    whole, parts = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "parts")
    )
    assert whole["global_step"] == parts["global_step"] == 9
    assert whole["state_dict"].keys() == parts["state_dict"].keys()
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, parts["state_dict"][key]), key
