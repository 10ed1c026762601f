"""Both trainings of this room: what learns, exact resume, several processes, export."""

from copy import deepcopy

import lightning.pytorch as pl
import pytest
import torch
from diffusers import AutoencoderRAE
from tiny import Pictures
from tiny_fusion import RAE, autoencoder, seeded

from lit_insert.errors import InputError
from lit_insert.fusion.adversary import AdversarySettings, Discriminator, augmented, hinge
from lit_insert.fusion.latents import LatentSpace, set_statistics
from lit_insert.fusion.module import DiTModule
from lit_insert.fusion.pipeline import FusionPipeline
from lit_insert.fusion.rae_module import RAEDecoderModule
from lit_insert.training.checkpoint import RunCheckpoint
from lit_insert.training.ema import EMA

SMALL = {**RAE, "encoder_patch_size": 4, "encoder_input_size": 8}  # 2 x 2 cells of 8 pixels
NETWORK = {"encoder_width": 16, "encoder_layers": 1, "encoder_heads": 2, "head_width": 64, "head_layers": 1,
           "head_heads": 2}  # fmt: skip
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 8,
       "patch_size": 4}  # fmt: skip
ADVERSARY = AdversarySettings(backbone_config=VIT, layers=(1, 2), discriminator_from=1, generator_from=2)


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=2e-3)


def falling(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))


def rae(**options):
    torch.manual_seed(0)
    settings = {"autoencoder": SMALL, "statistics_batches": 2, "optimizer": adam, "lr_scheduler": falling}
    return RAEDecoderModule(**{**settings, **options})


@pytest.fixture(scope="module")
def space_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("space") / "rae"
    model = autoencoder(3, **{k: SMALL[k] for k in ("encoder_patch_size", "encoder_input_size")})
    features = LatentSpace(model).encode(torch.rand(32, 3, 8, 8, generator=seeded()))
    set_statistics(model, features.mean((0, 2, 3)), features.std((0, 2, 3)))
    model.save_pretrained(folder)
    return str(folder)


def dit(folder, **options):
    torch.manual_seed(1)
    settings = {"network": NETWORK, "num_classes": 3, "optimizer": adam, "num_inference_steps": 3}
    return DiTModule(folder, **{**settings, **options})


def trainer(folder, *callbacks, **options):
    settings = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": bool(callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "max_steps": 4,
        "use_distributed_sampler": False,
    }
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**settings, **options})


def batch(n=4, classes=3):
    data = Pictures(classes=classes)
    samples = [data.sample(i, 0) for i in range(n)]
    return {k: [s[k] for s in samples] if k == "id" else torch.stack([s[k] for s in samples]) for k in samples[0]}


