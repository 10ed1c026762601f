import json

import pytest
import torch
from PIL import Image
from runner import trainer
from toy import ToyData, ToyModule

from lit_insert.errors import InputError
from lit_insert.training.base import BaseModule
from lit_insert.training.predictions import PredictionWriter, file_name


def test_a_file_for_each_sample(tmp_path):
    class Predicts(ToyModule):
        def predict_step(self, batch, batch_idx):
            n = len(batch["id"])
            return {
                "id": batch["id"],
                "image": torch.ones(n, 3, 4, 5),
                "mask": [Image.new("L", (3, 2))] * n,
                "score": torch.arange(n),
            }

    got = trainer(tmp_path, PredictionWriter(tmp_path)).predict(Predicts(), ToyData(), return_predictions=False)
    assert got is None
    assert len(list(tmp_path.glob("s?.png"))) == len(list(tmp_path.glob("s?.mask.png"))) == 8
    assert Image.open(tmp_path / "s3.png").size == (5, 4)
    assert json.loads((tmp_path / "s3.json").read_text()) == {"id": "s3", "score": 3}


def test_the_protocol_is_checked(tmp_path):
    class Bare(ToyModule):
        def predict_step(self, batch, batch_idx):
            return batch["x"]

    with pytest.raises(InputError, match=r"Bare.predict_step must return a mapping with 'id'"):
        trainer(tmp_path, PredictionWriter(tmp_path)).predict(Bare(), ToyData(), return_predictions=False)
    assert list(tmp_path.iterdir()) == []


def test_ids_cannot_leave_the_folder_or_collide():
    names = ["plain-1", "../../etc/passwd", "a/b", "a_b", ".hidden", "x" * 500, "ü ß"]
    made = [file_name(n) for n in names]
    assert made[0] == "plain-1"
    assert len(set(made)) == len(names)
    assert all("/" not in m and not m.startswith(".") and len(m) < 140 for m in made)


def test_by_default_the_rows_of_the_grid(tmp_path):
    class Default(ToyModule):
        predict_step = BaseModule.predict_step

    runner = trainer(tmp_path, PredictionWriter(tmp_path))
    runner.predict(Default(), ToyData(), return_predictions=False)
    first = (tmp_path / "s0.png").read_bytes()
    assert Image.open(tmp_path / "s0.png").size == (2 + 2 * 6, 2 + 6)
    runner.predict(Default(), ToyData(), return_predictions=False)
    assert (tmp_path / "s0.png").read_bytes() == first
