import pytest
import torch

from lit_insert.letterbox import letterbox, place, restore


@pytest.mark.parametrize(
    ("size", "canvas", "frame"),
    [
        ((250, 333), (64, 64), (8, 0, 48, 64)),
        ((333, 250), (64, 64), (0, 8, 64, 48)),
        ((100, 100), (64, 96), (0, 16, 64, 64)),
        ((1, 4000), (64, 64), (31, 0, 1, 64)),
        ((16, 8), (64, 64), (0, 16, 64, 32)),
    ],
)
def test_frames_are_centred_and_keep_the_aspect(size, canvas, frame):
    assert letterbox(*size, canvas) == frame


def test_margins_are_zero_and_the_picture_fills_its_frame():
    placed = place(torch.ones(3, 30, 60), (32, 32))
    assert placed.shape == (3, 32, 32)
    assert (placed[:, 8:24] - 1).abs().max() < 1e-6
    assert (placed != 0).sum() == 3 * 16 * 32


@pytest.mark.parametrize("size", [(250, 333), (333, 250), (20, 31), (64, 64)])
def test_there_and_back(size):
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in size), indexing="ij")
    smooth = (x * 2 + y)[None, None]
    back = restore(place(smooth, (64, 64)), *size)
    assert back.shape == smooth.shape
    assert (back - smooth).abs().max() < 0.15
    assert (back - smooth).abs().mean() < 0.02


def test_margins_do_not_leak_into_what_comes_back():
    canvas = torch.full((1, 64, 64), 7.0)
    top, left, tall, wide = letterbox(48, 100, (64, 64))
    canvas[:, top : top + tall, left : left + wide] = 1
    assert (restore(canvas, 48, 100) - 1).abs().max() < 1e-6
