import json
import sys

import pytest
import yaml
from PIL import Image
from scripts import load

from lit_insert.data.mask_scenes import MaskScenes
from lit_insert.mask_decoder.evaluate import photo
from lit_insert.mask_decoder.pipeline import MaskPipeline

CONFIG = {
    "model": {
        "init_args": {
            "network": {
                "encoder": "hiera_tiny_224",
                "encoder_kwargs": {"embed_dim": 8, "stages": [1, 1, 1, 1]},
                "decoder_channels": 16,
                "fine_channels": [8, 4],
            },
            "loss": {"bce": 1.0, "dice": 1.0},
        }
    },
    "data": {"init_args": {"image_size": 64, "batch_size": 2, "augmentation": {"zoom": [0.8, 1.5]}}},
}


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """Eight scenes as a folder of photos and masks, and a small network."""
    for kind in ("images", "masks"):
        (tmp_path / "set" / kind).mkdir(parents=True)
    scenes = MaskScenes("train", 8, size=48, empty=0)
    for i in range(8):
        picture = scenes.picture(i)
        photo(picture).save(tmp_path / f"set/images/{i}.png")
        Image.fromarray(picture.mask.numpy() * 255).save(tmp_path / f"set/masks/{i}.png")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CONFIG))

    def give(*more):
        own = ["--folder", tmp_path / "set", "--val_count", 3, "--config", tmp_path / "c.yaml", "--steps", 4]
        monkeypatch.setattr(sys, "argv", ["x", *map(str, (*own, *more))])

    return give


def test_arms_share_their_pictures_and_are_judged_alike(arguments, tmp_path, capsys):
    page = tmp_path / "page.html"
    arguments("--arms", "ours,frozen", "--eval_every", 2, "--json", "--report", page, "--save", tmp_path / "kept")
    load("people_masks").main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["train"], result["val"]) == (5, 3)
    assert list(result["arms"]) == ["ours", "frozen"]
    for arm in result["arms"].values():
        assert [step for step, _ in arm["curves"]["iou"]] == [2, 4]
        assert arm["curves"]["iou"][-1][1] == arm["scores"]["iou"]
        assert len(arm["image_iou"]) == 3
    assert result["arms"]["ours"]["curves"]["loss"] != result["arms"]["frozen"]["curves"]["loss"]
    assert result["controls"]["control: empty"]["iou"] == 0
    assert "frozen: the 3 worst" in page.read_text()
    assert MaskPipeline.from_pretrained(tmp_path / "kept" / "ours").network.img_size == (64, 64)


def test_a_frozen_encoder_stays_as_it_was(arguments):
    arguments("--arms", "frozen")
    bench = load("people_masks")
    args = bench.options()
    args.size = 64
    config = CONFIG["model"]["init_args"]["network"] | {"img_size": 64}
    ours, frozen = (bench.build(arm, config, args) for arm in ("ours", "frozen"))
    assert not any(p.requires_grad for p in frozen.backbone.parameters())
    assert all(p.requires_grad for p in frozen.decoder.parameters())
    for (name, p), q in zip(ours.named_parameters(), frozen.parameters(), strict=True):
        assert p.equal(q), name  # all arms start alike


@pytest.mark.parametrize("arms", ["ours,theirs", "ours_mae"])
def test_mistakes(arguments, arms, capsys):
    arguments("--arms", arms)
    with pytest.raises(SystemExit):
        load("people_masks").main()
    assert "--arms" in capsys.readouterr().err
