import numpy as np
import pytest
import torch
from diffusers import CMStochasticIterativeScheduler
from tiny_inpaint import tiny_pipeline

from lit_insert.consistency.network import build_unet
from lit_insert.consistency.pipeline import ConsistencyPipeline
from lit_insert.errors import InputError
from lit_insert.replace.fills import FillRequest
from lit_insert.replace.generative import ConsistencyFill, DiffusionFill


def consistency(classes=None, **facts):
    torch.manual_seed(0)
    network = build_unet(
        image_size=16,
        channels=8,
        channel_mult=[1, 2],
        num_res_blocks=1,
        attention_resolutions=[8],
        head_dim=8,
        norm_groups=4,
        resblock_updown=False,
        num_classes=classes,
    )
    for parameter in network.parameters():  # some layers start at zero, and would make the network blind
        torch.nn.init.normal_(parameter, std=0.15)
    return ConsistencyPipeline(network.eval(), CMStochasticIterativeScheduler(), **facts)


@pytest.fixture(scope="module")
def model():
    return consistency()


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory):
    return str(tiny_pipeline(tmp_path_factory.mktemp("models") / "tiny"))


def request(side=40, **wishes):
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    hole = np.zeros((side, side), bool)
    hole[side // 4 : side // 2, side // 4 : side // 2] = True
    return FillRequest(image, hole, **wishes)


def checked(fill, asked):
    """The fill, checked to leave all but the hole alone, and to repeat itself."""
    filled = fill(asked)
    assert filled.shape == asked.image.shape
    assert filled.dtype == np.uint8
    assert np.array_equal(filled[~asked.replace_mask], asked.image[~asked.replace_mask])
    assert np.array_equal(filled, fill(asked))
    return filled


@pytest.mark.parametrize("side", [9, 16, 40])
@pytest.mark.parametrize("start_sigma", [None, 4.0])
@pytest.mark.parametrize("from_picture", [False, True])
def test_a_consistency_model_fills_the_hole_only(model, side, start_sigma, from_picture):
    start = np.full((side, side, 3), 128, np.uint8) if from_picture else None
    filled = checked(ConsistencyFill(model, start_sigma=start_sigma), request(side, start=start, seed=1))
    assert not np.array_equal(filled, checked(ConsistencyFill(model), request(side, seed=2)))


def test_what_is_under_the_hole_does_not_matter(model):
    asked = request(16)
    other = np.where(asked.replace_mask[..., None], np.uint8(9), asked.image)
    fill = ConsistencyFill(model)
    first, second = fill(asked), fill(FillRequest(other, asked.replace_mask))
    assert np.array_equal(first, second)


def test_little_noise_keeps_the_reference(model):
    start = np.full((16, 16, 3), (200, 60, 60), np.uint8)
    asked = request(16, start=start)
    near = checked(ConsistencyFill(model, 1, start_sigma=0.01), asked)
    assert np.abs(near[asked.replace_mask].astype(int) - (200, 60, 60)).max() <= 8
    far = checked(ConsistencyFill(model, 1, start_sigma=40.0), asked)
    assert np.abs(far[asked.replace_mask].astype(int) - (200, 60, 60)).mean() > 20


def test_classes_are_followed_and_unknown_ones_refused():
    model = consistency(3)
    results = [checked(ConsistencyFill(model), request(16, class_label=c)) for c in (0, 2)]
    assert not np.array_equal(*results)
    with pytest.raises(InputError, match="class 3 was never trained"):
        ConsistencyFill(model)(request(16, class_label=3))


def test_levels_that_the_model_lacks_fail_at_once(model):
    with pytest.raises(InputError, match="500"):
        ConsistencyFill(model, start_sigma=500.0)


@pytest.mark.parametrize("side", [20, 50])
def test_a_diffusion_pipeline_fills_the_hole_only(diffusion, side):
    fill = DiffusionFill.from_pretrained(diffusion, num_inference_steps=2, resolution=32)
    words = checked(fill, request(side, prompt="a man"))
    assert not np.array_equal(words, checked(fill, request(side, prompt="dogs")))
    assert not np.array_equal(words, checked(fill, request(side, prompt="a man", seed=4)))
    start = np.full((side, side, 3), 230, np.uint8)
    assert not np.array_equal(words, checked(fill, request(side, prompt="a man", start=start)))


def test_the_model_says_at_what_size_it_works(diffusion):
    assert DiffusionFill.from_pretrained(diffusion).resolution == 128
    with pytest.raises(InputError, match="resolution 33 is not a multiple of 2"):
        DiffusionFill.from_pretrained(diffusion, resolution=33)


def test_strength_out_of_range(diffusion):
    with pytest.raises(InputError, match="strength is 0; give more than 0"):
        DiffusionFill.from_pretrained(diffusion, strength=0.0)


def test_what_is_no_inpainting_pipeline(model, tmp_path, diffusion):
    with pytest.raises(InputError, match="no such folder"):
        DiffusionFill.from_pretrained("nowhere")
    model.save_pretrained(tmp_path / "cm")
    with pytest.raises(InputError, match="no inpainting pipeline could be loaded"):
        DiffusionFill.from_pretrained(str(tmp_path / "cm"))


def test_a_blanked_result_is_an_error(diffusion):
    fill = DiffusionFill.from_pretrained(diffusion, num_inference_steps=1, resolution=16)

    class Flagged:
        images, nsfw_content_detected = [None], [True]

    fill.pipeline = lambda **options: Flagged()
    with pytest.raises(InputError, match="safety checker"):
        fill(request(16))
