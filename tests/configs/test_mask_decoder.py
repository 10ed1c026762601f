"""Every configuration of the mask decoder trains and exports, its network made small."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from lit_insert.cli.train import main

CONFIGS = Path(__file__).parents[2] / "configs" / "mask_decoder"
NAMES = sorted(p.stem for p in CONFIGS.glob("*.yaml"))
SMALL = {"embed_dim": 8, "num_heads": 1, "stages": [1, 1, 2, 1]}
QUICK = [
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.strategy=auto",
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=1",
    "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_model_summary=false",
    "--data.batch_size=2",
    "--samples.every_n_steps=2",
    "--samples.num_samples=2",
]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Six photos of bright boxes, as a folder with masks and as COCO."""
    root = tmp_path_factory.mktemp("photos")
    for name in ("images", "masks"):
        (root / name).mkdir()
    images, annotations = [], []
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 90, (48, 64, 3), dtype=np.uint8)
        mask = np.zeros((48, 64), np.uint8)
        mask[8:40, 10 + i : 40 + i] = 255
        pixels[mask > 0] += 150
        Image.fromarray(pixels).save(root / "images" / f"{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 48})
        x = 10 + i
        outline = [x, 8, x + 30, 8, x + 30, 40, x, 40]
        region = {"bbox": [x, 8, 30, 32], "segmentation": [outline], "area": 960, "iscrowd": 0}
        annotations.append(region | {"id": i, "image_id": i, "category_id": 1})
    for split, part in (("train", slice(0, 4)), ("val", slice(4, 6))):
        found = {"images": images[part], "annotations": annotations[part], "categories": [{"id": 1, "name": "person"}]}
        (root / f"{split}.json").write_text(json.dumps(found))
    return root


def swaps(config: dict, places: Path) -> list[str]:
    """Arguments that put small networks and the photos in the place of the real ones."""
    network = config["model"]["init_args"]["network"]
    encoder = dict(SMALL)
    if network["encoder"].startswith(("hieradet", "sam2")):
        encoder["global_att_blocks"] = [3]
    small = {**network, "encoder_kwargs": {**network.get("encoder_kwargs", {}), **encoder}, "img_size": 64}
    if "decoder_width" not in small:
        small |= {"bottleneck_depth": min(1, small.get("bottleneck_depth", 0)), "bottleneck_heads": None}
    result = [f"--model.init_args.network={json.dumps(small)}", "--data.init_args.image_size=64"]
    if "encoder_weights" in config["model"]["init_args"]:
        result.append("--model.init_args.encoder_weights=null")
    for split in ("train", "val"):
        source = config["data"]["init_args"][split]
        path = f"--data.init_args.{split}.init_args"
        kind = source["class_path"].rsplit(".", 1)[-1]
        if kind == "MaskFolder":
            result += [f"{path}.folder={places}", f"{path}.val_count=2"]
        elif kind == "CocoMasks":
            result += [f"{path}.annotations={places / split}.json", f"{path}.images={places / 'images'}"]
        else:
            result += [f"{path}.count=8"]
    return [*result, "--data.init_args.num_workers=0"]


def test_what_there_is():
    assert set(NAMES) == {"pocket", "folder", "people_pocket", "mae_pocket", "coco_person", "original_123m"}


def fit(name: str, places: Path, out: Path, *options: str) -> None:
    """Run a configuration for two steps and look at what it leaves."""
    file = CONFIGS / f"{name}.yaml"
    config = yaml.safe_load(file.read_text())
    main(["fit", f"--config={file}", f"--out={out}", *QUICK, *swaps(config, places), *options])
    assert {p.name for p in (out / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert (out / "samples" / "step-0000002.png").is_file()
    assert {p.name for p in (out / "export").iterdir()} >= {"config.json", "diffusion_pytorch_model.safetensors"}
    last = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    keys = {key for row in last for key in row}
    assert "val/loss" in keys
    if name != "mae_pocket":
        assert {"val/iou", "val/image_iou", "val/dice", "val/boundary_f", "val/presence_accuracy"} <= keys


@pytest.mark.parametrize("name", sorted({*NAMES} - {"mae_pocket", "people_pocket"}))
def test_trains_and_exports(places, tmp_path, name):
    fit(name, places, tmp_path / "run")


def test_a_pretrained_encoder_goes_on_to_people(places, tmp_path):
    fit("mae_pocket", places, tmp_path / "mae")
    weights = f"--model.init_args.encoder_weights={tmp_path / 'mae/export'}"
    fit("people_pocket", places, tmp_path / "people", weights)
    saved = json.loads((tmp_path / "people/export/config.json").read_text())
    assert saved["encoder_origin"] == "export"
