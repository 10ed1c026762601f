import pytest
import torch
from torch import nn

from lit_insert.errors import InputError
from lit_insert.training.parameters import (
    check_state,
    frozen,
    frozen_keys,
    matching,
    named_groups,
    scale_peaks,
    scale_rates,
)


def model() -> nn.Module:
    block = nn.ModuleDict({"attn1": nn.Linear(2, 2), "attn2": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})
    return nn.ModuleDict({"adapter": nn.Linear(2, 3), "unet": nn.ModuleList([block])})


def names(module, group):
    of = {id(p): n for n, p in module.named_parameters()}
    return [of[id(p)] for p in group["params"]]


def test_patterns_make_groups_at_their_rates():
    net = model()
    groups = named_groups(net, {"adapter": 1.0, "unet.*attn2*": 0.1, "unet": 0.5})
    found = {g["name"]: (names(net, g), g["lr_scale"], g.get("weight_decay")) for g in groups}
    assert found == {
        "adapter": (["adapter.weight"], 1.0, None),
        "adapter/no_decay": (["adapter.bias"], 1.0, 0.0),
        "unet.*attn2*": (["unet.0.attn2.weight"], 0.1, None),
        "unet.*attn2*/no_decay": (["unet.0.attn2.bias"], 0.1, 0.0),
        "unet": (["unet.0.attn1.weight"], 0.5, None),
        "unet/no_decay": (["unet.0.attn1.bias", "unet.0.norm.weight", "unet.0.norm.bias"], 0.5, 0.0),
    }


def test_rates_reach_optimizer_and_schedulers():
    for make in (
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.2, total_steps=10, pct_start=0.5),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: s / 5),
    ):
        optimizer = torch.optim.AdamW(named_groups(model(), {"adapter": 1.0, "unet": 0.1}), lr=0.2)
        scale_rates(optimizer)
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.2, 0.2, 0.02, 0.02])
        scheduler = make(optimizer)
        scale_peaks(optimizer, scheduler)
        for _ in range(5):
            optimizer.step()
            scheduler.step()
            rates = [g["lr"] for g in optimizer.param_groups]
            assert rates[2] == pytest.approx(0.1 * rates[0])
        assert rates[0] > 0.15


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("unet.0.atn2", "did you mean unet.0.attn2"),
        ("*cross_attention*", "there is: adapter.bias, adapter.weight, unet.0"),
    ],
)
def test_no_match_is_an_error_that_lists_what_exists(pattern, told):
    with pytest.raises(InputError, match="no parameter matches") as error:
        named_groups(model(), {pattern: 1.0})
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_left_out_or_frozen_is_an_error():
    with pytest.raises(InputError, match=r"in no group, such as 'unet.0.attn1.weight'"):
        named_groups(model(), {"adapter": 1.0})
    net = model()
    net["adapter"].requires_grad_(False)
    with pytest.raises(InputError, match="no parameter matches 'adapter'"):
        named_groups(net, {"adapter": 1.0, "unet": 1.0})
    with pytest.raises(InputError, match="nothing in the model requires a gradient"):
        named_groups(frozen(model()))


def test_matching_takes_whole_names_not_prefixes_of_them():
    assert matching(["net.a", "network.a", "net"], "net") == ["net.a", "net"]


def test_frozen_keys_are_parameters_without_gradient_and_the_buffers_beside_them():
    net = nn.ModuleDict({"fixed": nn.BatchNorm1d(2), "free": nn.BatchNorm1d(2)})
    frozen(net["fixed"])
    net.register_buffer("seen", torch.zeros(1))
    assert frozen_keys(net) == {k for k in net.state_dict() if k.startswith("fixed.")}


def test_state_must_fit():
    net = model()
    frozen(net["unet"])
    state = {k: v for k, v in net.state_dict().items() if k.startswith("adapter")}
    check_state(state, net, "x.ckpt")
    with pytest.raises(InputError, match=r"x.ckpt lacks weights: adapter.bias; "):
        check_state({k: v for k, v in state.items() if "bias" not in k}, net, "x.ckpt")
    with pytest.raises(InputError, match=r"unknown weights: adapter.gain"):
        check_state({**state, "adapter.gain": torch.ones(1)}, net, "x.ckpt")
    with pytest.raises(InputError, match=r"adapter.bias \(9,\) instead of \(3,\)"):
        check_state({**state, "adapter.bias": torch.ones(9)}, net, "x.ckpt")
    check_state({}, net, "x.ckpt", partial=True)
