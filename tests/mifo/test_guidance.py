from dataclasses import replace

import pytest
import tiny_text
import torch

from lit_insert.errors import InputError
from lit_insert.mifo.bounded import BoundedAttention, Regions
from lit_insert.mifo.boxes import Box, rasterise
from lit_insert.mifo.guidance import GuidanceSettings, LatentGuidance, Term, alpha, attention_terms, guidance_loss
from lit_insert.mifo.prompts import PromptTokens
from lit_insert.mifo.sampling import both_kinds

BOXES = [Box("a", 0, 0, 0.5, 1), Box("b", 0.5, 0.25, 1, 1)]
TOKENS = PromptTokens(torch.zeros(1, 8, dtype=torch.long), ((2,), (4, 5)), (1, 3), 6)
STEP = torch.tensor(800)
SETTINGS = GuidanceSettings(layers=["mid", "up:8"], step_size=(5.0, 5.0), stop_below=0.0, iterations=3)


@pytest.fixture(scope="module")
def unet():
    return tiny_text.unet().requires_grad_(False)


def given(batch=2):
    draw = torch.Generator().manual_seed(3)
    states = torch.randn(1, 8, 32, generator=draw) * 3
    return torch.randn(batch, 4, 16, 16, generator=draw), states.expand(batch, -1, -1)


def guide(unet, settings=SETTINGS, masks=True):
    attention = BoundedAttention()
    guidance = LatentGuidance(unet, attention, both_kinds(unet, settings.layers), TOKENS, BOXES, settings)
    attention.layers = guidance.layers
    if masks:
        attention.bound(Regions(BOXES), TOKENS, guiding=True)
    return attention, guidance


def improve(unet, latents, states, settings=SETTINGS, **options):
    attention, guidance = guide(unet, settings, **options)
    with attention.attached(unet):
        return guidance.improve(latents, STEP, states, 0, 10)


def test_alpha_is_that_of_the_code_and_never_above_its_maximum():
    coded = [0.55, 0.40, 0.25, 0.10, 0.098, 0.094, 0.087, 0.077, 0.067, 0.055, 0.043, 0.033, 0.023, 0.016, 0.012, 0.01]
    assert [alpha(t, clamped=False) for t in range(16)] == pytest.approx(coded, abs=6e-4)
    assert [alpha(t) for t in range(16)] == pytest.approx([0.40, *coded[1:]], abs=6e-4)
    assert alpha(40) == 0.01


def test_step_sizes_go_down_a_line():
    settings = GuidanceSettings(step_size=(8, 2), until=0.3)
    assert settings.steps(50) == 15
    assert [settings.step_size_at(i, 50) for i in (0, 5, 14)] == pytest.approx([8, 6, 2.4])


