import pytest
import torch

from lit_insert.errors import InputError
from lit_insert.mifo.monitor import CollapseMonitor
from lit_insert.mifo.objective import (
    AttentionLoss,
    Weights,
    attention_terms,
    gate,
    masked_error,
    max_normalised,
    penalty,
    reward,
    token_columns,
    weights_at,
)


@pytest.fixture
def maps():
    return torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)


def halves():
    masks = torch.zeros(2, 3, 1, 8, 8)
    masks[:, 0, :, :, :4] = 1
    masks[:, 1, :, :, 4:] = 1
    masks[:, 2, :, :4] = 1
    return masks


def test_the_losses_are_their_equations_by_hand():
    a = torch.tensor([[0.5, 0.2], [0.1, 0.0]])
    m = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert reward(a, m).item() == pytest.approx((0 + 0.04 + 0.01 + 0.25) / 4)
    assert penalty(a, m).item() == pytest.approx((0.04 + 0.01) / 4)
    assert max_normalised(a, m).item() == pytest.approx((0 + 0.16 + 0.04 + 1) / 4)


def test_the_penalty_is_zero_only_where_nothing_is_outside_and_never_holds_up_the_inside():
    m = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    inside = torch.tensor([[0.3, 0.0], [0.9, 0.0]], requires_grad=True)
    assert penalty(inside, m) == 0
    outside = (inside.detach() + torch.tensor([[0.0, 0.2], [0.0, 0.0]])).requires_grad_()
    penalty(outside, m).backward()
    assert (outside.grad * m == 0).all()
    assert outside.grad[0, 1] > 0


def test_only_break_a_scene_is_blind_to_scale(maps):
    m = halves()[:, :, 0, ::2, ::2]
    a = maps.detach()
    torch.testing.assert_close(max_normalised(a * 0.1, m), max_normalised(a, m))
    assert not torch.allclose(reward(a * 0.1, m), reward(a, m))
    assert not torch.allclose(penalty(a * 0.1, m), penalty(a, m))


def test_the_schedule_of_each_mode():
    paper = AttentionLoss("mifo_paper", reward_weight=1.0, penalty_weight=2.0, reward_steps=3)
    assert [weights_at(paper, s) for s in (0, 2, 3, 900)] == [
        *[Weights(reward=1.0)] * 2,
        *[Weights(penalty=2.0)] * 2,
    ]
    joint = AttentionLoss("mifo_joint", reward_weight=1.0, penalty_weight=2.0, reward_steps=3)
    assert {weights_at(joint, s) for s in (0, 3, 900)} == {Weights(1.0, 2.0)}
    assert weights_at(AttentionLoss("break_a_scene"), 7) == Weights(max_normalised=1e-2)
    assert not any(weights_at(AttentionLoss("none"), 7))
    with pytest.raises(InputError, match="use one of mifo_paper, mifo_joint, break_a_scene, none"):
        AttentionLoss("mifo")


def test_the_gate_is_per_sample_and_not_for_break_a_scene():
    t = torch.tensor([0, 499, 500, 999])
    assert gate(AttentionLoss("mifo_paper"), t).tolist() == [True, True, False, False]
    assert gate(AttentionLoss("break_a_scene"), t).all()


def test_terms_are_sums_over_layers_and_tokens_of_the_samples_that_count(maps):
    masks, present = halves(), torch.tensor([[True, True, False], [True, False, False]])
    weights, counts = Weights(0.5, 2.0), torch.tensor([False, True])
    found = attention_terms([maps, maps], masks, present, counts, weights)
    m = masks[:, :, 0, ::2, ::2]  # halves stay halves
    expected = 2 * (0.5 * reward(maps[1, 0], m[1, 0]) + 2.0 * penalty(maps[1, 0], m[1, 0])) / 2
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(found.inside, maps[1, 0][:, :2].mean().detach())
    found.loss.backward()
    assert maps.grad[0].abs().sum() == 0
    assert maps.grad[1, 1:].abs().sum() == 0
    nothing = attention_terms([maps], masks, present, torch.tensor([False, False]), weights)
    assert nothing.loss == 0
    assert nothing.inside.isnan()


def test_the_diffusion_loss_sees_only_the_union_of_the_masks():
    g = torch.Generator().manual_seed(0)
    wanted, predicted = torch.randn(2, 4, 4, 4, generator=g), torch.randn(2, 4, 4, 4, generator=g)
    masks = halves()[:, :1] * torch.tensor([1.0, 0.0]).view(2, 1, 1, 1, 1)
    loss = masked_error(predicted, wanted, masks)
    outside = predicted.clone()
    outside[..., 2:] += 5
    assert torch.equal(masked_error(outside, wanted, masks), loss)
    assert loss[1] == 0
    torch.testing.assert_close(loss[0], (predicted - wanted)[0, :, :, :2].square().sum() / 64)


def test_columns_follow_the_tokens_of_each_prompt():
    ids = torch.tensor([[1, 12, 5, 10, 2], [1, 11, 2, 2, 2]])
    found = token_columns(ids, 10, torch.tensor([[2, 0, -1], [1, -1, -1]]))
    assert found.tolist() == [[1, 3, 0], [1, 0, 0]]


def test_the_monitor_tells_a_fall_after_the_reward_once(caplog):
    monitor = CollapseMonitor()
    for _ in range(30):
        monitor.note(torch.tensor(0.2), rewarded=True)
    monitor.note(torch.tensor(torch.nan), rewarded=False)
    assert monitor.reference == pytest.approx(0.2)
    for _ in range(200):
        monitor.note(torch.tensor(0.15), rewarded=False)
    assert not monitor.collapsed
    assert not caplog.messages
    for _ in range(200):
        monitor.note(torch.tensor(0.05), rewarded=False)
    assert monitor.collapsed
    assert sum("penalty wins" in m for m in caplog.messages) == 1
    kept = CollapseMonitor()
    kept.load_state_dict(monitor.state_dict())
    assert kept.reference == monitor.reference


@pytest.mark.parametrize("target", [0.0, -0.5, 1.5])
def test_attention_that_no_softmax_reaches_is_refused_as_a_target(target):
    with pytest.raises(InputError, match=rf"attention.target is {target}; give more than 0 and at most 1"):
        AttentionLoss(target=target)
