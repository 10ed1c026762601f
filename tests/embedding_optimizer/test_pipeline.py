import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from tiny_insert import FEW, components, picture, pixels, seeded

from lit_insert.diffusion.schedulers import SCHEDULERS
from lit_insert.embedding_optimizer.pipeline import InsertPipeline
from lit_insert.errors import InputError


@pytest.fixture(scope="module")
def pipe():
    pipeline = InsertPipeline(**components())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def hand_loop(pipe, scene, reference, seed, steps, s, s_image):
    """Three-way guidance written out from its formula; returns latents."""
    x = torch.from_numpy(pixels(scene)).permute(2, 0, 1)[None].double()
    z_scene = pipe.vae.encode(x).latent_dist.mode()
    clip = pipe.feature_extractor(reference, return_tensors="pt").pixel_values.double()
    c = pipe.embedding_optimizer(pipe.image_encoder(clip).last_hidden_state)
    null = pipe.embedding_optimizer.null(1)
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(steps)
    z = torch.randn(z_scene.shape, generator=seeded(seed), dtype=torch.float64) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x_t = scheduler.scale_model_input(z, t)
        empty = torch.zeros_like(z_scene)
        full, image_only, none = (
            pipe.unet(torch.cat([x_t, z_i], 1), t, e).sample
            for z_i, e in ((z_scene, c), (z_scene, null), (empty, null))
        )
        noise = none + s * (full - image_only) + s_image * (image_only - none)
        z = scheduler.step(noise, t, z).prev_sample
    return z


@pytest.mark.parametrize(("s", "s_image"), [(7.0, 1.5), (2.0, 1.0)])
def test_equals_three_way_guidance_written_out(s, s_image):
    pipe = InsertPipeline(**components()).to(torch.float64)  # latents of a random net are of the order of 50
    scene, reference = picture(1), picture(2)
    with torch.no_grad():
        expected = hand_loop(pipe, scene, reference, 5, 4, s, s_image)
    (latents,) = pipe(
        scene,
        reference,
        guidance_scale=s,
        image_guidance_scale=s_image,
        num_inference_steps=4,
        generator=seeded(5),
        output_type="latent",
    ).images
    assert (latents - expected[0]).abs().max() <= 1e-4


def test_guidance_near_one_is_the_conditional_pass(pipe):
    run = {**FEW, "output_type": "latent", "image_guidance_scale": 1.0}
    off = pipe(picture(1), picture(2), guidance_scale=1.0, generator=seeded(0), **run).images[0]
    near = pipe(picture(1), picture(2), guidance_scale=1.0 + 1e-6, generator=seeded(0), **run).images[0]
    assert (off - near).abs().max() <= 1e-4


def test_dropping_the_object_uses_the_one_null_embedding(pipe):
    seen = {}

    def spy(module, args, kwargs):
        seen["states"] = kwargs["encoder_hidden_states"]
        seen["scene"] = args[0][:, 4:]

    handle = pipe.unet.register_forward_pre_hook(spy, with_kwargs=True)
    pipe(picture(1), picture(2), **FEW)
    handle.remove()
    null = pipe.embedding_optimizer.null(1)[0]
    states, scene = seen["states"], seen["scene"]
    assert torch.equal(states[1], null)
    assert torch.equal(states[2], null)
    assert not torch.allclose(states[0], null)
    assert torch.equal(scene[0], scene[1])
    assert scene[2].abs().max() == 0


def test_a_batch_equals_single_calls(pipe):
    scenes, references = [picture(1), picture(2)], [picture(3), picture(4)]
    run = {**FEW, "output_type": "pt", "preserve_background": False}
    both = pipe(scenes, references, generator=[seeded(0), seeded(1)], **run).images
    for index in range(2):
        single = pipe(scenes[index], references[index], generator=[seeded(index)], **run).images[0]
        assert (both[index] - single).abs().max() <= 1e-4


def test_several_results_a_pair_stay_with_their_pair(pipe):
    scenes, references = [picture(1), picture(2)], [picture(3), picture(4)]
    run = {**FEW, "output_type": "pt", "num_images_per_prompt": 3}
    out = pipe(scenes, references, generator=[seeded(0), seeded(1)], **run)
    assert [m["pair"] for m in out.metadata] == [0, 0, 0, 1, 1, 1]
    alone = pipe(scenes[1], references[1], generator=[seeded(1)], **run).images
    for together, single in zip(out.images[3:], alone, strict=True):
        assert (together - single).abs().max() <= 1e-4
    assert (alone[0] - alone[1]).abs().max() > 1e-3


def test_mixed_sizes_keep_their_order_and_size(pipe):
    sizes = [(37, 45), (32, 32), (37, 45), (90, 20)]
    scenes = [picture(i, size) for i, size in enumerate(sizes)]
    generators = [seeded(i) for i in range(4)]
    out = pipe(scenes, picture(9), generator=generators, **FEW)
    assert [i.size for i in out.images] == sizes
    assert [m["pair"] for m in out.metadata] == [0, 1, 2, 3]
    again = pipe(scenes[2], picture(9), generator=[seeded(2)], **FEW).images[0]
    assert np.abs(pixels(again) - pixels(out.images[2])).max() <= 1e-2