def test_only_the_decoder_learns(tmp_path):
    net = rae()
    before = deepcopy(net.autoencoder.state_dict())
    trainer(tmp_path, max_steps=2).fit(net, Pictures())
    changed = {k for k, v in net.autoencoder.state_dict().items() if not torch.equal(v, before[k])}
    assert any(k.startswith("decoder.") for k in changed)
    assert not any(k.startswith("encoder.") for k in changed)
    net.train()
    assert not net.autoencoder.encoder.training
    assert net.autoencoder.decoder.training
    assert net.encode(torch.rand(1, 3, 8, 8)).requires_grad is False
    learning = rae(train_encoder=True)
    learning.compute_loss(batch(), seeded())["loss"].backward()
    without = [n for n, p in learning.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    grads = [p.grad for n, p in learning.named_parameters() if n.startswith("autoencoder.encoder.") and p.requires_grad]
    assert sum(bool(g.any()) for g in grads) > 5


def test_statistics_come_before_training_and_stay(tmp_path):
    net = rae(statistics_batches=6)
    trainer(tmp_path, RunCheckpoint(every_n_steps=1), max_steps=1).fit(net, Pictures())
    data = Pictures()
    pictures = torch.stack([data.sample(i, 0)["image"] for i in range(24)]) / 2 + 0.5
    features = net.eval().encode(pictures)
    assert features.mean((0, 2, 3)).abs().max() < 1e-5
    assert (features.std((0, 2, 3), unbiased=False) - 1).abs().max() < 1e-3
    net.export(tmp_path / "rae")
    again = AutoencoderRAE.from_pretrained(tmp_path / "rae")
    assert torch.allclose(LatentSpace(again).encode(pictures), features, atol=1e-5)
    resumed = rae(statistics_batches=1)
    trainer(tmp_path, max_steps=2).fit(resumed, Pictures(), ckpt_path=tmp_path / "checkpoints/last.ckpt")
    assert torch.equal(resumed.autoencoder._latents_mean, net.autoencoder._latents_mean), "not measured again"


def test_noise_is_for_training_and_before_normalisation():
    net = rae(noise_tau=0.7)
    set_statistics(net.autoencoder, torch.zeros(64), torch.full((64,), 2.0))
    features, draws = torch.zeros(4, 64, 2, 2), net.draws(batch(), seeded(1))
    noisy = net._noisy(features, draws)
    again = net.draws(batch(), seeded(1))
    strength, noise = again.uniform() * 0.7, again.normal(64, 2, 2)
    assert torch.allclose(noisy, strength[:, None, None, None] * noise / 2, atol=1e-4)
    assert net.eval().compute_loss(batch(), seeded(1))["loss"] == net.compute_loss(batch(), seeded(2))["loss"]
    assert net.train().compute_loss(batch(), seeded(1))["loss"] != net.compute_loss(batch(), seeded(2))["loss"]


def test_the_adversary_takes_turns(tmp_path):
    net = rae(adversary=ADVERSARY, gradient_clip_val=0.5, micro_batch_size=2)
    heads, told = deepcopy(net.discriminator.heads.state_dict()), []

    class Watch(pl.Callback):
        def on_train_batch_end(self, fit, module, outputs, batch, number):
            same = all(torch.equal(v, heads[k]) for k, v in module.discriminator.heads.state_dict().items()
                       if k.endswith(("original", "bias")))  # fmt: skip
            told.append((fit.global_step, same, "train/adversarial" in fit.callback_metrics))
            assert all(p.grad is None for p in module.discriminator.backbone.parameters())

    fit = trainer(tmp_path, Watch(), enable_checkpointing=False)
    fit.fit(net, Pictures())
    rates = [o.param_groups[0]["lr"] for o in fit.optimizers]
    assert rates == [pytest.approx(2e-3 / 5)] * 2, "both schedules went on"
    assert told == [(1, True, False), (2, False, False), (3, False, True), (4, False, True)]


def test_parts_of_a_batch_make_the_whole(tmp_path):
    """Without the discriminator's norm over samples, accumulation is exact."""
    how = AdversarySettings(backbone_config=VIT, discriminator_from=99, generator_from=99)
    weights = []
    for size in (None, 1, 3):
        net = rae(adversary=how, micro_batch_size=size)
        trainer(tmp_path, max_steps=2).fit(net, Pictures())
        weights.append(net.autoencoder.decoder.state_dict())
    for other in weights[1:]:
        assert all(torch.allclose(v, other[k], atol=1e-5) for k, v in weights[0].items())


def test_what_the_adversary_sees():
    pictures = torch.rand(6, 3, 8, 8, generator=seeded())
    middle = torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.5]]).expand(6, -1)
    assert torch.allclose(augmented(pictures, middle), pictures, atol=1e-6)
    moved = augmented(pictures, middle * torch.tensor([1, 1, 1, 0.0, 1.999]))
    assert torch.allclose(moved[:, :, 1:, :-1], pictures[:, :, :-1, 1:], atol=1e-6)
    assert not moved[:, :, 0].any()
    judge = Discriminator(ADVERSARY)
    assert judge(pictures).shape == (6, 2 * 4)
    assert hinge(torch.full((3,), 2.0), torch.full((3,), -2.0)) == 0
    assert hinge(torch.zeros(3), torch.zeros(3)) == 1


