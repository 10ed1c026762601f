import subprocess
import sys

import lightning.pytorch as pl
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from tiny_instances import write_instances
from tiny_text import write_model

from lit_insert.data.instances import MaskedInstanceDataModule
from lit_insert.diffusion.text import prompt_ids
from lit_insert.errors import InputError
from lit_insert.mifo.artifact import MifoArtifact
from lit_insert.mifo.checkpoint import checkpoint_artifact
from lit_insert.mifo.module import MifoModule
from lit_insert.mifo.objective import AttentionLoss
from lit_insert.mifo.pipeline import SynthesisPipeline
from lit_insert.mifo.tuning import Finetuning, Sketching
from lit_insert.training.checkpoint import RunCheckpoint
from lit_insert.training.ema import EMA
from lit_insert.training.grid import SampleGrid

LOSS = AttentionLoss("mifo_paper", 1.0, 2.0, reward_steps=2, below_timestep=1000, layers=["up:16", "up:8"])
ADAM = {"lr": 1e-2, "weight_decay": 0.1}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    return str(write_model(folder, "v_prediction"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_instances(tmp_path_factory.mktemp("instances") / "two")


def module(base, **options):
    torch.manual_seed(0)
    settings = {
        "base": base,
        "token_steps": 3,
        "attention": LOSS,
        "sketching": Sketching(2, 3.0),
        "optimizer": lambda groups: torch.optim.AdamW(groups, **ADAM),
        "export_dtype": "float32",
    }
    return MifoModule(**{**settings, **options})


def data(folder, **options):
    return MaskedInstanceDataModule(str(folder), **{"size": 32, "train_length": 40, "batch_size": 2, **options})


def fit(net, source, tmp_path, steps, ckpt_path=None, **options):
    settings = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
        "limit_val_batches": 0,
    }
    trainer = pl.Trainer(**{**settings, "max_steps": steps, **options})
    trainer.fit(net, datamodule=source, ckpt_path=ckpt_path)
    return trainer


def state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def changed(before, net):
    return {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}


def kinds(names):
    return {n.partition(".")[0] for n in names if not n.startswith("monitor") and n != "reached"}


def test_words_train_first_and_the_network_after(base, folder, tmp_path):
    net = module(base)
    start = state(net)
    fit(net, data(folder), tmp_path, 3)
    after = changed(start, net)
    assert {n for n in after if "monitor" not in n} == {
        "text_encoder.embeddings.token_embedding.rows",
        "text_encoder.embeddings.token_embedding.used",
    }
    rows = net.rows.rows
    assert (rows[:2] != start["text_encoder.embeddings.token_embedding.rows"][:2]).any()
    assert not rows[2:].any()
    net = module(base)
    fit(net, data(folder), tmp_path, 5)
    second = changed(start, net)
    assert kinds(second) == {"unet", "text_encoder"}
    assert not any(n.startswith("vae") or n.endswith("table.weight") for n in second)


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_run_that_stops_in_either_phase_or_between_ends_as_if_it_had_not(base, folder, tmp_path, stop):
    def new():
        schedule = {"lr_scheduler": lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, 4)}
        return module(base, finetune_optimizer=lambda g: torch.optim.AdamW(g, lr=1e-3), **schedule)

    whole = new()
    fit(whole, data(folder), tmp_path, 6)
    first = new()
    fit(first, data(folder), tmp_path, stop, enable_checkpointing=True, callbacks=[RunCheckpoint(monitor=None)])
    last = tmp_path / "checkpoints/last.ckpt"
    kept = torch.load(last, weights_only=True)["state_dict"]
    assert any(n.startswith("unet") for n in kept) is (stop > 3)
    assert not any(n.startswith("vae") or n.endswith("table.weight") for n in kept)
    second = new()
    fit(second, data(folder), tmp_path, 6, ckpt_path=last)
    assert not changed(state(whole), second)


def test_class_pictures_are_drawn_once_and_stay_out_of_the_attention_terms(base, folder, tmp_path):
    prompts = ["a photo of a square", "a photo of a circle"]
    source = data(folder, class_prompt=prompts, class_folder=str(tmp_path / "class"), class_images=3)
    net = module(base, token_steps=0)
    fit(net, source, tmp_path, 1)
    files = sorted((tmp_path / "class").iterdir())
    assert [f.name for f in files] == ["0000.png", "0001.png", "0002.png"]
    times = [f.stat().st_mtime_ns for f in files]
    fit(module(base, token_steps=0), source, tmp_path, 1)
    assert [f.stat().st_mtime_ns for f in files] == times
    batch = next(iter(source.train_dataloader()))
    for name, caption in zip(batch["prior_id"], batch["prior_caption"], strict=True):
        assert caption == prompts[int(name.removeprefix("prior-").removesuffix(".png")) % 2]
    net.eval()
    losses = net.compute_loss(batch, torch.Generator().manual_seed(0))
    net.latents.known.clear()
    other = {**batch, "prior_image": -batch["prior_image"], "prior_caption": ["a red circle"] * 2}
    again = net.compute_loss(other, torch.Generator().manual_seed(0))
    assert again["prior"] != losses["prior"]
    torch.testing.assert_close(again["attention"], losses["attention"])
    torch.testing.assert_close(again["diffusion"], losses["diffusion"])
    torch.testing.assert_close(losses["loss"], losses["diffusion"] + losses["attention"] + losses["prior"])


