import hashlib

import lightning.pytorch as pl
import pytest
import torch
from tiny_base import scenes, write_base
from tiny_insert import seeded

from lit_insert.data.scenes import ScenesDataModule
from lit_insert.embedding_optimizer.module import EmbeddingOptimizerModule, Sampling
from lit_insert.embedding_optimizer.parts import UnetTuning
from lit_insert.embedding_optimizer.pipeline import InsertPipeline
from lit_insert.errors import InputError
from lit_insert.metrics.fidelity import PictureFidelity
from lit_insert.metrics.preservation import BackgroundPreservation
from lit_insert.training.predictions import PredictionWriter

SMALL = {"heads": 4, "depth": 1, "num_tokens": 4}
CASES = {
    "attn2": (SMALL, UnetTuning("attn2", ["mid_block"])),
    "kv": (SMALL, UnetTuning("attn2.kv")),
    "lora": (SMALL, UnetTuning("lora", rank=2)),
    "all": (SMALL, UnetTuning("all", lr_scale=1.0)),
    "none": (SMALL, UnetTuning("none")),
    "legacy": ({"mode": "legacy", "num_tokens": 4}, UnetTuning("none")),
    "ip": ({"mode": "ip"}, UnetTuning("none")),
    "ip_plus": ({"mode": "ip_plus", "heads": 1}, UnetTuning("none")),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(write_base(tmp_path_factory.mktemp("base")))


def module(base, case="attn2", **options):
    torch.manual_seed(0)
    adapter, unet = CASES[case]
    given = {"base": base, "adapter": adapter, "unet": unet, "sampling": Sampling(2, 3.0, 1.5), **options}
    return EmbeddingOptimizerModule(**given)


def data(**options):
    return ScenesDataModule(**{"batch_size": 4, "train_length": 10, "val_length": 6, "test_length": 3, **options})


def trainer(tmp_path, **options):
    settings = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
        "max_epochs": 1,
    }
    return pl.Trainer(**{**settings, **options})


def hashes(net, wanted):
    return {
        name: hashlib.sha256(p.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, p in net.named_parameters()
        if p.requires_grad is wanted
    }


@pytest.mark.parametrize("case", CASES)
def test_steps_change_all_that_trains_and_nothing_else(base, tmp_path, case):
    net = module(base, case, conditioning_dropout=1 / 3)
    frozen, trained = hashes(net, False), hashes(net, True)
    trainer(tmp_path).fit(net, train_dataloaders=data().train_dataloader())  # 10 samples: the last batch has 2
    assert hashes(net, False) == frozen
    after = hashes(net, True)
    assert after.keys() == trained.keys()
    assert [n for n in after if after[n] == trained[n]] == []
    unet = [n for n in trained if n.startswith("unet.")]
    assert bool(unet) is (case in ("attn2", "kv", "lora", "all"))


@pytest.mark.parametrize("case", CASES)
def test_optimiser_groups_hold_each_trainable_once(base, case):
    net = module(base, case, optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1))
    optimizer = net.configure_optimizers()
    names = {id(p): n for n, p in net.named_parameters()}
    held = [names[id(p)] for g in optimizer.param_groups for p in g["params"]]
    assert sorted(held) == sorted(n for n, p in net.named_parameters() if p.requires_grad)
    for group in optimizer.param_groups:
        scale = CASES[case][1].lr_scale if group["name"].startswith("unet") else 1.0
        assert group["lr"] == pytest.approx(1e-3 * scale)
        for p in group["params"]:
            name = names[id(p)]
            spared = p.ndim < 2 or name.rpartition(".")[2] in ("queries", "null_embedding", "latents")
            assert group["weight_decay"] == (0 if spared else 0.1), name


def test_default_ratio_is_a_tenth(base):
    optimizer = module(base, "kv").configure_optimizers()
    rates = {g["name"].split("/")[0]: g["lr"] for g in optimizer.param_groups}
    assert rates["unet"] == pytest.approx(0.1 * rates["embedding_optimizer"])


@pytest.mark.parametrize("case", ["attn2", "ip"])
def test_checkpointing_reaches_the_adapter_with_the_same_gradient(base, case):
    grads = []
    for flag in (False, True):
        net = module(base, case, gradient_checkpointing=flag).train()
        net.compute_loss(scenes(), seeded(0))["loss"].backward()
        grads.append({n: p.grad for n, p in net.named_parameters() if p.requires_grad})
    for name, grad in grads[0].items():
        assert grad is not None
        assert torch.allclose(grads[1][name], grad, atol=1e-6), name


