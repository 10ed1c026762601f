import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ConsistencyModelPipeline, UNet2DModel
from PIL import Image
from tiny_generator import SIZE, tiny_pipeline

from lit_insert.consistency.edm import heun_sample
from lit_insert.consistency.generators import per_image
from lit_insert.consistency.pipeline import ConsistencyPipeline
from lit_insert.consistency.sources import ModelFacts
from lit_insert.errors import InputError

LABELLED = {"num_classes": 3, "null_class": True, "facts": ModelFacts(labels=[0, 2], null_label=3)}


@pytest.fixture(scope="module")
def plain():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def labelled():
    return tiny_pipeline(**LABELLED)


def seeded(count):
    return [torch.Generator().manual_seed(i) for i in range(count)]


def stack(output):
    return torch.stack(output.images)


@pytest.mark.parametrize("ts", [[0], [22, 0]])
def test_diffusers_reads_the_folder_and_makes_the_same_pictures(tmp_path, ts):
    tiny_pipeline(num_classes=3).save_pretrained(tmp_path / "m")
    theirs = ConsistencyModelPipeline.from_pretrained(tmp_path / "m")
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        batch_size=3,
        class_labels=[0, 1, 2],
        num_inference_steps=None,
        timesteps=ts,
        generator=seeded(3),
        output_type="pt",
    ).images
    ours = ConsistencyPipeline.from_pretrained(tmp_path / "m")
    # diffusers wants falling numbers of its rising grid, OpenAI rising ones of its falling grid, with the clean end
    mine = ours(3, ts=[*sorted(ts), 39], class_labels=[0, 1, 2], generator=seeded(3), output_type="pt")
    assert expected.std() > 0.01
    assert torch.allclose(stack(mine), expected, atol=1e-5)


def test_round_trip_with_facts(tmp_path, labelled):
    labelled.facts = ModelFacts(labels=[0, 2], null_label=3, sigmas={"2": [80.0, 0.8]})
    labelled.save_pretrained(tmp_path / "m")
    loaded = ConsistencyPipeline.from_pretrained(tmp_path / "m")
    assert loaded.facts == labelled.facts
    assert loaded.levels(2) == [80.0, 0.8]
    assert loaded.levels(1) == [80.0]
    assert torch.equal(stack(loaded(2, 2, seed=0, output_type="pt")), stack(labelled(2, 2, seed=0, output_type="pt")))
    assert json.loads((tmp_path / "m/model_index.json").read_text())["_class_name"] == "ConsistencyModelPipeline"
    loaded.save_pretrained(tmp_path / "again")
    assert str(tmp_path) not in (tmp_path / "again" / "unet" / "config.json").read_text()  # diffusers notes the origin


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_picture_does_not_depend_on_its_company(labelled, steps):
    together = labelled(5, steps, seed=7, output_type="pt")
    parts = labelled(5, steps, seed=7, batch_size=2, output_type="pt")
    assert torch.allclose(stack(together), stack(parts), atol=1e-5)
    assert together.labels == parts.labels
    assert not torch.allclose(together.images[3], together.images[2], atol=1e-2)


def test_seed_plus_number_makes_one_of_many_again(plain):
    many = plain(4, 2, seed=7, output_type="pt")
    assert torch.allclose(plain(1, 2, seed=10, output_type="pt").images[0], many.images[3], atol=1e-5)
    assert torch.equal(stack(plain(4, 2, seed=7, output_type="pt")), stack(many))


def test_generators_in_every_form():
    def drawn(generators):
        return [int(torch.randint(1000, (), generator=g)) for g in generators]

    own = [torch.Generator().manual_seed(4), torch.Generator().manual_seed(5)]
    assert drawn(per_image(own, None, 2)) == drawn(per_image(None, 4, 2))
    one = [drawn(per_image(torch.Generator().manual_seed(1), None, 3)) for _ in range(2)]
    assert one[0] == one[1]
    assert len(set(one[0])) == 3
    assert drawn(per_image(None, None, 2)) != drawn(per_image(None, None, 2))
    with pytest.raises(InputError, match="either generator or seed"):
        per_image(own, 1, 2)
    with pytest.raises(InputError, match="2 generators for 3"):
        per_image(own, None, 3)