def test_the_end_of_a_caption_can_be_hidden_from_what_learns_instances(base, folder, tmp_path):
    source = data(folder, class_prompt="a circle", class_folder=str(tmp_path / "class"), class_images=1)
    net = module(base, token_steps=0, end_tokens="nowhere", hidden_class_ends=0.0)
    fit(net, source, tmp_path, 1)
    net.eval()
    batch = next(iter(source.train_dataloader()))
    shown = []
    hook = net.unet.register_forward_pre_hook(
        lambda _, args, kwargs: shown.append(kwargs["encoder_attention_mask"]), with_kwargs=True
    )
    hidden = net.compute_loss(batch, torch.Generator().manual_seed(0))
    hook.remove()
    for row, caption in zip(shown[0], [*batch["caption"], *batch["prior_caption"]], strict=True):
        words = len(net.tokenizer(caption).input_ids) - 1  # with the start, without the end
        seen = words if "<asset" in caption else len(row)
        assert row.tolist() == [True] * seen + [False] * (len(row) - seen)
    net.end_tokens = "everywhere"
    open_ = net.compute_loss(batch, torch.Generator().manual_seed(0))
    torch.testing.assert_close(open_["prior"], hidden["prior"])
    assert open_["diffusion"] != hidden["diffusion"]
    assert open_["attention"] != hidden["attention"]


def test_the_end_is_hidden_from_a_share_of_class_captions_but_never_from_the_empty_one(base):
    net = module(base, end_tokens="nowhere")
    tokens = prompt_ids(net.tokenizer, ["a photo of <asset0>", *["a circle"] * 200, *[""] * 20])
    shown = net.visible(tokens, 1, torch.Generator().manual_seed(0))
    again = net.visible(tokens, 1, torch.Generator().manual_seed(0))
    assert shown.equal(again)
    ends = tokens == net.tokenizer.eos_token_id
    closed = ~shown[torch.arange(len(tokens)), ends.int().argmax(1)]
    assert closed[0]
    assert 70 < closed[1:201].sum() < 130
    assert not closed[201:].any()
    assert (shown | (ends.cumsum(1) > 0)).all()  # words are always seen
    for share in (0.0, 1.0):
        net.hidden_class_ends = share
        assert (shown_ends(net, tokens) == (1 - share)).all()
    assert net.visible(tokens).sum() < shown.sum()  # without class pictures every end is hidden


def test_a_share_outside_of_0_to_1_is_refused(base):
    with pytest.raises(InputError, match=r"hidden_class_ends is 1\.5; give a share from 0 to 1"):
        module(base, hidden_class_ends=1.5)


def shown_ends(net, tokens):
    """Whether the end of each class picture's caption is seen."""
    shown = net.visible(tokens, 1, torch.Generator().manual_seed(0))
    ends = tokens == net.tokenizer.eos_token_id
    return shown[torch.arange(len(tokens)), ends.int().argmax(1)][1:201].float()


@pytest.mark.parametrize("mode", ["mifo_joint", "break_a_scene", "none"])
def test_other_modes_and_predictions_of_noise_learn_too(folder, tmp_path, mode):
    base = str(write_model(tmp_path / "eps", "epsilon"))
    loss = AttentionLoss(mode, layers=[":16"])
    net = module(base, attention=loss, finetuning=Finetuning("attn2.kv", "none"), token_steps=1)
    start = state(net)
    fit(net, data(folder), tmp_path, 2)
    parts = {n.split(".")[-2] for n in changed(start, net) if n.startswith("unet")}
    assert parts == {"to_k", "to_v"}
    assert (net.monitor.inside > 0) is (mode != "none")
    assert not net.unet.attn_processors.keys() ^ module(base).unet.attn_processors.keys()