def test_bf16_keeps_what_trains_in_float32(base, tmp_path):
    net = module(base)
    seen = []
    compute = net.compute_loss

    def spy(batch, generator):
        losses = compute(batch, generator)
        seen.append(losses["loss"].dtype)
        return losses

    net.compute_loss = spy
    fit = trainer(tmp_path, precision="bf16-mixed", max_steps=2)
    fit.fit(net, train_dataloaders=data().train_dataloader())
    assert set(seen) == {torch.float32}
    assert {p.dtype for p in net.parameters() if p.requires_grad} == {torch.float32}
    state = fit.optimizers[0].state
    assert {v["exp_avg"].dtype for v in state.values()} == {torch.float32}


def test_nan_names_the_samples(base, tmp_path):
    net = module(base)
    compute = net.compute_loss
    net.compute_loss = lambda batch, generator: {k: v * torch.nan for k, v in compute(batch, generator).items()}
    with pytest.raises(InputError, match=r"nan at step 0; batch ids: scene-train-\d+, scene-train-"):
        trainer(tmp_path).fit(net, train_dataloaders=data().train_dataloader())


@pytest.mark.parametrize("case", ["attn2", "ip"])
def test_one_null_for_training_and_sampling(base, case, monkeypatch):
    net = module(base, case, conditioning_dropout=1 / 3).eval()
    with torch.no_grad():
        net.embedding_optimizer.null_embedding.normal_()
    null, seen = net.embedding_optimizer.null(1)[0], []
    forward = net.unet.forward
    monkeypatch.setattr(
        net.unet,
        "forward",
        lambda x, t, *a, **k: seen.append(a[0] if a else k["encoder_hidden_states"]) or forward(x, t, *a, **k),
    )
    net.compute_loss(scenes(32), seeded(0))
    trained = [torch.equal(row, null) for row in seen.pop()]
    assert 0.4 < sum(trained) / 32 < 0.9  # p = 1/3: dropped in two thirds
    net.insert(scenes(2), seeded(0))
    rows = seen[0].chunk(3)  # full, scene only, none
    assert not torch.equal(rows[0][0], null)
    assert all(torch.equal(row, null) for part in rows[1:] for row in part)


def test_no_dropout_never_drops(base, monkeypatch):
    net = module(base, conditioning_dropout=0.0)
    with torch.no_grad():
        net.embedding_optimizer.null_embedding.fill_(torch.nan)
    assert torch.isfinite(net.compute_loss(scenes(32), seeded(0))["loss"])


def test_loss_depends_on_the_generator_alone(base):
    net = module(base)
    first, second, other = (float(net.compute_loss(scenes(), seeded(s))["loss"].detach()) for s in (1, 1, 2))
    assert first == second != other


def test_validation_reports_noise_levels(base, tmp_path):
    fit = trainer(tmp_path)
    fit.validate(module(base), data(val_length=64), verbose=False)
    metrics = fit.callback_metrics
    quarters = [float(metrics[f"val/loss_quarter{i}"]) for i in range(1, 5)]
    assert min(quarters) > 0
    assert {"val/loss", "val/object", "val/background"} <= set(metrics)
    again = trainer(tmp_path)
    again.validate(module(base), data(val_length=64), verbose=False)
    assert float(again.callback_metrics["val/loss"]) == float(metrics["val/loss"])


def test_testing_compares_insertions_with_targets(base, tmp_path):
    fit, net = trainer(tmp_path), module(base)
    fit.test(net, data(test_length=5), verbose=False)
    metrics = {k: float(v) for k, v in fit.callback_metrics.items()}
    fidelity, preservation = PictureFidelity(), BackgroundPreservation()
    net.eval()
    for index, part in enumerate(data(test_length=5).test_dataloader()):
        results = torch.stack(net.insert(part, net._generator(-1 - index)))
        fidelity.update(results, part["target"])
        preservation.update(part["source"], results, part["mask"])
    expected = {**fidelity.compute(), "background_psnr": preservation.compute()["psnr"]}
    assert {k: metrics[f"test/{k}"] for k in expected} == pytest.approx({k: float(v) for k, v in expected.items()})
    assert metrics["test/loss"] > 0


def test_grid_rows_with_fixed_noise(base):
    net = module(base).eval()
    batch = scenes(3)
    rows = net.sample_grid(batch, seeded(4))
    assert [[tuple(p.shape) for p in row] for row in rows] == [[(3, 32, 32)] * 4] * 3
    for i, (source, reference, result, target) in enumerate(rows):
        assert torch.equal(source, batch["source"][i])
        assert torch.equal(target, batch["target"][i])
        assert reference.min() >= -1.001
        assert reference.max() <= 1.001
        assert result.abs().max() <= 1
    assert all(torch.equal(a[2], b[2]) for a, b in zip(rows, net.sample_grid(batch, seeded(4)), strict=True))


def test_predict_writes_a_picture_for_each_sample(base, tmp_path):
    writer = PredictionWriter(tmp_path / "out")
    fit = trainer(tmp_path, callbacks=[writer])
    fit.predict(module(base), data(), return_predictions=False)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"scene-test-{i}.png" for i in range(3)]


