import lightning.pytorch as pl
import pytest
import torch
from diffusers.training_utils import EMAModel
from runner import fit, toy, trainer
from toy import ToyData

from lit_insert.errors import InputError
from lit_insert.training.checkpoint import RunCheckpoint
from lit_insert.training.ema import EMA, averaged_state, ema_decay
from lit_insert.training.parameters import trainable


class Watch(pl.Callback):
    """The weights after each optimiser step, and those that validation sees."""

    def __init__(self):
        self.after, self.validated = [], []

    def on_train_batch_end(self, trainer, module, *args):
        if trainer.global_step > len(self.after):
            self.after.append({n: p.detach().clone() for n, p in trainable(module).items()})

    def on_validation_batch_start(self, trainer, module, *args):
        self.validated.append({n: p.detach().clone() for n, p in trainable(module).items()})


def by_hand(history, ceiling):
    average = {}
    for k, weights in enumerate(history, 1):
        d = 0.0 if k == 1 else min(k / (9 + k), ceiling)
        average = {n: d * average[n].double() + (1 - d) * w.double() if d else w.double() for n, w in weights.items()}
    return average


@pytest.mark.parametrize("accumulate", [1, 2])
def test_average_is_the_recurrence_over_optimizer_steps(tmp_path, accumulate):
    watch, ema = Watch(), EMA(0.3)
    fit(tmp_path, watch, ema, accumulate_grad_batches=accumulate, max_steps=8)
    assert ema.updates == 8
    expected = by_hand(watch.after, 0.3)
    assert set(ema.shadow) == set(expected)
    assert not any(n.startswith("encoder") for n in ema.shadow)
    for name, value in expected.items():
        torch.testing.assert_close(ema.shadow[name].double(), value, rtol=1e-5, atol=1e-7)


def test_decay_is_that_of_diffusers():
    theirs = EMAModel([torch.nn.Parameter(torch.zeros(1))], decay=0.97)
    assert [ema_decay(k, 0.97) for k in range(1, 500)] == pytest.approx([theirs.get_decay(k) for k in range(1, 500)])
    assert ema_decay(10_000, 0.97) == 0.97
    assert ema_decay(2, 0.97, warmup=False) == 0.97


def test_validation_sees_the_average_and_training_goes_on_with_the_raw_weights(tmp_path):
    watch, ema = Watch(), EMA(0.9)
    _runner, model = fit(tmp_path, watch, ema, max_steps=12)
    average = by_hand(watch.after[:6], 0.9)
    for name, value in average.items():
        torch.testing.assert_close(watch.validated[0][name].double(), value, rtol=1e-5, atol=1e-7)
    plain = Watch()
    fit(tmp_path, plain, max_steps=12)
    for with_ema, without in zip(watch.after, plain.after, strict=True):
        assert all(torch.equal(with_ema[n], without[n]) for n in without)
    raw = watch.after[-1]
    with ema.averaged(model), ema.averaged(model):
        assert all(torch.equal(p, ema.shadow[n]) for n, p in trainable(model).items())
    assert all(torch.equal(p, raw[n]) for n, p in trainable(model).items())


def test_a_checkpoint_written_while_validating_holds_both(tmp_path):
    class SaveMidway(pl.Callback):
        def on_validation_batch_end(self, trainer, module, *args):
            trainer.save_checkpoint(tmp_path / "midway.ckpt")

    watch, ema = Watch(), EMA(0.9)
    fit(tmp_path, watch, ema, SaveMidway(), RunCheckpoint(), max_steps=6)
    saved = torch.load(tmp_path / "midway.ckpt", weights_only=True)
    assert all(torch.equal(saved["state_dict"][n], w) for n, w in watch.after[-1].items())
    state, has = averaged_state(saved)
    assert has
    assert all(torch.equal(state[n], ema.shadow[n]) for n in ema.shadow)


def test_test_and_predict_use_the_average_of_the_checkpoint(tmp_path):
    ema = EMA(0.9)
    fit(tmp_path, ema, RunCheckpoint(monitor=None), max_steps=6)
    last = tmp_path / "checkpoints/last.ckpt"
    losses = []
    for callbacks in ([EMA(0.9)], []):
        runner = trainer(tmp_path, *callbacks)
        model = toy()
        losses.append(runner.test(model, ToyData(), ckpt_path=last, verbose=False)[0]["test/loss"])
    model = toy()
    model.load_state_dict({**model.state_dict(), **ema.shadow})
    state = torch.load(last, weights_only=True)["state_dict"]
    buffers = {k: v for k, v in state.items() if k not in ema.shadow}
    model.load_state_dict(buffers, strict=False)
    by_hand = trainer(tmp_path).test(model, ToyData(), verbose=False)[0]["test/loss"]
    assert losses[0] == pytest.approx(by_hand, rel=1e-6)
    assert losses[0] != losses[1]


def test_an_error_while_validating_gives_the_raw_weights_back(tmp_path):
    class Fails(pl.Callback):
        def on_validation_batch_end(self, *args):
            raise ZeroDivisionError

    watch, ema, model = Watch(), EMA(0.9), toy()
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, watch, ema, Fails(), model=model)
    assert all(torch.equal(p, watch.after[-1][n]) for n, p in trainable(model).items())


def test_off_and_out_of_range(tmp_path):
    ema = EMA(0.0)
    fit(tmp_path, ema)
    assert ema.shadow == {}
    for decay in (-0.1, 1.0, 2):
        with pytest.raises(InputError, match=r"ema\.decay is"):
            EMA(decay)