def state(folder):
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    optimizers = {
        f"optimizer{i}.{k}.{n}": v
        for i, o in enumerate(checkpoint["optimizer_states"])
        for k, part in o["state"].items()
        for n, v in part.items()
    }
    shadow = {f"ema.{k}": v for k, v in checkpoint["callbacks"]["EMA"]["shadow"].items()}
    return {**checkpoint["state_dict"], **shadow, **optimizers}


@pytest.mark.parametrize("kind", ["rae", "adversary", "dit", "cached"])
def test_resuming_is_exact(space_folder, tmp_path, kind):
    def make():
        if kind == "rae":
            return rae()
        if kind == "adversary":
            return rae(adversary=ADVERSARY, micro_batch_size=2, gradient_clip_val=1.0)
        return dit(space_folder, latent_cache_mb=1.0 if kind == "cached" else 0.0)

    def run(folder, steps, resume=None):
        torch.manual_seed(77)  # nothing may come from here
        options = {"accumulate_grad_batches": 2} if kind == "rae" else {}
        fit = trainer(folder, EMA(0.9), RunCheckpoint(every_n_steps=1), max_steps=steps, **options)
        fit.fit(make(), Pictures(classes=3), ckpt_path=resume)
        assert fit.global_step == steps
        return state(folder)

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "part", 2)
    resumed = run(tmp_path / "rest", 4, tmp_path / "part/checkpoints/last.ckpt")
    assert whole.keys() == resumed.keys()
    assert [k for k in whole if not torch.equal(whole[k], resumed[k])] == []
    assert any("encoder.encoder" in k for k in whole) is (kind in ("rae", "adversary")), "random ones are kept"


@pytest.mark.parametrize("kind", ["rae", "dit"])
def test_two_processes_make_the_step_of_one(space_folder, tmp_path, kind):
    class Keep(pl.Callback):
        def on_train_end(self, fit, net):
            kept = {n: p.detach() for n, p in net.named_parameters() if p.requires_grad}
            torch.save(kept | {"mean": getattr(net, "autoencoder", net.space.autoencoder if kind == "dit" else None)
                               ._latents_mean}, tmp_path / f"{fit.world_size}.pt")  # fmt: skip

    def run(size, **options):
        net = rae(statistics_batches=24 // size // options.get("devices", 1)) if kind == "rae" else dit(space_folder)
        fit = trainer(tmp_path, Keep(), enable_checkpointing=False, max_steps=2, **options)
        fit.fit(net, Pictures(batch_size=size, classes=3))

    run(4)
    run(2, devices=2, strategy="ddp_fork")
    one, two = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (1, 2))
    for name, weight in one.items():
        assert torch.allclose(weight, two[name], atol=2e-5), name


def test_classes_are_dropped_in_training_only(space_folder):
    net = dit(space_folder, label_dropout=1.0)
    with torch.no_grad():
        for p in net.transformer.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=seeded(2)))
    other = {**batch(), "label": torch.tensor([2, 2, 1, 0])}
    net.train()
    assert net.compute_loss(batch(), seeded())["loss"] == net.compute_loss(other, seeded())["loss"]
    net.eval()
    assert net.compute_loss(batch(), seeded())["loss"] != net.compute_loss(other, seeded())["loss"]


