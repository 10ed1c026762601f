import pytest
import torch
from tiny import unet

from lit_insert.consistency.karras import NoiseRange
from lit_insert.consistency.sources import ModelFacts, save_folder
from lit_insert.consistency.start import CHECKPOINT_KEY, Start, checkpoint_entry, load_start, scheduler_for
from lit_insert.errors import InputError

FACTS = ModelFacts(kind="edm", labels=[0, 2], null_label=3)
NOISE = NoiseRange(sigma_max=40.0)


def saved(tmp_path, kind):
    net = unet(3, num_classes=3, null_class=True)
    if kind == "folder":
        save_folder(tmp_path / "m", net, scheduler_for(NOISE, 18), FACTS)
        return net, tmp_path / "m"
    if kind == "plain":
        net.save_pretrained(tmp_path / "m")
        return net, tmp_path / "m"
    state = {f"unet.{k}": v for k, v in net.state_dict().items()}
    shadow = {f"unet.{k}": v * 2 for k, v in net.state_dict().items()}
    averages = {"EMA": {"updates": 3, "shadow": shadow}}
    entry = {CHECKPOINT_KEY: checkpoint_entry(Start(net, NOISE, FACTS, 18))}
    torch.save({"state_dict": state, "callbacks": averages, **entry}, tmp_path / "m.ckpt")
    for p in net.parameters():
        p.data *= 2
    return net, tmp_path / "m.ckpt"


@pytest.mark.parametrize("kind", ["folder", "plain", "checkpoint"])
def test_from_everything_that_is_written(tmp_path, kind):
    net, path = saved(tmp_path, kind)
    start = load_start(path)
    assert all(torch.equal(v, start.unet.state_dict()[k]) for k, v in net.state_dict().items())
    assert start.facts.kind == "edm"
    if kind != "plain":
        assert (start.noise, start.facts, start.num_classes, start.grid) == (NOISE, FACTS, 3, 18)


def test_other_checkpoints_are_refused(tmp_path):
    torch.save({"state_dict": {"w": torch.zeros(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match=r"other\.ckpt"):
        load_start(tmp_path / "other.ckpt")
    with pytest.raises(InputError, match="nowhere"):
        load_start(tmp_path / "nowhere")


@pytest.mark.parametrize(("name", "kind"), [("pocket", "consistency"), ("pocket:generate_teacher", "edm")])
def test_the_models_of_the_package(name, kind):
    assert load_start(name).facts.kind == kind