def test_terms_by_hand():
    maps = torch.rand(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    inside = rasterise(BOXES, 4, 4).float()
    beyond = 1 - inside
    mean = attention_terms([maps, maps * 3], [inside] * 2, [beyond] * 2, [0.0, 0.0])
    total = attention_terms([maps], [inside], [beyond], [2.0])
    for s in range(2):
        within = maps[:, s][:, inside[s].bool()]
        without = maps[:, s][:, beyond[s].bool()]
        assert torch.allclose(mean.inside[:, s], 2 * within.mean(1))
        assert torch.allclose(mean.outside[:, s], 2 * without.mean(1))
        assert torch.allclose(total.inside[:, s], 2 * within.sum(1))
        assert torch.allclose(total.outside[:, s], 2 * without.sum(1))


def test_losses_by_hand():
    f, b = torch.tensor([[0.6, 0.2]]), torch.tensor([[0.2, 0.6]])
    cross, own = Term(f, b), Term(b, f)
    ratios = {False: [(1 - 0.75) ** 2, (1 - 0.25) ** 2], True: [(1 - 0.6) ** 2, (1 - 0.2 / 1.4) ** 2]}
    logs = [torch.log(torch.tensor(1.2)).item(), torch.log(torch.tensor(1.6)).item()]
    for name in ("normalised", "mifo"):
        settings = GuidanceSettings(objective=name)
        cross_part = sum(ratios[False]) + 0.3 * sum(logs)
        assert guidance_loss(cross, own, 0.3, settings).item() == pytest.approx(2 * cross_part)
    upstream = guidance_loss(cross, own, 0.3, GuidanceSettings(objective="bounded_attention")).item()
    assert upstream == pytest.approx(1.5 * sum(ratios[True]) + 0.5 * ((1 - 0.2 / 1.4) ** 2 + (1 - 0.6) ** 2))


@pytest.mark.parametrize("objective", ["normalised", "mifo", "bounded_attention"])
def test_the_loss_is_zero_where_nothing_is_outside(objective):
    all_inside = Term(torch.tensor([[0.3, 0.7]]), torch.zeros(1, 2))
    assert guidance_loss(all_inside, all_inside, 0.4, GuidanceSettings(objective=objective)).item() == pytest.approx(0)


@pytest.mark.parametrize("objective", ["normalised", "mifo", "bounded_attention"])
@pytest.mark.parametrize("masks", [True, False])
def test_small_steps_lower_the_loss(unet, objective, masks):
    latents, states = given()
    small = replace(SETTINGS, objective=objective, step_size=(0.2, 0.2) if objective == "mifo" else (5.0, 5.0))
    better, losses = improve(unet, latents, states, small, masks=masks)
    assert len(losses) == 3
    assert (losses[1] < losses[0]).all()
    assert (losses[2] < losses[1]).all()
    assert not better.requires_grad


def test_a_picture_does_not_depend_on_its_batch(unet):
    latents, states = given()
    both, losses = improve(unet, latents, states)
    for i in range(2):
        alone, own = improve(unet, latents[i : i + 1], states[i : i + 1])
        assert torch.allclose(both[i], alone[0], atol=1e-4)
        assert torch.allclose(torch.stack(losses)[:, i], torch.cat(own), atol=1e-5)


def test_a_picture_that_is_good_enough_is_left_alone(unet):
    latents, states = given()
    _, losses = improve(unet, latents, states)
    order = losses[0].argsort()
    between = losses[0].mean().item() / len(BOXES)
    found, _ = improve(unet, latents, states, replace(SETTINGS, stop_below=between, iterations=1))
    assert torch.equal(found[order[0]], latents[order[0]])
    assert not torch.equal(found[order[1]], latents[order[1]])
    found, losses = improve(unet, latents, states, replace(SETTINGS, stop_below=1e3))
    assert torch.equal(found, latents)
    assert len(losses) == 1


def test_backtracking_never_ends_worse(unet):
    latents, states = given()
    wild = replace(SETTINGS, step_size=(3000.0, 3000.0), iterations=6)
    _, plain = improve(unet, latents, states, wild)
    found, losses = improve(unet, latents, states, replace(wild, backtrack=True))
    attention, guidance = guide(unet)
    with attention.attached(unet), torch.no_grad():
        final = guidance.loss(found, STEP, states, 0)
    assert (final <= losses[0] + 1e-6).all()
    assert (final < plain[-1] + 1e-6).all()


def test_the_size_of_a_box_does_not_matter_to_the_means():
    level = torch.full((1, 1, 8, 8), 0.25)
    for box in (Box("a", 0, 0, 0.25, 0.25), Box("a", 0, 0, 1, 0.5)):
        inside = rasterise([box], 8, 8).float()
        term = attention_terms([level], [inside], [1 - inside], [0.0])
        assert guidance_loss(term, term, 0.0, GuidanceSettings()).item() == pytest.approx(2 * 0.25)


def test_settings_are_checked():
    with pytest.raises(InputError, match=r"guidance.objective is 'paper'"):
        GuidanceSettings(objective="paper")
    with pytest.raises(InputError, match="until is a fraction"):
        GuidanceSettings(until=15)