def test_kept_features_give_the_same_loss(space_folder, tmp_path):
    plain, keeping = dit(space_folder), dit(space_folder, latent_cache_mb=1.0)
    for net in (plain, keeping):
        net.train()
    first = [net.compute_loss(batch(), seeded(3))["loss"] for net in (plain, keeping)]
    assert len(keeping._cache.kept) == 4
    keeping.space.autoencoder.encode = None  # not asked again
    second = [net.compute_loss(batch(), seeded(3))["loss"] for net in (plain, keeping)]
    assert first[0] == first[1] == second[0] == second[1]
    none = dit(space_folder, latent_cache_mb=0.003)  # room for three
    none.train().compute_loss(batch(), seeded(3))
    assert len(none._cache.kept) == 3
    data = Pictures(classes=3)
    data.flip = True
    with pytest.raises(InputError, match="crops or flips"):
        trainer(tmp_path).fit(dit(space_folder, latent_cache_mb=1.0), data)


def test_it_learns_one_batch(space_folder):
    net = dit(space_folder, label_dropout=0.0, network={**NETWORK, "head_width": 64})
    optimizer = torch.optim.AdamW(net.transformer.parameters(), lr=5e-3)
    losses = []
    for step in range(40):
        loss = net.compute_loss(batch(2), seeded(step % 8))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(2.0, abs=0.6)
    assert sum(losses[-8:]) < 0.6 * sum(losses[:8])


def test_exports_are_pipelines(space_folder, tmp_path):
    net = dit(space_folder)
    trainer(tmp_path, max_steps=1).fit(net, Pictures(classes=3))
    net.export(tmp_path / "model")
    pipe = FusionPipeline.from_pretrained(tmp_path / "model", segmenter="clipseg")
    assert pipe._transformer(torch.device("cpu")).null_class == 3
    assert "# Fusion, 8 pixels" in (tmp_path / "model/README.md").read_text()
    rows = net.eval().sample_grid(batch(2), seeded())
    assert [len(row) for row in rows] == [3, 3]
    again = dit(str(tmp_path / "model"), network=None, init=str(tmp_path / "model"))
    assert all(torch.equal(v, again.transformer.state_dict()[k]) for k, v in net.transformer.state_dict().items())


def test_validation_tells_psnr(tmp_path):
    class Wide(Pictures):
        def sample(self, index, epoch):
            item = super().sample(index, epoch)
            return {**item, "image": torch.nn.functional.interpolate(item["image"][None], size=16)[0]}

    net = rae(autoencoder={**RAE, "encoder_input_size": 16})
    fit = trainer(tmp_path, limit_val_batches=None)
    fit.validate(net, Wide(length=6), verbose=False)
    made = net.sample_grid({"image": torch.stack([Wide(length=6).sample(i, 0)["image"] for i in range(6)])}, seeded())
    psnr = [-10 * torch.log10(((a - b) / 2).square().mean()) for a, b in made]
    assert fit.callback_metrics["val/psnr"].item() == pytest.approx(torch.stack(psnr).mean().item(), abs=1e-3)
    assert 0 < fit.callback_metrics["val/ssim"] < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_clip_val": 1.0}, "trainer.gradient_clip_val"),
        ({"init": "x"}, "one of them"),
        ({"autoencoder": {**SMALL, "encoder_type": "siglip2"}}, "siglip2"),
        ({"autoencoder": {**SMALL, "encoder_hidden_size": 48}}, "autoencoder: "),
    ],
)
def test_contradictions_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        rae(**options)


def test_what_does_not_fit_the_features_is_refused(space_folder, tmp_path):
    for options, message in (
        ({"network": None}, "network is missing"),
        ({"network": {**NETWORK, "widht": 1}}, "widht"),
        ({"network": {**NETWORK, "head_width": 32}}, "head_width is 32"),
        ({"label_dropout": 2.0}, "label_dropout"),
    ):
        with pytest.raises(InputError, match=message):
            dit(space_folder, **options)
    with pytest.raises(InputError, match="the data has no classes"):
        trainer(tmp_path).fit(dit(space_folder), Pictures())
    with pytest.raises(InputError, match=r"set data\.image_size to 8"):
        dit(space_folder).compute_loss({"image": torch.zeros(1, 3, 16, 16), "id": ["a"]}, seeded())
