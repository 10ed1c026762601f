"""Training: it learns, its groups are right, it resumes to the bit, and two processes equal one."""

import shutil
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from tiny_mask import ABSWIN, DET, PLAIN, batch, seeded
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from lit_insert.data.mask_scenes import MaskScenes
from lit_insert.data.people import PeopleDataModule
from lit_insert.errors import InputError
from lit_insert.mask_decoder.module import MaskDecoderModule, error_map
from lit_insert.mask_decoder.network import HieraFPN
from lit_insert.mask_decoder.objective import LossWeights
from lit_insert.metrics.mask import mask_metrics
from lit_insert.training.checkpoint import RunCheckpoint
from lit_insert.training.ema import EMA


def module(config: dict[str, Any] = PLAIN, lr: float = 1e-3, **options: Any) -> MaskDecoderModule:
    torch.manual_seed(0)
    return MaskDecoderModule(config, optimizer=lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=0.1), **options)


def trainer(folder, *callbacks, **options) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    checkpoints = any(isinstance(c, RunCheckpoint) for c in callbacks)
    return pl.Trainer(
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_checkpointing=checkpoints,
        **quiet | {"num_sanity_val_steps": 0, "devices": 1} | options,
    )


def test_it_learns_and_frozen_random_features_are_refused(tmp_path):
    net = module(DET, lr=3e-3)
    optimizer = net.configure_optimizers()
    data = batch(6)
    first = float(net.compute_loss(data, seeded())["loss"].detach())
    for step in range(30):
        loss = net.compute_loss(data, seeded(step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.8 * first
    with pytest.raises(InputError, match="freeze_encoder: the encoder's weights are random"):
        module(freeze_encoder=True)


def test_a_frozen_encoder_stays_and_is_left_out_of_checkpoints(tmp_path):
    HieraFPN(**PLAIN).save_pretrained(tmp_path / "net")
    net = module(encoder_weights=str(tmp_path / "net"), freeze_encoder=True).train()
    assert not net.network.backbone.training
    data = batch()
    net.compute_loss(data, seeded())["loss"].backward()
    for name, p in net.network.named_parameters():
        own = not name.startswith("backbone.")
        assert p.requires_grad == own
        assert (p.grad is not None) == own
    assert {g["name"] for g in net.parameter_groups()} == {"decoder", "decoder/no_decay"}
    checkpoint = {"state_dict": net.state_dict()}
    net._trainer = None
    net.on_save_checkpoint(checkpoint)
    assert not any(k.startswith("network.backbone") for k in checkpoint["state_dict"])


@pytest.mark.parametrize("weights", [{}, {"presence": 0.0}, {"bce": 0, "dice": 0, "jaccard": 1, "boundary": 1}])
def test_every_trainable_weight_gets_a_gradient(weights):
    net = module(loss=LossWeights(**weights)).train()
    net.compute_loss(batch(), seeded())["loss"].backward()
    for name, p in net.named_parameters():
        assert (p.grad is not None and bool(p.grad.any())) == p.requires_grad, name
    idle = {n for n, p in net.named_parameters() if not p.requires_grad}
    assert all("presence_head" in n for n in idle)
    assert bool(idle) == ("presence" in weights)


@pytest.mark.parametrize("config", [PLAIN, ABSWIN, DET])
def test_rates_and_decay_by_layer(config):
    net = module(config, encoder_lr_scale=0.5, layer_decay=0.8, lr=1e-2)
    groups = {g["name"]: g for g in net.configure_optimizers().param_groups}
    names = {id(p): n for n, p in net.named_parameters()}
    blocks = len(net.network.backbone.blocks)
    seen = set()
    for label, group in groups.items():
        for p in group["params"]:
            name = names[id(p)].removeprefix("network.")
            seen.add(name)
            embedding = name.startswith("backbone.pos_embed")
            assert group["weight_decay"] == (0 if p.ndim < 2 or embedding else 0.1), name
            if not name.startswith("backbone."):
                assert group["lr"] == pytest.approx(1e-2)
            elif name.startswith("backbone.blocks."):
                number = int(name.split(".")[2])
                assert group["lr"] == pytest.approx(1e-2 * 0.5 * 0.8 ** (blocks - 1 - number)), label
            else:
                assert group["lr"] == pytest.approx(1e-2 * 0.5 * 0.8**blocks), name
    assert seen == {n for n, _ in net.network.named_parameters()}
    assert {g["name"] for g in module(config).parameter_groups()} == {
        part + suffix for part in ("encoder", "decoder") for suffix in ("", "/no_decay")
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_decay": 1.5}, "layer_decay is 1.5"),
        ({"encoder_lr_scale": 0.0}, "encoder_lr_scale is 0.0"),
        ({"encoder_weights": "nowhere.pth"}, "nowhere.pth: no such file"),
        ({"loss": {"bce": -1.0}}, "loss.bce is -1.0"),
    ],
)
def test_mistakes_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        module(**options)


def test_hyperparameters_are_plain_and_rebuild_the_module():
    net = module(loss=LossWeights(focal=1.0))
    again = MaskDecoderModule(**net.hparams)
    assert again.loss_weights == net.loss_weights
    assert again.state_dict().keys() == net.state_dict().keys()


def test_validation_logs_the_metrics_of_the_predictions(tmp_path):
    net = module()
    source = MaskScenes("val", count=6, size=64)
    data = PeopleDataModule(val=source, image_size=64, batch_size=4, check=0)
    (logged,) = trainer(tmp_path).validate(net, data, verbose=False)
    wanted = mask_metrics(prefix="val/")
    net.eval()
    with torch.no_grad():
        for part in data.val_dataloader():
            output = net.segment(part)
            wanted.update(
                probability=output.logits.sigmoid(), mask=part["mask"], presence=output.presence_logits.sigmoid()
            )
    for name, value in wanted.compute().items():
        assert logged[name] == pytest.approx(float(value), abs=1e-6)
    assert {"val/loss", "val/bce_loss", "val/dice_loss", "val/presence_loss"} <= logged.keys()


def test_grid_shows_picture_truth_prediction_and_errors():
    net = module().eval()
    data = batch()
    rows = net.sample_grid(data, seeded())
    assert [len(row) for row in rows] == [4] * 4
    assert all(p.shape == (3, 64, 64) and p.abs().max() <= 1 for row in rows for p in row)
    assert torch.equal(rows[0][1][:1], data["mask"][0] * 2 - 1)
    assert (rows[-1][1][:, 0] == 0).all()  # what is ignored is grey
    assert [len(row) for row in net.sample_grid({"image": data["image"]}, seeded())] == [2] * 4
    found = net.predict_step(data, 0)
    assert found["id"] == data["id"]
    assert set(torch.stack(found["image"]).unique().tolist()) <= {-1.0, 1.0}


def test_error_map_has_a_colour_for_each_kind():
    image = torch.zeros(1, 3, 2, 2)
    found = torch.tensor([[[[True, True], [False, True]]]])
    mask = torch.tensor([[[[1.0, 0.0], [1.0, 255.0]]]])
    hit, alarm, miss, ignored = error_map(image, found, mask)[0].flatten(1).T
    assert hit.min() > 0.4
    assert alarm.argmax() == 0
    assert alarm[0] > 0 > alarm[1:].max()
    assert miss.argmax() == 2
    assert miss[2] > 0 > miss[:2].max()
    assert torch.equal(ignored, torch.full((3,), -0.4))


class Pictures(Dataset):
    def __init__(self, count: int = 8) -> None:
        made = batch(count)
        self.items = [{k: v[i] for k, v in made.items()} for i in range(count)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]


def test_two_processes_are_one_on_the_same_batch(tmp_path):
    """Each of two ranks has every other picture of what one process has as a whole; ignored pixels included."""

    class Note(pl.Callback):
        def on_train_end(self, trainer, net):
            if trainer.is_global_zero:
                weights = {n: p.detach().clone() for n, p in net.named_parameters()}
                loss = float(trainer.callback_metrics["train/loss"])
                torch.save({"weights": weights, "loss": loss}, tmp_path / f"{trainer.world_size}.pt")

    class Spread(pl.LightningDataModule):
        def train_dataloader(self):
            ranks = self.trainer.world_size
            sampler = DistributedSampler(data, ranks, self.trainer.global_rank, shuffle=False)
            return DataLoader(data, 8 // ranks, sampler=sampler)

    data = Pictures()
    for devices in (1, 2):
        strategy = "ddp_fork" if devices == 2 else "auto"
        options = {"devices": devices, "strategy": strategy, "max_steps": 2, "log_every_n_steps": 1}
        net = MaskDecoderModule(DET, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
        net.network.load_state_dict(module(DET).network.state_dict())
        trainer(tmp_path, Note(), use_distributed_sampler=False, **options).fit(net, Spread())
    one, two = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (1, 2))
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
    for name, weight in one["weights"].items():
        assert torch.allclose(weight, two["weights"][name], atol=1e-5), name


class KeepAll(RunCheckpoint):
    def _save(self, trainer: pl.Trainer, name: str) -> None:
        super()._save(trainer, name)
        if name == "last.ckpt":
            shutil.copy(self.folder / name, self.folder / f"{trainer.global_step}.ckpt")


def test_resuming_is_exact_to_the_bit(tmp_path):
    def fit(name, resume=None):
        config = PLAIN | {"encoder_kwargs": PLAIN["encoder_kwargs"] | {"drop_path_rate": 0.3}}
        source = MaskScenes("train", count=10, size=64)
        data = PeopleDataModule(source, image_size=64, batch_size=4, check=0)  # augmented, 3 batches an epoch
        run = trainer(tmp_path / name, EMA(0.9), KeepAll(every_n_steps=1), max_steps=5, limit_val_batches=0)
        run.fit(module(config), data, ckpt_path=resume)
        saved = torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)
        return {
            **saved["state_dict"],
            **{f"ema.{k}": v for k, v in saved["callbacks"]["EMA"]["shadow"].items()},
            **{f"adam.{k}": v["exp_avg_sq"] for k, v in saved["optimizer_states"][0]["state"].items()},
        }

    whole = fit("whole")
    for step in (2, 3):
        part = fit(f"part{step}", tmp_path / f"whole/checkpoints/{step}.ckpt")
        assert whole.keys() == part.keys()
        assert all(torch.equal(v, part[k]) for k, v in whole.items())


def test_export_is_a_network_with_a_trained_encoder(tmp_path):
    net = module()
    net.export(tmp_path / "model")
    again = HieraFPN.from_pretrained(tmp_path / "model")
    again.check_pretrained()
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in net.network.state_dict().items())