def test_output_types(plain):
    pil, pt, np_ = (plain(1, seed=0, output_type=kind).images[0] for kind in ("pil", "pt", "np"))
    assert pil.size == (SIZE, SIZE)
    assert np.array_equal(np_, pt.permute(1, 2, 0).numpy())
    assert np.abs(np.asarray(pil) / 255 - np_).max() < 0.003
    with pytest.raises(InputError, match="jpeg"):
        plain(1, output_type="jpeg")


def test_noise_levels_are_checked(plain):
    for bad in ([], [0.5, 80.0], [80.0, 80.0], [100.0], [80.0, 0.001], [float("nan")]):
        with pytest.raises(InputError, match="sigmas"):
            plain.levels(sigmas=bad)
    # 80 steps' indices on a grid of 40, and falling ones: what once gave noise or NaN
    for bad in ([0, 40], [22, 0], [-1], []):
        with pytest.raises(InputError):
            plain.levels(ts=bad)
    with pytest.raises(InputError, match="one of"):
        plain.levels(2, sigmas=[80.0])
    for bad in (0, 41):
        with pytest.raises(InputError, match="num_inference_steps"):
            plain.levels(bad)
    assert plain.levels(ts=[0, 22, 39]) == pytest.approx([80.0, 1.38237], rel=1e-5)
    assert plain.levels(ts=[0, 22]) == plain.levels(ts=[0, 22, 39])
    assert tiny_pipeline(grid=201).levels(ts=[0, 106, 200])[1] == pytest.approx(1.913, abs=1e-3)


def test_classes_never_trained_are_refused(plain, labelled):
    assert labelled.classes == [0, 2]
    assert set(labelled(8, seed=0).labels) == {0, 2}
    assert labelled(2, class_labels=2, seed=0).labels == [2, 2]
    for bad in (1, 3, -1, 7):
        with pytest.raises(InputError, match=f"class {bad} was never trained; the model knows 0, 2"):
            labelled(1, class_labels=bad)
    with pytest.raises(InputError, match="2 class_labels for 3"):
        labelled(3, class_labels=[0, 2])
    with pytest.raises(InputError, match="no classes"):
        plain(1, class_labels=0)
    with pytest.raises(InputError, match="label 5"):
        tiny_pipeline(num_classes=3, facts=ModelFacts(labels=[5]))


def test_guidance(plain, labelled):
    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    sigma, labels = torch.full((2,), 5.0), torch.tensor([0, 2])
    f = labelled.function()
    conditional, free = f(x, sigma, labels), f(x, sigma, torch.full_like(labels, 3))
    assert torch.allclose(labelled.function(3.0)(x, sigma, labels), free + 3 * (conditional - free), atol=1e-5)
    plainly, guided = (stack(labelled(2, seed=0, guidance_scale=w, output_type="pt")) for w in (1.0, 3.0))
    assert not torch.allclose(plainly, guided, atol=1e-3)
    with pytest.raises(InputError, match="label dropout"):
        plain(1, guidance_scale=2.0)


def test_a_teacher_is_sampled_by_heun_and_does_not_edit(tmp_path):
    tiny_pipeline(facts=ModelFacts(kind="edm")).save_pretrained(tmp_path / "t")
    teacher = ConsistencyPipeline.from_pretrained(tmp_path / "t")
    made = teacher(2, 4, seed=0, output_type="pt")
    assert made.sigmas == pytest.approx(teacher.noise_range.sigmas(4).flip(0).tolist())
    noise = torch.stack([torch.randn(3, SIZE, SIZE, generator=g) for g in seeded(2)])
    expected = heun_sample(teacher.function(), noise, made.sigmas).clamp(-1, 1) / 2 + 0.5
    assert torch.allclose(stack(made), expected, atol=1e-5)
    assert len(teacher.levels()) == 18
    with pytest.raises(InputError, match="2 or more"):
        teacher(1, 1)
    with pytest.raises(InputError, match="cannot edit"):
        teacher.edit("colorize", Image.new("RGB", (9, 9)))


@pytest.fixture
def folder(tmp_path, plain):
    plain.save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def refused(folder):
    with pytest.raises(InputError) as caught:
        ConsistencyPipeline.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_incomplete_folders_are_refused(folder, tmp_path):
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert "truncated" in refused(folder)
    weights.unlink()
    assert "no weights" in refused(folder)
    weights.write_bytes(whole)
    scheduler = folder / "scheduler/scheduler_config.json"
    scheduler.rename(tmp_path / "away.json")
    assert "scheduler_config.json" in refused(folder)
    shutil.rmtree(folder / "unet")
    (tmp_path / "away.json").rename(scheduler)
    assert "no unet/ folder" in refused(folder)
    assert "no such folder" in refused(tmp_path / "nowhere")


