import pytest
import torch
from diffusers import AutoencoderKL

from lit_insert.mifo.latents import LatentCache


@pytest.fixture
def vae():
    torch.manual_seed(0)
    net = AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
                        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, scaling_factor=0.5)  # fmt: skip
    return net.eval().requires_grad_(False)


def draw(cache, vae, images, names, seed=0):
    return cache.draw(vae, images, names, torch.Generator().manual_seed(seed))


def test_latents_are_samples_of_the_posterior_in_the_model_s_scale(vae):
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    posterior = vae.encode(images).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(0))
    wanted = (posterior.mean + posterior.std * noise) * 0.5
    torch.testing.assert_close(draw(LatentCache(), vae, images, ["a", "b"]), wanted)


def test_each_picture_is_encoded_once_and_no_more_are_kept_than_asked_for(vae):
    images, seen = torch.rand(3, 3, 8, 8), []
    encode = vae.encode
    vae.encode = lambda image: seen.append(len(image)) or encode(image)
    cache = LatentCache(2)
    first = draw(cache, vae, images, ["a", "b", "c"])
    again = draw(cache, vae, torch.zeros_like(images[:2]), ["b", "a"], seed=1)
    assert (len(seen), list(cache.known)) == (3, ["a", "b"])
    assert not again.equal(first[:2].flip(0))  # the noise is new
    draw(cache, vae, images[2:], ["c"])
    assert len(seen) == 4
    with pytest.raises(ValueError, match="shorter"):
        draw(cache, vae, images, ["a", "b"])
