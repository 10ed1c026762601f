import os
import subprocess
import sys

import numpy as np
import pytest
import tiny_text
import torch

from lit_insert.artifacts.resolve import resolve_model
from lit_insert.errors import InputError
from lit_insert.mifo.artifact import MifoArtifact
from lit_insert.mifo.pipeline import SynthesisPipeline
from lit_insert.mifo.sources import load_parts

PROMPT = "a photo of <asset0> and <asset1> on the beach"
BOXES = {"<asset0>": [0, 0.2, 0.5, 1], "<asset1>": [0.5, 0, 1, 0.8]}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthesis")
    tiny_text.write_model(folder / "base")
    tiny_text.write_model(folder / "velocity", prediction="v_prediction")
    draw = torch.Generator().manual_seed(5)
    MifoArtifact(
        base=str(folder / "base"),
        tokens={f"<asset{i}>": torch.randn(32, generator=draw) for i in range(2)},
        changed={"unet.conv_out.bias": torch.tensor([0.1, -0.1, 0.2, 0.0])},
        synthesis={"guidance_scale": 2.0},
    ).save(folder / "learned")
    return folder


@pytest.fixture(scope="module")
def pipe(models):
    return SynthesisPipeline.from_pretrained(models / "learned")


def latents(pipe, *args, **options):
    return torch.stack(pipe(*args, output_type="latent", **options).images)


def test_settings_come_from_the_base_and_the_instances(pipe):
    assert pipe.settings.num_inference_steps == 4
    assert pipe.settings.guidance_scale == 2.0
    assert pipe.settings.guidance.layers == ["mid", "up:8"]
    assert pipe.tokens == ["<asset0>", "<asset1>"]


def test_pictures_are_those_of_their_seeds_whatever_the_batch(pipe):
    few = {"num_images": 3, "seed": 7, "num_inference_steps": 2}
    output = pipe(PROMPT, BOXES, **few)
    assert [p.size for p in output.images] == [(32, 32)] * 3
    assert output.seeds == [7, 8, 9]
    assert [b.subject for b in output.boxes] == list(BOXES)
    assert all(before > after for before, after in output.losses)
    together = latents(pipe, PROMPT, BOXES, **few)
    assert torch.equal(latents(pipe, PROMPT, BOXES, **few), together)
    assert torch.allclose(latents(pipe, PROMPT, BOXES, **few, batch_size=2), together, atol=1e-3)
    assert torch.allclose(
        latents(pipe, PROMPT, BOXES, **{**few, "num_images": 1, "seed": 9})[0], together[2], atol=1e-3
    )
    assert not torch.allclose(together[0], together[1])


def test_each_kind_of_control_changes_the_picture(pipe):
    off = {"masks": False, "guidance": False, "refinement": False}
    plain = latents(pipe, PROMPT)
    assert torch.equal(latents(pipe, PROMPT, BOXES, **off), plain)
    masks = latents(pipe, PROMPT, BOXES, **{**off, "masks": True})
    refined = latents(pipe, PROMPT, BOXES, **{**off, "masks": True, "refinement": {"min_score": 0.0}})
    guided = latents(pipe, PROMPT, BOXES, **{**off, "guidance": True})
    both = latents(pipe, PROMPT, BOXES, **{**off, "masks": True, "guidance": True})
    apart = latents(pipe, PROMPT, BOXES, **{**off, "masks": True}, separate_words=True)
    assert torch.equal(latents(pipe, PROMPT, BOXES, **off, separate_words=True), plain)
    ends = latents(pipe, PROMPT, BOXES, **{**off, "masks": True}, end_tokens="nowhere")
    different = [plain, masks, refined, guided, both, apart, ends]
    assert not any(torch.allclose(a, b) for i, a in enumerate(different) for b in different[:i])
    assert torch.equal(latents(pipe, PROMPT), plain)  # and leaves nothing behind


@pytest.mark.parametrize("name", ["base", "velocity"])
def test_plain_words_have_boxes_too(models, name):
    pipe = SynthesisPipeline.from_pretrained(models / name)
    boxes = {"red circle": [0, 0, 0.5, 1], "blue square": [0.5, 0, 1, 1]}
    prompt = "a red circle and a blue square"
    found = latents(pipe, prompt, boxes)
    given = latents(pipe, prompt, list(boxes.values()), subject_token_indices=[[2, 3], [6, 7]])
    assert torch.equal(found, given)
    plus = latents(pipe, prompt, boxes, cfg_plus_plus=True)
    assert plus.isfinite().all()
    assert not torch.allclose(plus, found)


def test_other_sizes(pipe):
    output = pipe(PROMPT, BOXES, height=24, width=40)
    assert output.images[0].size == (40, 24)
    with pytest.raises(InputError, match="width is 33; give a multiple of 2"):
        pipe(PROMPT, BOXES, width=33)