def test_what_is_learned_loads_in_a_fresh_process_and_in_diffusers(base, folder, tmp_path):
    net = module(base, finetuning=Finetuning("lora", "lora", rank=2, alpha=4.0), token_steps=1)
    trainer = fit(net, data(folder), tmp_path, 4)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    net.export(tmp_path / "out")
    learned = MifoArtifact.load(tmp_path / "out")
    assert set(learned.tokens) == {"<asset0>", "<asset1>"}
    assert learned.lora
    assert not learned.changed
    from_checkpoint = checkpoint_artifact(tmp_path / "a.ckpt")
    assert from_checkpoint.lora.keys() == learned.lora.keys()
    assert all(torch.equal(v, from_checkpoint.lora[k]) for k, v in learned.lora.items())
    prompt = "a photo of <asset1> and <asset0>"
    code = (
        "import sys, torch\nfrom lit_insert.mifo.pipeline import SynthesisPipeline\n"
        "pipe = SynthesisPipeline.from_pretrained(sys.argv[1])\n"
        "image = pipe(sys.argv[2], num_inference_steps=2, seed=5, output_type='pt').images[0]\n"
        "torch.save(image, sys.argv[3])\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "out", prompt, tmp_path / "image"], check=True)
    here = SynthesisPipeline.from_pretrained(tmp_path / "out")
    image = here(prompt, num_inference_steps=2, seed=5, output_type="pt").images[0]
    assert torch.equal(torch.load(tmp_path / "image", weights_only=True), image)
    pipe = StableDiffusionPipeline.from_pretrained(base)
    files = [load_file(f) for f in sorted((tmp_path / "out/tokens").iterdir())]
    pipe.load_textual_inversion(files, token=["<asset0>", "<asset1>"])
    pipe.load_lora_weights(tmp_path / "out")
    pipe.scheduler = net.scheduler  # diffusers would shift the steps of this one by 1
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    theirs = pipe(prompt, num_inference_steps=2, guidance_scale=3.0, latents=noise, output_type="pt").images * 2 - 1
    ours = net.draw([prompt], torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


def test_looking_costs_no_state_and_shows_every_token(base, folder, tmp_path):
    net = module(base)
    drawn = fit(net, data(folder), tmp_path / "a", 2, callbacks=[SampleGrid(1, 2)])
    assert len(list((tmp_path / "a/samples").iterdir())) == 2
    plain = module(base)
    fit(plain, data(folder), tmp_path / "b", 2)
    assert not changed(state(net), plain)
    batch = next(iter(data(folder).val_dataloader()))
    rows = net.sample_grid(batch, torch.Generator().manual_seed(0))
    assert [len(r) for r in rows] == [4, 4]
    assert batch["caption"] == ["a photo of <asset0> and <asset1>", "a photo of <asset1> and <asset0>"]
    assert drawn.global_step == 2


class Keep(pl.Callback):
    """Saves each rank's weights at the end."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, net):
        torch.save({n: p.detach() for n, p in net.named_parameters()}, self.folder / f"{trainer.global_rank}.pt")


def test_ranks_stay_together_across_the_switch(base, folder, tmp_path):
    net = module(base, token_steps=1, optimizer=lambda g: torch.optim.SGD(g, lr=0.1))
    start = {n: p.detach().clone() for n, p in net.named_parameters()}
    parallel = {"devices": 2, "strategy": "ddp_fork", "use_distributed_sampler": False}
    fit(net, data(folder), tmp_path, 3, callbacks=[Keep(tmp_path)], **parallel)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    moved = {n for n, v in first.items() if not torch.equal(v, start[n])}
    assert {"unet.conv_in.weight", "text_encoder.embeddings.token_embedding.rows"} <= moved


def test_mistakes_are_told(base, folder, tmp_path):
    with pytest.raises(InputError, match=r"ema\.decay must be 0"):
        fit(module(base), data(folder), tmp_path, 1, callbacks=[EMA(0.9)])
    with pytest.raises(InputError, match="2 instances, but max_instances is 1"):
        fit(module(base, max_instances=1), data(folder), tmp_path, 1)
    with pytest.raises(InputError, match="no cross-attention at 'up:32'"):
        module(base, attention=AttentionLoss(layers=["up:32"]))
    with pytest.raises(InputError, match="no word has been learned"):
        module(base).export(tmp_path / "x")
    with pytest.raises(InputError, match=r"model\.synthesis\.end_token; did you mean model\.synthesis\.end_tokens"):
        module(base, synthesis={"end_token": "nowhere"})


def test_the_weight_of_class_pictures_and_the_settings_for_boxes_are_kept(base, folder, tmp_path):
    drawn = {}
    for weight in (1.0, 7.5):
        source = data(folder, class_prompt="a circle", class_folder=str(tmp_path / f"{weight}"), class_images=1)
        net = module(base, class_guidance_scale=weight, end_tokens="nowhere", synthesis={"separate_words": True})
        fit(net, source, tmp_path, 1)
        drawn[weight] = (tmp_path / f"{weight}" / "0000.png").read_bytes()
    assert drawn[1.0] != drawn[7.5]
    net.export(tmp_path / "export")
    pipe = SynthesisPipeline.from_pretrained(tmp_path / "export")
    assert (pipe.settings.end_tokens, pipe.settings.separate_words) == ("nowhere", True)
    net.hparams["synthesis"] = {"end_tokens": "everywhere"}
    net.export(tmp_path / "again")
    assert SynthesisPipeline.from_pretrained(tmp_path / "again").settings.end_tokens == "everywhere"
    assert pipe.settings.guidance_scale == net.sketching.guidance_scale
