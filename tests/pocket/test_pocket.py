import numpy as np
import pytest
import torch
import yaml
from diffusers import ConsistencyModelPipeline
from PIL import Image
from safetensors.torch import load_file

from lit_insert import pocket
from lit_insert.cli.configs import config_path
from lit_insert.consistency.pipeline import ConsistencyPipeline
from lit_insert.consistency.sampling import multistep
from lit_insert.data.image_scenes import SceneImages
from lit_insert.data.scenes import SceneDataset
from lit_insert.diffusion.noise import step_generator
from lit_insert.errors import InputError
from lit_insert.fusion.latents import LatentSpace, load_autoencoder
from lit_insert.fusion.objects import FusionObject
from lit_insert.fusion.pipeline import FusionPipeline
from lit_insert.images import to_pil
from lit_insert.metrics.distribution import sliced_wasserstein
from lit_insert.pocket.blank import write_blank
from lit_insert.pocket.module import AutoencoderModule, JudgeModule, ReferenceModule

LIMIT = 8e6


NAMES = ("insert", "judge", "mask", "generate", "generate_teacher", "segment", "fusion", "text")


@pytest.mark.parametrize("name", NAMES)
def test_models_are_small_and_have_a_card(name):
    folder = pocket.path(name)
    weights = list(folder.rglob("*.safetensors"))
    assert weights
    assert sum(f.stat().st_size for f in weights) <= LIMIT
    assert (folder / "README.md").read_text().strip()
    assert all(t.dtype == torch.float16 for f in weights for t in load_file(f).values() if t.is_floating_point())


def test_the_generator_is_diffusers_own_and_makes_scenes():
    ours, theirs = (
        ConsistencyPipeline.from_pretrained(),
        ConsistencyModelPipeline.from_pretrained(pocket.path("generate")),
    )
    theirs.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = theirs(batch_size=2, latents=noise, output_type="pt").images
    made = multistep(ours.function(), noise, ours.levels(1)) / 2 + 0.5
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)
    assert "_name_or_path" not in (pocket.path("generate") / "unet" / "config.json").read_text()
    real = SceneImages("test", count=48).draw(range(48), 32)[0] / 127.5 - 1
    noisy = torch.randn(48, 3, 32, 32, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    for steps in (1, 2):
        samples = torch.stack(ours(48, steps, seed=0, output_type="pt").images) * 2 - 1
        assert sliced_wasserstein(samples, real) < 0.4 * sliced_wasserstein(noisy, real)


def test_the_generator_has_its_teacher_with_it():
    teacher = ConsistencyPipeline.from_pretrained("pocket:generate_teacher")
    student = ConsistencyPipeline.from_pretrained("pocket:generate")
    assert (teacher.is_teacher, student.is_teacher) == (True, False)
    assert {k: v.shape for k, v in teacher.unet.state_dict().items()} == {
        k: v.shape for k, v in student.unet.state_dict().items()
    }
    real = SceneImages("test", count=24).draw(range(24), 32)[0] / 127.5 - 1
    noisy = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    samples = torch.stack(teacher(24, 10, seed=0, output_type="pt").images) * 2 - 1
    assert sliced_wasserstein(samples, real) < 0.4 * sliced_wasserstein(noisy, real)


def test_the_fusion_model_adds_a_thing_and_leaves_the_rest():
    pipe = FusionPipeline.from_pretrained()
    scene, thing = (
        to_pil(SceneImages("test", 8, content).draw([3], 64)[0][0] / 127.5 - 1) for content in ("scene", "object")
    )
    found = FusionObject(thing, mask=Image.new("L", thing.size, 255), target_area="bottom_left", base_scale=0.6)
    weak, strong = (np.asarray(p).astype(int) for p in pipe(scene, [found], strength=[0.2, 0.9], seed=0).images)
    before = np.asarray(scene).astype(int)
    for picture in (weak, strong):
        assert picture.shape == before.shape
        assert np.abs(picture - before)[40:, :24].mean() > 2
        assert np.array_equal(picture[:24, 40:], before[:24, 40:])
    assert np.abs(weak - strong).max() > 8
    space = LatentSpace(load_autoencoder("pocket"))
    pictures = SceneImages("val", count=16).draw(range(16), 32)[0] / 255
    error = (space.decode(space.encode(pictures)).clamp(0, 1) - pictures).square().mean()
    assert -10 * error.log10() > 30


def test_an_unknown_model_lists_those_there_are():
    with pytest.raises(InputError, match=r"no pocket model is called 'nothing'.*insert, judge"):
        pocket.path("nothing")


def train(module, steps, **options):
    data = SceneDataset("train", 10_000)
    optimizer = torch.optim.AdamW(module.parameters(), **options)
    losses = []
    for step in range(steps):
        batch = data.batch(range(16 * step, 16 * step + 16))
        loss = module.compute_loss(batch, step_generator(0, 0, step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_the_recipes_learn_and_feed_each_other(tmp_path):
    torch.manual_seed(0)
    vae = AutoencoderModule()
    losses = train(vae.train(), 20, lr=3e-3)
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    vae.export(tmp_path / "vae")
    write_blank(tmp_path / "vae", tmp_path / "blank")
    options = yaml.safe_load(config_path("pocket/reference.yaml").read_text())["model"]["init_args"]["adapter"]
    reference = ReferenceModule(str(tmp_path / "blank"), options)
    losses = train(reference.train(), 20, lr=3e-3)
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    reference.export(tmp_path / "reference")
    assert (tmp_path / "reference" / "embedding_optimizer" / "config.json").is_file()


def test_the_judge_learns():
    torch.manual_seed(0)
    losses = train(JudgeModule().train(), 25, lr=2e-3)
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])


def test_a_blank_base_is_what_the_shipped_model_was(tmp_path):
    write_blank(pocket.path("insert") / "vae", tmp_path)
    ours = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    shipped = load_file(pocket.path("insert") / "unet" / "diffusion_pytorch_model.safetensors")
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in shipped.items()}