def test_odd_size_is_kept_and_padded_not_squashed(pipe):
    out = pipe(picture(0, (37, 45)), picture(1), **FEW)
    assert out.images[0].size == (37, 45)
    width, height = out.metadata[0]["processing_size"]
    assert width % 2 == height % 2 == 0
    assert abs(width * height - 32 * 32) < 120
    assert pipe(picture(0, (37, 45)), picture(1), height=64, width=48, **FEW).metadata[0]["processing_size"] == (48, 64)
    larger = pipe(picture(0, (100, 50)), picture(1), processing_resolution=64, **FEW).metadata[0]
    assert larger["processing_size"] == (92, 46)
    with pytest.raises(InputError, match="height 45 is not a multiple of 2"):
        pipe(picture(0), picture(1), height=45, **FEW)


class Editor:
    """Stands in for the sampler: the scene's own latents, with one corner repainted."""

    def __init__(self, pipe, amount):
        self.pipe, self.amount = pipe, amount

    def __call__(self, pipeline, step, timestep, tensors):
        latents = tensors["image_latents"][: len(tensors["latents"])] * self.pipe.vae.config.scaling_factor
        latents = latents.clone()
        latents[:, :, :4, :4] += self.amount
        return {"latents": latents}


def edited(pipe, scene, amount, **options):
    return pipe(
        scene,
        picture(2),
        callback_on_step_end=Editor(pipe, amount),
        callback_on_step_end_tensor_inputs=["latents", "image_latents"],
        **FEW,
        **options,
    )


@pytest.mark.parametrize("size", [(32, 32), (111, 97)])
def test_unchanged_pixels_are_the_photos_own(pipe, size):
    scene = picture(1, size)
    untouched = edited(pipe, scene, 0.0)
    assert np.array_equal(np.asarray(untouched.images[0]), np.asarray(scene))
    assert untouched.metadata[0]["changed"] == 0
    raw = edited(pipe, scene, 0.0, preserve_background=False).images[0]
    assert not np.array_equal(np.asarray(raw), np.asarray(scene))  # a random decoder reproduces nothing


def test_changed_pixels_are_the_models(pipe, monkeypatch):
    # A decoder that is local and exact, so that an edit in one corner of the latents stays there.
    up = torch.nn.Upsample(scale_factor=2)
    monkeypatch.setattr(pipe.vae, "decode", lambda z, return_dict: (up(z[:, :3]).clamp(-1, 1),), raising=True)
    scene = picture(1, (64, 64))
    photo = np.asarray(scene).astype(int)
    result = np.asarray(edited(pipe, scene, 9.0).images[0]).astype(int)
    raw = np.asarray(edited(pipe, scene, 9.0, preserve_background=False).images[0]).astype(int)
    assert np.array_equal(result[32:, 32:], photo[32:, 32:])
    assert np.array_equal(result[:10, :10], raw[:10, :10])
    assert np.abs(result[:10, :10] - photo[:10, :10]).max() > 20
    # Along a line across the edge the weight falls from the result to the photo without a jump back.
    difference = np.abs(result - photo).sum(-1)[4]
    assert (difference[26:] == 0).all()
    edge = np.abs(result - raw).sum(-1)[4]
    assert (edge[:10] == 0).all()
    assert (edge[14:24] > 0).any()


def test_transparent_object_is_cut_out_and_laid_on_neutral(pipe):
    from lit_insert.embedding_optimizer.canvas import reference_picture
    from lit_insert.images import NEUTRAL

    cutout = Image.new("RGBA", (100, 60), (255, 255, 255, 0))
    cutout.paste((200, 10, 10, 255), (70, 20, 90, 30))
    seen = reference_picture(cutout)
    assert seen.size == (24, 24)
    assert seen.getpixel((0, 0)) == NEUTRAL
    assert seen.getpixel((12, 12)) == (200, 10, 10)
    opaque = picture(1, (50, 20))
    assert reference_picture(opaque.convert("RGBA")).size == (50, 20)
    with pytest.raises(InputError, match="wholly transparent"):
        reference_picture(Image.new("RGBA", (4, 4)))
    laid = pipe(picture(1), seen, generator=seeded(0), **FEW).images[0]
    direct = pipe(picture(1), cutout, generator=seeded(0), **FEW).images[0]
    assert np.array_equal(np.asarray(laid), np.asarray(direct))