@pytest.mark.parametrize("case", CASES)
def test_export_samples_what_the_module_samples(base, tmp_path, case):
    net = module(base, case).eval()
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn_like(p))
    batch = scenes(2)
    expected = net.insert(batch, seeded(0))
    net.export(tmp_path / "model")
    pipe = InsertPipeline.from_pretrained(tmp_path / "model", scheduler="ddim")
    pipe.set_progress_bar_config(disable=True)
    seeds = torch.randint(2**62, (2,), generator=seeded(0)).tolist()
    images = pipe(
        image=batch["source"],
        object_pixel_values=batch["object"],
        generator=[seeded(s) for s in seeds],
        num_inference_steps=2,
        guidance_scale=3.0,
        image_guidance_scale=1.5,
        preserve_background=False,
        output_type="pt",
    ).images
    for image, wanted in zip(images, expected, strict=True):
        assert torch.allclose(image * 2 - 1, wanted, atol=1e-4)
    files = {p.name for p in (tmp_path / "model" / "embedding_optimizer").iterdir()}
    own = {"legacy": {"emb_opt.pt"}, "ip": {"ip_adapter.safetensors"}, "ip_plus": {"ip_adapter.safetensors"}}
    assert files == {"config.json", "diffusion_pytorch_model.safetensors"} | own.get(case, set())
    assert net.compute_loss(batch, seeded(1))["loss"].isfinite()  # and the module is as it was


def test_hyperparameters_are_plain_and_rebuild_the_module(base):
    net = module(base, "lora")
    assert net.hparams["unet"] == {"target": "lora", "blocks": [], "lr_scale": 0.1, "rank": 2, "alpha": 8.0}
    again = EmbeddingOptimizerModule(**net.hparams)
    assert again.tuned == net.tuned
    assert again.sampling == net.sampling


def test_contradictions_are_refused(base, tmp_path):
    with pytest.raises(InputError, match="conditioning_dropout is 0"):
        module(base, conditioning_dropout=0.4)
    with pytest.raises(InputError, match="frozen image encoder"):
        module(base, train_image_encoder=True, feature_cache=str(tmp_path))
    with pytest.raises(InputError, match=r"prepare references differently: size is .*24.*32"):
        trainer(tmp_path).validate(module(base), data(object_size=24), verbose=False)


def test_image_encoder_trains_if_asked(base):
    net = module(base, train_image_encoder=True)
    net.compute_loss(scenes(), seeded(0))["loss"].backward()
    encoder = dict(net.image_encoder.named_parameters())
    assert encoder["vision_model.embeddings.patch_embedding.weight"].grad.any()
    assert all((p.grad is not None) is p.requires_grad for p in encoder.values())
    assert not encoder["visual_projection.weight"].requires_grad  # nothing reads it
    assert "image_encoder" in {g["name"] for g in net.parameter_groups()}


def two_ranks(base, tmp_path, **options):
    """Losses of each rank and weights at the end, from a run of two processes."""

    class Note(pl.Callback):
        def on_train_batch_end(self, trainer, net, outputs, batch, batch_idx):
            net.seen = [*getattr(net, "seen", []), float(outputs["loss"])]

        def on_train_end(self, trainer, net):
            weights = {n: p.detach() for n, p in net.named_parameters() if p.requires_grad}
            torch.save({"losses": net.seen, "weights": weights}, tmp_path / f"rank{trainer.global_rank}.pt")

    fit = trainer(
        tmp_path, devices=2, strategy="ddp_fork", callbacks=[Note()], use_distributed_sampler=False, **options
    )
    fit.fit(module(base, conditioning_dropout=0.0), data(batch_size=2, train_length=8))
    return [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_ranks_agree_on_weights_and_differ_in_noise(base, tmp_path):
    first, second = two_ranks(base, tmp_path, precision="bf16-mixed")
    assert all(a != b for a, b in zip(first["losses"], second["losses"], strict=True))
    for name, weight in first["weights"].items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, second["weights"][name]), name


def test_the_model_remembers_how_it_samples_and_at_what_size(base, tmp_path):
    net = module(base, "lora", sampling=Sampling(7, 2.5, 1.1))
    loaded = data()
    loaded.size = 32
    fit = trainer(tmp_path, max_steps=1)
    fit.fit(net, loaded)
    fit.save_checkpoint(tmp_path / "run.ckpt")
    net.export(tmp_path / "model")
    wanted = {"num_inference_steps": 7, "guidance_scale": 2.5, "image_guidance_scale": 1.1}
    assert InsertPipeline.from_pretrained(tmp_path / "model").sampling == wanted
    assert InsertPipeline.from_pretrained(tmp_path / "model").processing_resolution == 32
    assert InsertPipeline.from_pretrained(tmp_path / "run.ckpt").sampling == wanted
