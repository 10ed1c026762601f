import lightning.pytorch as pl
import pytest
import torch
from tiny_base import write_base

from lit_insert.data.pipe import PipeTripletDataModule
from lit_insert.data.scenes import SceneDataset, ScenesDataModule
from lit_insert.embedding_optimizer.module import EmbeddingOptimizerModule
from lit_insert.embedding_optimizer.parts import UnetTuning
from lit_insert.errors import InputError
from lit_insert.images import save_image, to_pil


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(write_base(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten triplets as files."""
    root = tmp_path_factory.mktemp("triplets")
    world = SceneDataset("train", 10, size=32)
    for split in ("train", "test"):
        rows = ["triplet_id,original_image_file_name,target_image_file_name,object_image_file_name,mask_file_name"]
        for i in range(10):
            sample = world[i]
            names = [f"{kind}_{i}.png" for kind in ("original", "target", "object", "mask")]
            pictures = (sample["source"], sample["target"], sample["target"][:, 4:28, 4:28], sample["mask"])
            for name, picture in zip(names, pictures, strict=True):
                save_image(to_pil(picture), root / split / name)
            rows.append(",".join([f"t{i}", *names]))
        (root / split / "metadata.csv").write_text("\n".join(rows) + "\n")
    return root


def triplets(folder, **options):
    given = {"batch_size": 4, "num_workers": 0, "size": 32, "object_size": 32, "augment_reference": False}
    return PipeTripletDataModule(str(folder), **{**given, **options})


def losses(base, tmp_path, data, cache, **options):
    torch.manual_seed(0)
    net = EmbeddingOptimizerModule(
        base=base, adapter={"heads": 4, "depth": 1}, unet=UnetTuning("none"), mask_weight=2.0, feature_cache=cache
    )
    seen, compute = [], net.compute_loss

    def spy(batch, generator):
        out = compute(batch, generator)
        seen.append((float(out["loss"].detach()), list(batch["id"]), "target" in batch))
        return out

    net.compute_loss = spy
    settings = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "reload_dataloaders_every_n_epochs": 0,
        "max_epochs": 3,
        "default_root_dir": tmp_path,
    }
    pl.Trainer(**{**settings, **options}).fit(net, data)
    return seen


@pytest.mark.parametrize("augment", [False, "flip"])
def test_training_from_the_cache_has_the_same_loss(base, folder, tmp_path, augment):
    plain = losses(base, tmp_path, triplets(folder, augment=augment), None)
    cached = losses(base, tmp_path, triplets(folder, augment=augment), str(tmp_path / "cache"))
    assert [ids for _, ids, _ in cached] == [ids for _, ids, _ in plain]
    assert all(has for _, _, has in plain)
    assert not any(has for _, _, has in cached)
    assert max(abs(a[0] - b[0]) for a, b in zip(plain, cached, strict=True)) < 1e-6


def test_bf16_and_scenes(base, tmp_path):
    def scenes():
        return ScenesDataModule(batch_size=4, train_length=12)

    plain = losses(base, tmp_path, scenes(), None, precision="bf16-mixed", max_epochs=1)
    cached = losses(base, tmp_path, scenes(), str(tmp_path / "cache"), precision="bf16-mixed", max_epochs=1)
    assert [a[0] for a in plain] == pytest.approx([b[0] for b in cached], abs=1e-6)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    losses(base, tmp_path, scenes(), str(tmp_path / "cache"), max_epochs=1)
    assert len(list((tmp_path / "cache").iterdir())) == 2  # another precision has other features


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"augment": True}, "augment to flip"), ({"augment": "flip", "augment_reference": True}, "augment_reference")],
)
def test_random_crops_and_references_are_refused(base, folder, tmp_path, options, reason):
    with pytest.raises(InputError, match=reason) as caught:
        losses(base, tmp_path, triplets(folder, **options), str(tmp_path / "cache"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_two_processes_fill_one_cache(base, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("lit_insert.diffusion.cache.SHARD", 4)
    data = triplets(folder, augment=False)
    losses(base, tmp_path, data, str(tmp_path / "two"), devices=2, strategy="ddp_fork", max_epochs=1)
    losses(base, tmp_path, triplets(folder, augment=False), str(tmp_path / "one"), max_epochs=1)
    two, one = (sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*")) for n in ("two", "one"))
    assert len(two) == 1 + 3
    assert two == one
