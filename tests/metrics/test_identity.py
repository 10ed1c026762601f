import pytest
import torch

from lit_insert.metrics.identity import IdentityMargin, PromptSimilarity, plain_prompt


def flat(x):
    return x.flatten(1)


def test_margins_by_hand():
    reference = torch.eye(3)
    generated = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8], [1.0, 1.0, 1.0]])
    metric = IdentityMargin(flat)
    metric.update(generated, reference)
    found = metric.compute()
    third = 3**-0.5
    assert found["own"] == pytest.approx((1 + 0.6 + third) / 3)
    assert found["other"] == pytest.approx((0 + 0.8 + third) / 3)
    assert found["margin"] == pytest.approx((1 - 0.2 + 0) / 3)
    assert found["positive"] == pytest.approx(1 / 3)


def test_swapped_things_have_the_margin_of_right_ones_below_zero():
    reference = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    right, swapped = IdentityMargin(flat), IdentityMargin(flat)
    right.update(reference, reference)
    swapped.update(reference.flip(0), reference)
    assert right.compute()["margin"] == pytest.approx(-swapped.compute()["margin"])
    assert right.compute()["positive"] == 1
    assert swapped.compute()["positive"] == 0


@pytest.mark.parametrize("count", [(1, 1), (2, 3)])
def test_there_must_be_something_to_confuse(count):
    with pytest.raises(ValueError, match="two or more"):
        IdentityMargin(flat).update(torch.zeros(count[0], 2), torch.zeros(count[1], 2))


def test_learned_tokens_become_words():
    prompt = "a photo of <asset0> and <asset1> on the beach"
    assert plain_prompt(prompt, {"<asset0>": "toy car"}) == "a photo of toy car and object on the beach"
    assert plain_prompt("no tokens") == "no tokens"


def test_prompt_similarity_sees_the_words_and_averages():
    seen = []

    def texts(prompts):
        seen.extend(prompts)
        return torch.tensor([[1.0, 0.0]]).repeat(len(prompts), 1)

    metric = PromptSimilarity(flat, texts, {"<a>": "cat"})
    metric.update(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), ["<a>", "b"])
    metric.update(torch.tensor([[-3.0, 0.0]]), ["c"])
    assert seen == ["cat", "b", "c"]
    assert metric.compute().item() == pytest.approx(0)
    with pytest.raises(ValueError, match="1 pictures with 2 prompts"):
        metric.update(torch.zeros(1, 2), ["a", "b"])
