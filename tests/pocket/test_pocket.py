import pytest
import torch
import yaml
from safetensors.torch import load_file

from lit_insert import pocket
from lit_insert.cli.configs import config_path
from lit_insert.data.scenes import SceneDataset
from lit_insert.diffusion.noise import step_generator
from lit_insert.errors import InputError
from lit_insert.pocket.blank import write_blank
from lit_insert.pocket.module import AutoencoderModule, JudgeModule, ReferenceModule

LIMIT = 8e6


@pytest.mark.parametrize("name", ["insert", "judge"])
def test_models_are_small_and_have_a_card(name):
    folder = pocket.path(name)
    weights = list(folder.rglob("*.safetensors"))
    assert weights
    assert sum(f.stat().st_size for f in weights) <= LIMIT
    assert (folder / "README.md").read_text().strip()
    assert all(t.dtype == torch.float16 for f in weights for t in load_file(f).values() if t.is_floating_point())


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