def test_other_models_are_refused(folder):
    index = folder / "model_index.json"
    written = json.loads(index.read_text())
    index.write_text(json.dumps({**written, "unet": ["diffusers", "UNet2DConditionModel"]}))
    assert "its unet is UNet2DConditionModel, not UNet2DModel" in refused(folder)
    index.write_text(json.dumps({**written, "scheduler": ["diffusers", "DDPMScheduler"]}))
    assert "its scheduler is DDPMScheduler" in refused(folder)
    index.write_text(json.dumps({**written, "kind": "gan"}))
    assert "kind is 'gan'" in refused(folder)


def published(folder):
    """A small folder with the files and config keys of openai/diffusers-cd_imagenet64_l2, weights as it has them."""
    for part in ("unet", "scheduler"):
        (folder / part).mkdir(parents=True)
    attn, plain = "Attn{}Block2D", "Resnet{}sampleBlock2D"
    config = {
        "_class_name": "UNet2DModel",
        "_diffusers_version": "0.17.0.dev0",
        "act_fn": "silu",
        "add_attention": True,
        "attention_head_dim": 8,
        "attn_norm_num_groups": 8,
        "block_out_channels": [8, 16, 16, 16],
        "center_input_sample": False,
        "class_embed_type": None,
        "down_block_types": [plain.format("Down"), *[attn.format("Down")] * 3],
        "downsample_padding": 1,
        "downsample_type": "resnet",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 3,
        "layers_per_block": 1,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 8,
        "num_class_embeds": 1000,
        "out_channels": 3,
        "resnet_time_scale_shift": "scale_shift",
        "sample_size": 16,
        "time_embedding_type": "positional",
        "up_block_types": [*[attn.format("Up")] * 3, plain.format("Up")],
        "upsample_type": "resnet",
    }
    (folder / "unet/config.json").write_text(json.dumps(config))
    scheduler = {"_class_name": "CMStochasticIterativeScheduler", "_diffusers_version": "0.17.0.dev0", "rho": 7.0}
    scheduler |= {"clip_denoised": True, "num_train_timesteps": 40, "s_noise": 1.0, "sigma_data": 0.5}
    scheduler |= {"sigma_max": 80.0, "sigma_min": 0.002}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    index = {"_class_name": "ConsistencyModelPipeline", "_diffusers_version": "0.17.0.dev0"}
    index |= {"scheduler": ["diffusers", scheduler["_class_name"]], "unet": ["diffusers", "UNet2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    torch.manual_seed(0)
    unet = UNet2DModel(**{k: v for k, v in config.items() if not k.startswith("_")})
    torch.save(unet.state_dict(), folder / "unet/diffusion_pytorch_model.bin")
    return folder


def test_the_published_layout_works(tmp_path):
    pipeline = ConsistencyPipeline.from_pretrained(published(tmp_path / "m"))
    made = pipeline(2, ts=[0, 22, 39], class_labels=[145, 999], seed=0)
    assert made.labels == [145, 999]
    assert made.sigmas == pytest.approx([80.0, 1.38237], rel=1e-5)
    with pytest.raises(InputError, match="class 1000 was never trained; the model knows 0 to 999"):
        pipeline(1, class_labels=1000)


def test_bin_weights_are_fetched_only_where_there_are_no_others(tmp_path, monkeypatch, folder):
    asked = []

    def pull(name, also=(), **options):
        asked.append((name, tuple(also), options))
        return here

    monkeypatch.setattr("lit_insert.consistency.sources.pull_model", pull)
    here = published(tmp_path / "published")
    ConsistencyPipeline.from_pretrained("openai/some_model", revision="v1")
    assert asked == [("openai/some_model", own, {"revision": "v1"}) for own in ((), ("unet/*.bin",))]
    here = folder
    ConsistencyPipeline.from_pretrained("openai/some_model")
    assert len(asked) == 3
    with pytest.raises(InputError, match="no option 'varient'"):
        ConsistencyPipeline.from_pretrained("openai/some_model", varient="fp16")


def test_pickled_code_is_refused(folder, tmp_path):
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    torch.save({"conv_in.weight": Path("/")}, folder / "unet/diffusion_pytorch_model.bin")
    assert "cannot load" in refused(folder)
