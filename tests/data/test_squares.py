import numpy as np
import pytest
import torch
from PIL import Image

from lit_insert.data.squares import centre_square, halve, largest_side, random_square, shrink_to, to_bytes


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_halving_is_the_mean_of_two_by_two():
    image = noise(64, 48)
    pixels = np.asarray(image, np.float64).reshape(24, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(np.asarray(halve(image, 24)) - pixels).max() <= 1
    assert halve(image, 25).size == (64, 48)
    assert halve(noise(130, 129), 17).size == (32, 32)


@pytest.mark.parametrize("size", [(64, 48), (37, 200), (20, 20), (31, 9), (33, 32)])
def test_shrinking_keeps_the_aspect_and_the_square_is_the_middle(size):
    small = shrink_to(noise(*size), 16)
    assert min(small.size) == 16
    assert max(small.size) == pytest.approx(16 * max(size) / min(size), rel=0.04, abs=1)
    assert centre_square(noise(*size), 16).size == (16, 16)


def test_centre_square_shows_the_middle():
    pixels = np.zeros((32, 96, 3), np.uint8)
    pixels[:, 32:64] = 255
    assert np.asarray(centre_square(Image.fromarray(pixels), 16))[:, 2:-2].min() > 200
    tall = Image.fromarray(pixels.transpose(1, 0, 2).copy())
    assert np.asarray(centre_square(tall, 16))[2:-2].min() > 200


def test_random_squares_follow_the_generator_and_survive_halving_ahead():
    image = noise(100, 230)
    whole, ahead, sides = [], [], set()
    for seed in range(20):
        whole.append(to_bytes(random_square(image, 16, torch.Generator().manual_seed(seed))))
        halved = halve(image, largest_side(16))
        ahead.append(to_bytes(random_square(halved, 16, torch.Generator().manual_seed(seed))))
        sides.add(whole[-1].float().mean().item())
    assert all(torch.equal(a, b) for a, b in zip(whole, ahead, strict=True))
    assert len(sides) == 20
    assert {tuple(w.shape) for w in whole} == {(3, 16, 16)}
