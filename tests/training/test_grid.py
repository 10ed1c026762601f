import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from runner import fit, toy
from toy import ToyData, ToyModule

from lit_insert.errors import InputError
from lit_insert.training.base import BaseModule
from lit_insert.training.ema import EMA
from lit_insert.training.grid import SampleGrid


def test_grids_come_on_time_and_change_nothing(tmp_path):
    plain, drawn = toy(), toy()
    fit(tmp_path / "plain", EMA(0.9), model=plain, max_steps=7)
    logger = TensorBoardLogger(tmp_path / "drawn", name="tb", version="")
    fit(tmp_path / "drawn", EMA(0.9), SampleGrid(3, num_samples=2), model=drawn, max_steps=7, logger=logger)
    names = sorted(p.name for p in (tmp_path / "drawn/samples").iterdir())
    assert names == ["step-0000003.png", "step-0000006.png", "step-0000007.png"]
    width, height = Image.open(tmp_path / "drawn/samples" / names[0]).size
    assert (width, height) == (2 + 2 * 6, 2 + 2 * 6)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, drawn.state_dict()[key]), f"drawing changed {key}"
    events = b"".join(p.read_bytes() for p in (tmp_path / "drawn/tb").glob("events*"))
    assert events.count(b"samples") == 3


def test_same_inputs_noise_and_mode_every_time(tmp_path):
    seen = []

    class Looks(ToyModule):
        def sample_grid(self, batch, generator):
            seen.append((batch["id"], float(torch.randn((), generator=generator)), float(torch.randn(()))))
            assert not any(m.training for m in self.modules())
            return super().sample_grid(batch, generator)

    model = Looks()
    fit(tmp_path, SampleGrid(2, num_samples=3), model=model)
    assert len(seen) == 3
    assert len({str(s) for s in seen}) == 1
    assert seen[0][0] == ["s0", "s1", "s2"]
    assert model.net.training


def test_a_module_without_pictures_draws_none(tmp_path):
    class Blind(ToyModule):
        sample_grid = BaseModule.sample_grid

    fit(tmp_path, SampleGrid(1), model=Blind(), data=ToyData())
    assert not (tmp_path / "samples").exists()


def test_out_of_range():
    for bad in ({"every_n_steps": -1}, {"num_samples": 0}):
        with pytest.raises(InputError):
            SampleGrid(**bad)
