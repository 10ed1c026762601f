"""Which became which."""

import itertools

import pytest
import torch

from lit_insert.errors import InputError
from lit_insert.grounding.pairing import cosines, pair


@pytest.mark.parametrize("seed", range(10))
def test_a_planted_permutation_is_found_one_to_one(seed):
    generator = torch.Generator().manual_seed(seed)
    k = 3 + seed
    vectors = torch.nn.functional.normalize(torch.randn(k, 24, generator=generator), dim=-1)
    order = torch.randperm(k, generator=generator)
    noisy = vectors[order] + 0.05 * torch.randn(k, 24, generator=generator)
    matches = pair(noisy, vectors, ["x"] * k, ["x"] * k)
    assert [m.context for m in matches] == order.tolist()
    assert all(m.similarity == m.best_similarity > 0.8 for m in matches)


def test_the_sum_is_the_largest_there_is():
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        a, b = torch.randn(4, 6, generator=generator), torch.randn(5, 6, generator=generator)
        similar = cosines(a, b)
        worth = (similar - 0.1).clamp(min=0)
        best = max(sum(worth[i, j] for i, j in enumerate(p)) for p in itertools.permutations(range(5), 4))
        matches = pair(a, b, ["x"] * 4, ["x"] * 5, threshold=0.1)
        found = sum(worth[i, m.context] for i, m in enumerate(matches) if m.context is not None)
        assert found == pytest.approx(float(best), abs=1e-4)
        taken = [m.context for m in matches if m.context is not None]
        assert len(set(taken)) == len(taken)


def test_what_has_no_match_says_so():
    eye = torch.eye(3)
    matches = pair(eye[[0, 0, 2]], eye[[0, 1]], ["x"] * 3, ["x"] * 2)
    assert [m.context for m in matches] == [0, None, None]
    assert [m.similarity for m in matches] == [pytest.approx(1.0), None, None]
    assert [m.best for m in matches] == [0, 0, 0]
    assert matches[2].best_similarity == pytest.approx(0)
    assert [m.best for m in pair(eye, eye[:0], ["x"] * 3, [])] == [None] * 3
    assert pair(eye[:0], eye, [], ["x"] * 3) == []


def test_a_thing_without_a_vector_is_like_nothing():
    matches = pair(torch.zeros(1, 3), torch.eye(3), ["x"], ["x"] * 3, threshold=0.01)
    assert matches[0].context is None


def test_labels():
    near = torch.tensor([[1.0, 0.1], [0.1, 1.0]])
    same = {mode: pair(near, near, ["cup", "mug"], ["mug", "cup"], labels=mode) for mode in ("same", "first", "any")}
    assert [m.context for m in same["any"]] == [0, 1]
    assert [m.context for m in same["same"]] == [None, None]  # below the threshold
    assert [m.context for m in same["first"]] == [0, 1]  # nothing with the same label, so any
    rows = torch.tensor([[1.0, 0.8], [1.0, 0.7]])
    first = pair(rows, rows, ["cup", "mug"], ["mug", "cup"], labels="first")
    assert [m.context for m in first] == [1, 0]
    assert [m.best for m in pair(rows, rows, ["cup", "mug"], ["mug", "cup"], labels="same")] == [1, 0]


def test_exactly_at_the_threshold_is_a_match():
    assert pair(torch.ones(1, 2), torch.ones(1, 2), ["x"], ["x"], threshold=1.0)[0].context in (0, None)
    assert pair(torch.eye(2)[:1], torch.eye(2)[:1], ["x"], ["x"], threshold=1.0)[0].context == 0


def test_settings_are_checked():
    with pytest.raises(InputError, match=r"pairing.labels"):
        pair(torch.eye(1), torch.eye(1), ["x"], ["x"], labels="near")
    with pytest.raises(InputError, match=r"pairing.threshold"):
        pair(torch.eye(1), torch.eye(1), ["x"], ["x"], threshold=2)
