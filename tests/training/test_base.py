from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from runner import fit, toy, trainer
from torch import nn
from toy import ToyData, ToyModule

from lit_insert.errors import InputError
from lit_insert.training import base
from lit_insert.training.base import BaseModule, batch_length, frozen


def test_frozen_networks_stay_in_eval_mode_while_the_rest_trains(tmp_path):
    class Look(pl.Callback):
        def on_train_batch_start(self, trainer, module, *args):
            modes.append((module.encoder[1].training, module.net.training))

    modes: list = []
    model = toy()
    before = {k: v.clone() for k, v in model.encoder.state_dict().items()}
    fit(tmp_path, Look(), model=model, max_steps=8)  # past a validation
    assert set(modes) == {(False, True)}
    assert all(torch.equal(v, before[k]) for k, v in model.encoder.state_dict().items())


def test_noise_depends_on_seed_rank_and_batch_alone(tmp_path):
    def drawn(**options):
        model = toy(noise=1.0, **{k: v for k, v in options.items() if k == "noise_seed"})
        rest = {k: v for k, v in options.items() if k != "noise_seed"}
        torch.manual_seed(len(options))  # must not matter
        fit(tmp_path, model=model, limit_val_batches=0, **rest)
        return model.drawn

    first = drawn()
    assert first == drawn(max_steps=6)
    assert first == drawn(accumulate_grad_batches=2, max_steps=3)
    assert len(set(first)) == len(first)
    assert not set(first) & set(drawn(noise_seed=1))


def test_ranks_draw_different_noise(monkeypatch):
    model = toy()
    draws = []
    for rank in range(3):
        monkeypatch.setattr(ToyModule, "global_rank", rank)
        generator = model._generator(5)
        draws += [float(torch.randn((), generator=generator)), float(torch.randn(()))]
    assert len(set(draws)) == 6


def test_validation_has_the_same_noise_every_time(tmp_path):
    model = toy(noise=1.0)
    runner = trainer(tmp_path)
    losses = [runner.validate(model, ToyData(), verbose=False)[0]["val/loss"] for _ in range(2)]
    assert losses[0] == losses[1]


def test_infinite_gradient_of_a_finite_loss_is_caught(tmp_path):
    class Cliff(ToyModule):
        def compute_loss(self, batch, generator):
            loss = super().compute_loss(batch, generator)["loss"]
            return {"loss": loss + (self.net[0].weight[0, 0] * 0).abs().sqrt()}

    with pytest.raises(InputError, match=r"gradient is not finite though the loss is at step 0; batch ids: s\d+"):
        fit(tmp_path, model=Cliff())


def test_nan_in_an_accumulated_batch_names_that_batch(tmp_path):
    with pytest.raises(InputError) as error:
        fit(tmp_path, model=toy(nan_at="s3"), accumulate_grad_batches=4, data=ToyData(shuffle=False))
    assert "loss is nan at step 0; batch ids: s0, s1, s2, s3; " in str(error.value)


def test_rate_and_gradient_norm_are_logged(tmp_path):
    class Log(pl.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            seen.update(trainer.callback_metrics)

    seen: dict = {}
    fit(tmp_path, Log(), max_steps=2)
    assert {"train/loss", "train/grad_norm", "lr"} <= seen.keys()
    assert float(seen["lr"]) == pytest.approx(0.02)

    class Two(ToyModule):
        def parameter_groups(self):
            from lit_insert.training.parameters import named_groups

            return named_groups(self, {"net.0": 0.1, "net": 1.0})

    seen.clear()
    fit(tmp_path, Log(), model=Two(optimizer=lambda p: torch.optim.SGD(p, lr=0.02)), max_steps=2)
    assert float(seen["lr/net"]) == pytest.approx(0.02)
    assert float(seen["lr/net.0"]) == pytest.approx(0.002)


def test_trainables_are_float32_under_mixed_precision(tmp_path):
    model = toy(norm=False)
    model.net.to(torch.bfloat16)
    fit(tmp_path, model=model, precision="bf16-mixed", max_steps=2)
    assert {p.dtype for p in model.net.parameters()} == {torch.float32}


@pytest.mark.parametrize("emulated", [True, False])
@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_a_precision_that_this_cpu_emulates_is_warned_of(tmp_path, monkeypatch, caplog, emulated, precision):
    monkeypatch.setattr(base, "emulates_bf16", lambda device: emulated and device.type == "cpu")
    fit(tmp_path, precision=precision, max_steps=1)
    assert ("--trainer.precision 32-true" in caplog.text) == (emulated and precision == "bf16-mixed")


def test_only_cpus_emulate():
    assert base.emulates_bf16(torch.device("cpu")) != torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert not base.emulates_bf16(torch.device("cuda"))


@pytest.mark.parametrize("algorithm", [None, "value"])
def test_a_fused_optimiser_is_clipped_in_mixed_precision(tmp_path, algorithm):
    def weights(fused, **options):
        model = ToyModule(optimizer=lambda p: torch.optim.SGD(p, lr=0.5, fused=fused))
        fit(tmp_path, model=model, precision="bf16-mixed", max_steps=2, gradient_clip_algorithm=algorithm, **options)
        return torch.cat([p.flatten() for p in model.net.parameters()])

    clipped = weights(True, gradient_clip_val=1e-3)
    torch.testing.assert_close(clipped, weights(False, gradient_clip_val=1e-3))
    start = torch.cat([p.flatten() for p in toy().net.parameters()])
    bound = 2 * 0.5 * 1e-3 * (1 if algorithm is None else len(start) ** 0.5)
    assert 0 < (clipped - start).norm() <= bound * 1.001 < (weights(True) - start).norm()


def test_nothing_to_train(tmp_path):
    model = toy()
    frozen(model.net)
    with pytest.raises(InputError, match="requires a gradient"):
        fit(tmp_path, model=model)


def test_hyper_parameters_become_plain_data(tmp_path):
    class Odd(BaseModule):
        def __init__(self, folder, net, sizes):
            super().__init__()
            self.save_hyperparameters()

        def compute_loss(self, batch, generator):
            return {"loss": torch.zeros(())}

        def export(self, folder):
            Path(folder).mkdir()

    model = Odd(tmp_path, nn.Linear(1, 1), (1, [2, nn.ReLU()]))
    with pytest.raises(InputError, match="Odd draws no pictures"):
        model.predict_step({"id": ["a"]}, 0)
    checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(checkpoint)
    assert checkpoint["hyper_parameters"] == {"folder": str(tmp_path), "sizes": [1, [2]]}
    assert model.base_model is None


@pytest.mark.parametrize(
    ("batch", "length"),
    [({"id": ["a", "b"]}, 2), ({"n": 3, "x": torch.zeros(4, 2)}, 4), ((torch.zeros(5),), 5), ((), 0), ({}, 0)],
)
def test_batch_length(batch, length):
    assert batch_length(batch) == length
