import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_fusion import scene, thing

from lit_insert.errors import InputError
from lit_insert.fusion.scaling import (
    CutOut,
    backdrop_canvas,
    canvas_of,
    core_of,
    coverage,
    cut_out,
    full_canvas,
    opaque_alpha,
    paste,
    resized,
    target_size,
    warp,
)


def disc(side):
    picture = thing(side, side)
    return cut_out(picture, np.asarray(picture)[..., 3] / 255, "disc")


def test_an_object_is_cut_to_its_box():
    picture, mask = Image.new("RGB", (10, 8), (10, 20, 30)), np.zeros((8, 10), np.float32)
    mask[2:5, 3:9] = 1
    cut = cut_out(picture, mask, "it")
    assert cut.size == (3, 6)
    assert cut.rgb[:, 0, 0].mul(255).round().tolist() == [10, 20, 30]
    with pytest.raises(InputError, match=r"it: nothing was found in it \(the mask is empty\)"):
        cut_out(picture, mask * 0.4, "it")
    with pytest.raises(InputError, match="10x9 pixels, it has 10x8"):
        cut_out(picture, np.ones((9, 10), np.float32), "it")


def test_colours_behind_do_not_bleed():
    rgb = torch.zeros(3, 40, 40)
    rgb[1] = 1.0  # green everywhere, but only the red half shows
    alpha = torch.zeros(1, 40, 40)
    rgb[:, :, :20] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    alpha[:, :, :20] = 1
    small = resized(CutOut(rgb, alpha), (10, 10))
    solid = small.alpha[0] > 0.5
    assert small.rgb[1][solid].max() < 0.02
    assert small.rgb[0][solid].min() > 0.9


def test_target_size_keeps_the_aspect_and_the_room():
    cut = CutOut(torch.zeros(3, 30, 60), torch.ones(1, 30, 60))
    assert target_size(cut, 20, (100, 100)) == (10, 20)
    assert target_size(cut, 20, (5, 100)) == (5, 10)
    assert target_size(cut, 0.1, (100, 100)) == (1, 1)


@pytest.mark.parametrize("side", [1, 3, 7, 16, 20, 33])
def test_coverage_loses_nothing(side):
    cut = resized(disc(40), (side, side))
    cells = coverage(cut.alpha, 4)
    assert cells.shape == (-(-side // 4),) * 2
    assert cells.sum().item() * 16 == pytest.approx(cut.alpha.sum().item(), rel=1e-4)
    assert core_of(cells).any()


@pytest.mark.parametrize("feather", [0, 1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 5), (7, 4)])
def test_the_core_is_opaque(shape, feather):
    core = np.zeros((16, 16), bool)
    core[4 : 4 + shape[0], 6 : 6 + shape[1]] = True
    alpha = opaque_alpha(core, feather)
    assert (alpha[torch.from_numpy(core)] == 1).all()
    window = np.ones((2 * feather + 1, 2 * feather + 1), np.uint8)
    reach = torch.from_numpy(cv2.dilate(core.astype(np.uint8), window).astype(bool))
    assert not alpha[~reach].any()
    assert (alpha[reach] > 0).any()
    if feather:
        assert alpha[3, 6] == pytest.approx(1 - 1 / (feather + 1))
    assert not opaque_alpha(np.zeros((4, 4), bool)).any()


@pytest.mark.parametrize("side", [8, 12, 20, 40])
def test_any_object_of_four_cells_is_whole_inside(side):
    core = core_of(coverage(resized(disc(80), (side, side)).alpha, 4))
    alpha = opaque_alpha(np.pad(core, 2))
    inner = cv2.erode(np.pad(core, 2).astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    assert core.sum() >= 4
    if inner.any():
        assert alpha[torch.from_numpy(inner)].mean() >= 0.99


def test_pasting_at_the_border():
    canvas, cut = torch.zeros(3, 16, 16), CutOut(torch.ones(3, 6, 6), torch.ones(1, 6, 6))
    assert paste(cut, (-2, 13), canvas).sum() == 3 * 4 * 3
    assert paste(cut, (20, 0), canvas).sum() == 0
    assert canvas.sum() == 0, "the canvas itself stays"


def test_backdrops():
    cut = CutOut(torch.tensor([0.8, 0.2, 0.1])[:, None, None].expand(3, 6, 6), torch.ones(1, 6, 6))
    view = torch.rand(3, 16, 16)
    assert backdrop_canvas("scene", cut, view) is view
    assert not backdrop_canvas("black", cut, view).any()
    for kind in ("mean", "edge"):
        assert torch.allclose(backdrop_canvas(kind, cut, view)[:, 3, 5], torch.tensor([0.8, 0.2, 0.1]), atol=1e-5)
    framed = cut.rgb.clone()
    framed[:, 1:-1, 1:-1] = 0.5
    edge = backdrop_canvas("edge", CutOut(framed, cut.alpha), view)
    assert torch.allclose(edge[:, 0, 0], torch.tensor([0.8, 0.2, 0.1]), atol=1e-5)


def test_features_shrink_about_the_middle():
    z = torch.zeros(1, 16, 16)
    z[:, 4:12, 4:12] = 1
    small = warp(z, 0.5)
    assert small.sum() == pytest.approx(16.0, rel=0.1)
    assert small[0, 7:9, 7:9].min() == 1
    assert torch.allclose(warp(z, 1.0), z, atol=1e-5)


def test_an_object_fills_its_canvas():
    canvas, alpha = full_canvas(disc(40), 32, torch.zeros(3, 32, 32))
    assert alpha.mean() == pytest.approx(np.pi / 4, abs=0.03)
    assert canvas[0].mean() == pytest.approx(230 / 255 * np.pi / 4, abs=0.03)


def test_a_scene_keeps_its_aspect():
    pixels = torch.from_numpy(np.array(scene(48, 24), dtype=np.float32)).permute(2, 0, 1) / 255
    canvas, frame = canvas_of(pixels, 32)
    assert canvas.shape == (3, 32, 32)
    assert frame == (8, 0, 16, 32)
    assert torch.equal(canvas[:, 0], canvas[:, 8]), "its border goes on"
