import pytest
import torch
from tiny_insert import components, picture, seeded

from lit_insert.embedding_optimizer.guidance import needed_rows
from lit_insert.embedding_optimizer.pipeline import InsertPipeline


@pytest.fixture(scope="module")
def pipe():
    pipeline = InsertPipeline(**components())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def insert(pipe, image_scale, scale=3.0):
    """Latents of two scenes, and the number of rows that the UNet computed in each step."""
    rows = []
    hook = pipe.unet.conv_in.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    try:
        out = pipe(
            image=[picture(1), picture(2)],
            object_image=[picture(3), picture(4)],
            generator=[seeded(0), seeded(1)],
            num_inference_steps=3,
            guidance_scale=scale,
            image_guidance_scale=image_scale,
            output_type="latent",
        )
    finally:
        hook.remove()
    return torch.stack(out.images), set(rows)


def test_the_row_of_no_weight_is_not_computed(pipe):
    exact, two = insert(pipe, 1.0)
    near, three = insert(pipe, 1.0 + 1e-6)
    far, _ = insert(pipe, 1.5)
    assert (two, three) == ({4}, {6})
    torch.testing.assert_close(exact, near, rtol=1e-4, atol=1e-4)
    assert (exact - far).abs().max() > 1e-3


def test_without_guidance_there_is_one_row(pipe):
    assert insert(pipe, 1.0, scale=1.0)[1] == {2}


def test_the_unet_is_left_as_it_was(pipe):
    def fails():
        with needed_rows(pipe.unet, 3.0, 1.0):
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert not pipe.unet._forward_hooks
    assert not pipe.unet._forward_pre_hooks
