import pytest
import torch
from runner import fit, toy

from lit_insert.errors import InputError
from lit_insert.training.checkpoint import RunCheckpoint
from lit_insert.training.ema import EMA
from lit_insert.training.runs import changed_keys, check_unchanged, checkpoint_of, is_run, load_weights


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    ema = EMA(0.9)
    _, model = fit(folder, ema, RunCheckpoint())
    with ema.averaged(model):
        model.export(folder / "export")
    return folder, model, ema


@pytest.mark.parametrize("source", ["", "checkpoints/last.ckpt", "export"])
def test_weights_of_a_run_a_checkpoint_and_an_exported_folder(run, source):
    folder, _, ema = run
    fresh = toy()
    told = load_weights(fresh, folder / source)
    state = fresh.state_dict()
    assert all(torch.equal(state[n], average) for n, average in ema.shadow.items())
    assert "loaded 9 tensors" in told
    assert ("(the average)" in told) == (source != "export")


def test_without_an_average_the_raw_weights_are_taken(tmp_path):
    _, model = fit(tmp_path, EMA(0.0), RunCheckpoint())
    fresh = toy()
    assert "(the average)" not in load_weights(fresh, tmp_path)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in fresh.state_dict().items())


def test_what_does_not_fit_is_named(run, tmp_path):
    folder = run[0]
    with pytest.raises(InputError, match=r"last.ckpt has misfitting weights: net.0.weight \(8, 8\)"):
        load_weights(toy(width=4), folder)
    with pytest.raises(InputError, match="no such run, checkpoint or folder"):
        load_weights(toy(), tmp_path / "none")
    with pytest.raises(InputError, match=r"no weights for any part of the model \(encoder, net\)"):
        load_weights(toy(), tmp_path)
    (tmp_path / "net").mkdir()
    (tmp_path / "net/model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(InputError, match=r"model.safetensors: cannot be read"):
        load_weights(toy(), tmp_path)


def test_missing_weights_are_told(run):
    fresh = toy()
    fresh.extra = torch.nn.Linear(1, 1)
    assert "not there, left as they were: extra.bias, extra.weight" in load_weights(fresh, run[0])


def test_what_a_run_is(run, tmp_path):
    assert is_run(run[0])
    assert not is_run(tmp_path)
    assert checkpoint_of(run[0], best=True).name == "best.ckpt"
    assert checkpoint_of(run[0]).name == "last.ckpt"
    with pytest.raises(InputError, match="to continue from; start the run without"):
        checkpoint_of(tmp_path)


def test_changed_keys():
    old = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    assert changed_keys(old, {"a": {"b": 2, "c": [1, 2]}, "e": 3}) == [("a.b", 1, 2), ("d", 1, None), ("e", None, 3)]


def test_what_may_change_on_resume(tmp_path):
    old = {"model": {"init_args": {"lr": 1}}, "trainer": {"max_steps": 1, "precision": None}, "data": {}}
    assert check_unchanged(old, {**old, "trainer": {"max_steps": 2, "precision": None}}, tmp_path) == [
        "trainer.max_steps: 1 -> 2"
    ]
    with pytest.raises(InputError, match=r"cannot change model.init_args.lr: 1 -> 2"):
        check_unchanged(old, {**old, "model": {"init_args": {"lr": 2}}}, tmp_path)
    with pytest.raises(InputError, match=r"cannot change trainer.precision: None -> bf16-mixed"):
        check_unchanged(old, {**old, "trainer": {"max_steps": 1, "precision": "bf16-mixed"}}, tmp_path)
