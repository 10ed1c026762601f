import numpy as np
import pytest
import torch
from tiny_fusion import seeded

from lit_insert.errors import InputError
from lit_insert.fusion.choices import AREAS
from lit_insert.fusion.placement import (
    Window,
    adaptive_scale,
    candidates,
    place,
    region,
    rerank,
    starts,
    whole_cells,
)
from lit_insert.letterbox import letterbox

G = 16
WHOLE = Window(0, 0, G, G)


def solid(height, width):
    return np.ones((height, width), bool)


def gaussian(y, x, spread=1.0):
    rows, columns = np.mgrid[:G, :G]
    return np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * spread**2)).astype(np.float32)


def test_there_are_the_usual_areas():
    assert set(AREAS) == {
        *("top_left", "top_right", "bottom_left", "bottom_right"),
        *("top", "bottom", "left", "right", "center", "anywhere"),
    }
    assert region("bottom_left", WHOLE) == (8, 0, 8, 8)
    assert region("center", WHOLE) == (4, 4, 8, 8)
    assert region("top", Window(3, 0, 9, G)) == (3, 0, 5, G)
    with pytest.raises(InputError, match="'middle': unknown; give one of top_left"):
        region("middle", WHOLE)


@pytest.mark.parametrize("valid", [WHOLE, Window(5, 0, 7, 16), Window(0, 3, 16, 9), Window(7, 0, 1, 16)])
@pytest.mark.parametrize("area", AREAS)
def test_a_box_lands_where_it_was_asked_for(area, valid):
    inside = region(area, valid)
    draw = np.random.default_rng(0)
    for height in range(1, valid.height + 1):
        for width in range(1, valid.width + 1):
            heat = draw.random((G, G), np.float32) if (height + width) % 3 == 0 else None
            window = place(solid(height, width), area, valid, heat=heat).window
            assert window[2:] == (height, width), "it keeps its size"
            for start, size, low, length, first, most in (
                (window.top, height, inside.top, inside.height, valid.top, valid.height),
                (window.left, width, inside.left, inside.width, valid.left, valid.width),
            ):
                assert first <= start
                assert start + size <= first + most, "it stays in the picture"
                if size <= length:
                    assert low <= start
                    assert start + size <= low + length, "it lies in its region"
                else:
                    assert start <= low
                    assert start + size >= low + length, "it covers its region"


def test_corners_are_flush_without_a_phrase():
    for height, width in ((1, 1), (4, 7), (11, 12)):
        assert place(solid(height, width), "top_left", WHOLE).window[:2] == (0, 0)
        assert place(solid(height, width), "bottom_right", WHOLE).window[:2] == (G - height, G - width)
        y, x = place(solid(height, width), "center", WHOLE).window[:2]
        assert abs(2 * y + height - G) <= 1
        assert abs(2 * x + width - G) <= 1


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 4), (5, 5), (8, 3)])
def test_a_peak_is_found(size):
    for y in range(0, G, 3):
        for x in range(1, G, 4):
            window = place(solid(*size), "anywhere", WHOLE, heat=gaussian(y, x)).window
            wanted = [min(max(p - (s - 1) / 2, 0), G - s) for p, s in zip((y, x), size, strict=True)]
            assert abs(window.top - wanted[0]) <= 1
            assert abs(window.left - wanted[1]) <= 1


def test_the_region_bounds_the_phrase():
    heat = gaussian(2, 13)
    assert place(solid(3, 3), "bottom_left", WHOLE, heat=heat).window.top >= 8
    assert place(solid(3, 3), "top_right", WHOLE, heat=heat).window[:2] == (1, 12)
    cold = np.full((G, G), 0.04, np.float32)
    assert place(solid(3, 3), "top_left", WHOLE, heat=cold).window == place(solid(3, 3), "top_left", WHOLE).window


@pytest.mark.parametrize("seed", range(12))
def test_no_overlap_where_there_is_room(seed):
    draw = np.random.default_rng(seed)
    occupied = draw.random((G, G)) < draw.uniform(0.02, 0.5)
    height, width = draw.integers(1, 6, 2)
    core = draw.random((height, width)) < 0.8
    core[0, 0] = True
    area = list(AREAS)[seed % len(AREAS)]
    heat = draw.random((G, G)).astype(np.float32) if seed % 2 else None
    found = place(core, area, WHOLE, heat=heat, occupied=occupied)
    inside = region(area, WHOLE)
    free = [
        (y, x)
        for y in starts(height, (inside.top, inside.height), (0, G))
        for x in starts(width, (inside.left, inside.width), (0, G))
        if not (occupied[y : y + height, x : x + width] & core).any()
    ]
    taken = int((occupied[found.window.slices] & core).sum())
    assert found.overlap == taken
    assert (taken == 0) is bool(free)


def test_what_is_too_large_is_refused():
    with pytest.raises(InputError, match="takes 9 cells, the picture has 7"):
        place(solid(9, 3), "anywhere", Window(4, 0, 7, 16))


def test_cells_of_a_letterboxed_picture():
    assert whole_cells(letterbox(64, 64, (64, 64)), 4) == (0, 0, 16, 16)
    assert whole_cells(letterbox(32, 64, (64, 64)), 4) == (4, 0, 8, 16)
    assert whole_cells(letterbox(200, 4000, (64, 64)), 4) == (7, 0, 1, 16) or whole_cells(
        letterbox(200, 4000, (64, 64)), 4
    ) == (8, 0, 1, 16)


def test_adaptive_size():
    heat = np.zeros((10, 10), np.float32)
    assert adaptive_scale(heat) == 0.5
    assert adaptive_scale(None) == 0.5
    heat[:5, :5] = 0.9
    assert adaptive_scale(heat) == pytest.approx(0.9 * 0.25**0.5)
    assert adaptive_scale(heat, gamma=1.0, eta=0.4) == 0.2
    assert adaptive_scale(np.ones((4, 4), np.float32)) == 0.8


def test_candidates_are_seeded_and_inside():
    first = Window(9, 2, 3, 4)
    windows = candidates(first, "bottom_left", WHOLE, seeded(1), count=30, jitter=0.3)
    assert windows[0] == first
    assert len(set(windows)) == len(windows) > 5
    assert all(w.top >= 8 and w.top + 3 <= 16 and w.left >= 0 and w.left + 4 <= 8 for w in windows)
    torch.manual_seed(99)
    assert windows == candidates(first, "bottom_left", WHOLE, seeded(1), count=30, jitter=0.3)
    assert windows != candidates(first, "bottom_left", WHOLE, seeded(2), count=30, jitter=0.3)
    assert candidates(first, "bottom_left", WHOLE, seeded(1), jitter=0.0) == [first]


def test_reranking_weighs_overlap():
    scores = {"a": 0.5, "b": 0.7, "c": 0.7}
    pictures = {k: torch.full((3, 2, 2), v) for k, v in scores.items()}
    over = {"a": 0.0, "b": 1.0, "c": 1.0}

    def best(penalty):
        return rerank("abc", pictures.get, lambda p: float(p.mean()), over.get, penalty)

    assert best(0.0)[0] == "b"
    chosen, found = best(0.3)
    assert chosen == "a"
    assert found == pytest.approx([0.5, 0.4, 0.4])