def test_output_and_input_forms_agree(pipe, tmp_path):
    scene, reference = picture(1), picture(2)
    scene.save(tmp_path / "scene.png")
    reference.save(tmp_path / "ref.png")
    run = {**FEW, "preserve_background": False}
    base = np.asarray(pipe(scene, reference, generator=seeded(0), **run).images[0])
    paths = pipe(tmp_path / "scene.png", str(tmp_path / "ref.png"), generator=seeded(0), **run).images[0]
    assert np.array_equal(base, np.asarray(paths))
    tensor = torch.from_numpy(pixels(scene)).permute(2, 0, 1)
    clip = pipe.feature_extractor(reference, return_tensors="pt").pixel_values
    tensors = pipe(tensor, object_pixel_values=clip, generator=seeded(0), **run).images[0]
    assert np.array_equal(base, np.asarray(tensors))
    unit = pipe(scene, reference, generator=seeded(0), output_type="pt", **run).images[0]
    assert unit.shape == (3, 32, 32)
    assert np.array_equal((unit * 255).round().byte().permute(1, 2, 0).numpy(), base)
    array = pipe(scene, reference, generator=seeded(0), output_type="np", **run).images[0]
    assert np.array_equal(array, unit.permute(1, 2, 0).numpy())


def test_bad_arguments_are_named(pipe):
    a, b = picture(1), picture(2)
    for arguments, message in (
        (([a, a], [b, b, b]), "2 scenes and 3 objects"),
        ((a,), "either object_image or object_pixel_values"),
        ((a, 3), "object_image"),
        (([], b), "image: no picture"),
        ((torch.zeros(2, 4, 4), b), r"image: a tensor must be .* not \(2, 4, 4\)"),
    ):
        with pytest.raises(InputError, match=message):
            pipe(*arguments, **FEW)
    with pytest.raises(InputError, match="2 generators for 1 pairs"):
        pipe(a, b, generator=[seeded(0), seeded(1)], **FEW)
    with pytest.raises(InputError, match="output_type 'jpg'"):
        pipe(a, b, output_type="jpg")
    with pytest.raises(InputError, match="at least 1"):
        pipe(a, b, num_inference_steps=0)


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_every_scheduler_samples(name):
    pipe = InsertPipeline(**components())
    pipe.set_progress_bar_config(disable=True)
    pipe.set_scheduler(name)
    run = {"num_inference_steps": 4, "output_type": "latent"}
    first = pipe(picture(1), picture(2), generator=seeded(0), **run).images[0]
    again = pipe(picture(1), picture(2), generator=seeded(0), **run).images[0]
    assert torch.equal(first, again)
    assert first.isfinite().all()


def test_scheduler_must_fit_the_noise_schedule():
    parts = components()
    parts["scheduler"] = DDPMScheduler(
        1000, rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"
    )
    pipe = InsertPipeline(**parts)
    with pytest.raises(InputError, match=r"'pndm' cannot sample this model .* use one of ddim"):
        pipe.set_scheduler("pndm")
    with pytest.raises(InputError, match="did you mean 'euler_a'"):
        pipe.set_scheduler("euler-a")
    for name in ("ddim", "dpm++", "euler_a", "unipc"):
        pipe.set_scheduler(name)
        assert pipe.scheduler.config.prediction_type == "v_prediction"
        assert pipe.scheduler.config.timestep_spacing == "trailing"
        assert pipe.scheduler.alphas_cumprod[-1] < 1e-6
        pipe.set_scheduler("ddpm")


def test_saved_folder_gives_identical_images(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    loaded = InsertPipeline.from_pretrained(tmp_path / "model", scheduler="ddim")
    loaded.set_progress_bar_config(disable=True)
    a = pipe(picture(1), picture(2), generator=seeded(0), **FEW).images[0]
    b = loaded(picture(1), picture(2), generator=seeded(0), **FEW).images[0]
    assert np.array_equal(np.asarray(a), np.asarray(b))
    names = sorted(p.name for p in (tmp_path / "model").iterdir())
    assert names == [
        "embedding_optimizer",
        "feature_extractor",
        "image_encoder",
        "model_index.json",
        "scheduler",
        "unet",
        "vae",
    ]
    assert not loaded.unet.training


@pytest.mark.parametrize(
    "adapter", [{"mode": "legacy", "output_dim": 32}, {"null_kind": "text_empty"}, {"null_kind": "zeros"}]
)
def test_every_kind_of_adapter_survives_saving(adapter, tmp_path):
    parts = components(**adapter)
    if adapter.get("null_kind") == "zeros" or adapter.get("mode"):
        parts["embedding_optimizer"].null_embedding.data.zero_()
    pipe = InsertPipeline(**parts)
    pipe.save_pretrained(tmp_path / "model")
    loaded = InsertPipeline.from_pretrained(tmp_path / "model").embedding_optimizer
    tokens = torch.randn(2, 17, 32, generator=seeded(0))
    assert torch.equal(loaded(tokens), parts["embedding_optimizer"](tokens))
    assert torch.equal(loaded.null(2), parts["embedding_optimizer"].null(2))


def test_half_precision_load(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    loaded = InsertPipeline.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    loaded.set_progress_bar_config(disable=True)
    assert {p.dtype for p in loaded.unet.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in loaded.embedding_optimizer.parameters()} == {torch.bfloat16}
    assert loaded(picture(1), picture(2), **FEW).images[0].size == (32, 32)