def test_half_precision_guides_too(models):
    pipe = SynthesisPipeline.from_pretrained(models / "learned", dtype=torch.bfloat16)
    output = pipe(PROMPT, BOXES, output_type="pt")
    assert output.images[0].shape == (3, 32, 32)
    assert output.images[0].isfinite().all()


def test_saved_and_loaded_in_a_fresh_process_it_draws_the_same(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "small")
    pipe.save_pretrained(tmp_path / "whole", whole=True)
    assert not (tmp_path / "small" / "unet").exists()
    wanted = latents(pipe, PROMPT, BOXES)
    script = (
        "import sys, torch; from lit_insert import SynthesisPipeline\n"
        f"for name in ('small', 'whole'):\n"
        f"    pipe = SynthesisPipeline.from_pretrained(sys.argv[1] + '/' + name)\n"
        f"    images = pipe({PROMPT!r}, {BOXES!r}, output_type='latent').images\n"
        f"    torch.save(images[0], sys.argv[1] + '/' + name + '.pt')\n"
    )
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, env={**os.environ, **threads})
    for name in ("small", "whole"):
        assert torch.equal(torch.load(tmp_path / f"{name}.pt", weights_only=True), wanted[0])


def test_a_whole_model_is_stable_diffusion_to_diffusers(pipe, tmp_path):
    from diffusers import StableDiffusionPipeline

    pipe.save_pretrained(tmp_path / "m", whole=True)
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "m")
    assert torch.equal(stock.unet.conv_out.bias, pipe.parts.unet.conv_out.bias)
    assert len(stock.tokenizer("a <asset1>").input_ids) == 4


@pytest.mark.parametrize(
    ("prompt", "boxes", "options", "message"),
    [
        (PROMPT, [[0, 0, 1, 1]], {}, "1 boxes for 2 tokens in the prompt"),
        (PROMPT, {"<asset0>": [0, 0, 1, 1]}, {}, "has <asset1>, for which there is no box"),
        (PROMPT, {**BOXES, "dog": [0, 0, 1, 1]}, {}, "'dog' has a box but is not in the prompt"),
        (PROMPT, {**BOXES, "<asset0>": [0, 0, 2, 1]}, {}, "outside the picture"),
        ("a photo of <asset7>", None, {}, "<asset7>, which the model does not know; it knows <asset0>, <asset1>"),
        ("a " * 20, None, {}, "22 tokens, the model takes 16"),
        (PROMPT, [], {}, "there are no boxes"),
        (PROMPT, BOXES, {"cfg_plus_plus": True, "guidance_scale": 7.5}, "CFG.. takes 0 to 1"),
        (PROMPT, BOXES, {"guidance": {"layers": ["up:99"]}}, "no cross-attention at 'up:99'"),
        (PROMPT, [[0, 0, 1, 1]], {"subject_token_indices": [[4], [6]]}, "1 boxes for 2 subject_token_indices"),
        (PROMPT, BOXES, {"num_inference_steps": 2000}, "has 1000 noise levels"),
        (PROMPT, BOXES, {"output_type": "jpg"}, "give pil, pt or latent"),
        (PROMPT, BOXES, {"num_images": 0}, "at least 1"),
    ],
)
def test_mistakes_are_one_clear_line(pipe, prompt, boxes, options, message):
    with pytest.raises(InputError, match=message) as caught:
        pipe(prompt, boxes, **options)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_loaded_is_named(models, tmp_path):
    artifact = MifoArtifact.load(models / "learned")
    artifact.base = str(tmp_path / "gone")
    artifact.save(tmp_path / "m")
    with pytest.raises(InputError, match=r"its base cannot be loaded; .*gone' does not exist"):
        SynthesisPipeline.from_pretrained(tmp_path / "m")
    moved = load_parts(resolve_model(tmp_path / "m"), base=str(models / "base"))
    assert moved.artifact.tokens.keys() == {"<asset0>", "<asset1>"}
    with pytest.raises(InputError, match="is a text-to-image model itself"):
        load_parts(resolve_model(models / "base"), base="pocket")
    tiny_text.write_model(tmp_path / "odd", settings={"guidance": {"stepsize": 1}})
    with pytest.raises(InputError, match=r"guidance.stepsize; did you mean guidance.step_size\?"):
        SynthesisPipeline.from_pretrained(tmp_path / "odd")
    (tmp_path / "odd" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match="truncated or not safetensors"):
        SynthesisPipeline.from_pretrained(tmp_path / "odd")


def test_decoded_pictures_are_those_of_the_latents(pipe):
    picture = np.asarray(pipe(PROMPT).images[0]).astype(float) / 255
    exact = pipe(PROMPT, output_type="pt").images[0].permute(1, 2, 0).numpy()
    assert np.abs(picture - exact).max() < 1 / 255
