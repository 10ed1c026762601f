import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from lit_insert import pocket
from lit_insert.data.caption_scenes import CaptionScenesDataModule
from lit_insert.errors import InputError
from lit_insert.mifo.settings import SynthesisSettings
from lit_insert.mifo.sources import load_base
from lit_insert.pocket.text_module import TextToImageModule, text_unet


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return TextToImageModule(num_inference_steps=2)


def test_the_unet_starts_from_the_other_ones_weights(module):
    old = UNet2DConditionModel.from_pretrained(pocket.path("insert") / "unet")
    new = text_unet(old).state_dict()
    same = [k for k, v in old.state_dict().items() if k in new and torch.equal(v, new[k])]
    assert len(same) > 0.9 * len(new) - 60
    assert torch.equal(new["conv_in.weight"], old.conv_in.weight[:, :4])
    added = [k for k in new if k not in old.state_dict()]
    assert added
    assert all(k.startswith("up_blocks.2.attentions") for k in added)
    assert all(not new[k].any() for k in added if ".proj_out." in k)


def test_a_loss_reaches_unet_and_words_and_dropout_hides_the_caption(module):
    batch = next(iter(CaptionScenesDataModule(batch_size=2).train_dataloader()))

    def loss(captions, p):
        module.caption_dropout = p
        return module.compute_loss({**batch, "caption": captions}, torch.Generator().manual_seed(1))["loss"]

    value = loss(batch["caption"], 0.0)
    value.backward()
    words = module.text_encoder.get_input_embeddings().weight.grad
    assert words.abs().sum() > 0
    assert module.unet.conv_in.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in module.vae.parameters())
    module.zero_grad()
    other = ["a red ring", "a blue star"]
    assert loss(other, 0.0) != value
    assert torch.equal(loss(other, 1.0), loss(batch["caption"], 1.0))


def test_the_export_is_a_stable_diffusion(module, tmp_path):
    module.eval()
    module.export(tmp_path / "out")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    prompt = "a photo of a striped red circle"
    theirs = pipe(prompt, num_inference_steps=2, guidance_scale=3.0, latents=noise, output_type="pt").images * 2 - 1
    ours = module.draw([prompt], torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)
    parts = load_base(str(tmp_path / "out"))
    assert parts.tokenizer.model_max_length == 32
    assert SynthesisSettings.of(parts.settings).guidance_scale == module.sampling["guidance_scale"]
    module.train()
    further = TextToImageModule(base=str(tmp_path / "out"), max_length=16)
    for name in ("unet", "text_encoder"):
        expected = getattr(module, name).state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in getattr(further, name).state_dict().items())
        assert getattr(further, name).training
    assert further.tokenizer.model_max_length == 32


def test_a_prompt_that_is_too_long_is_told(module):
    with pytest.raises(InputError, match="40 tokens, the model takes 32"):
        module.draw(["red " * 38], torch.Generator())
