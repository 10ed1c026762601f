import numpy as np
import pytest
import torch
from PIL import Image
from tiny_instances import write_instances

from lit_insert.data.instance_folder import read_instances, square
from lit_insert.data.instances import InstanceDataset, MaskedInstanceDataModule, caption_of
from lit_insert.errors import InputError

THREE = ((2, 2, 14, 14), (20, 12, 36, 28), (2, 18, 12, 30))


def dataset(folder, count=3, **options):
    masks = torch.zeros(count, 1, 8, 8)
    for i in range(count):
        masks[i, 0, i, : i + 2] = 1
    image = torch.linspace(-1, 1, 3 * 64).view(3, 8, 8)
    return InstanceDataset(image, masks, "p", 100, **options)


def test_masks_are_read_in_the_order_of_their_numbers(tmp_path):
    boxes = tuple((i * 3, 0, i * 3 + 3, 3 + i) for i in range(12))
    found = read_instances(write_instances(tmp_path / "a", (40, 32), boxes))
    assert found.masks.shape == (12, 32, 40)
    assert found.masks.sum((1, 2)).tolist() == [3 * (3 + i) for i in range(12)]


def test_what_is_wrong_with_a_folder_is_told_in_one_line(tmp_path):
    def broken(name, **options):
        return write_instances(tmp_path / name, **options)

    with pytest.raises(InputError, match="no such folder"):
        read_instances(tmp_path / "nowhere")
    folder = broken("gap", masks=THREE)
    (folder / "mask1.png").unlink()
    with pytest.raises(InputError, match=r"mask1\.png is missing, but there is mask2\.png"):
        read_instances(folder)
    folder = broken("none", masks=())
    with pytest.raises(InputError, match=r"has no mask0\.png"):
        read_instances(folder)
    folder = broken("two")
    Image.new("RGB", (40, 32)).save(folder / "img.jpg")
    with pytest.raises(InputError, match=r"both img\.jpg and img\.png"):
        read_instances(folder)
    folder = broken("size")
    Image.new("L", (32, 32), 255).save(folder / "mask1.png")
    with pytest.raises(InputError, match=r"mask1\.png: is 32x32 pixels, the picture 40x32"):
        read_instances(folder)
    folder = broken("empty")
    Image.new("L", (40, 32)).save(folder / "mask1.png")
    with pytest.raises(InputError, match=r"mask1\.png: is empty"):
        read_instances(folder)
    folder = broken("truncated")
    (folder / "mask0.png").write_bytes((folder / "mask0.png").read_bytes()[:40])
    with pytest.raises(InputError, match=r"mask0\.png"):
        read_instances(folder)
    with pytest.raises(InputError, match="each instance needs pixels of its own"):
        read_instances(broken("same", masks=(THREE[0], THREE[0])))


def test_tiny_and_overlapping_masks_are_warned_about(tmp_path, caplog):
    folder = write_instances(tmp_path / "a", masks=((0, 0, 4, 4), (10, 10, 30, 30), (28, 10, 40, 30)))
    data = MaskedInstanceDataModule(str(folder), size=32)
    data.setup("fit")
    assert any("mask0.png" in m and "1.2%" in m for m in caplog.messages)
    assert any("mask1.png and mask2.png share 17%" in m for m in caplog.messages)


@pytest.mark.parametrize("size", [(60, 40), (40, 60)])
def test_a_crop_keeps_the_instances_and_the_aspect(size):
    width, height = size
    image = torch.zeros(3, height, width)
    masks = torch.zeros(2, height, width, dtype=torch.uint8)
    masks[0, 4:12, 4:12] = 1
    masks[1, 30:40, 30:40] = 1
    image[0] = masks.amax(0)
    picture, cut = square(image, masks, 40, "crop")
    assert cut.flatten(1).sum(1).tolist() == [64, 100]
    assert torch.equal(picture[0].round(), cut.amax(0)[0])
    padded, whole = square(image, masks, 60, "pad")
    assert padded.shape == (3, 60, 60)
    assert whole.flatten(1).sum(1).tolist() == [64, 100]


def test_an_instance_lost_by_the_crop_is_told(tmp_path, caplog):
    folder = write_instances(tmp_path / "a", (100, 30), ((0, 4, 24, 28), (76, 4, 100, 28), (40, 4, 60, 28)))
    with pytest.raises(InputError, match=r"nothing of mask\d\.png is left at 32 pixels; use fit: pad"):
        MaskedInstanceDataModule(str(folder), size=32).setup("fit")
    data = MaskedInstanceDataModule(str(folder), size=32, fit="pad")
    assert data.num_instances == 3
    assert data.tokens == ["<asset0>", "<asset1>", "<asset2>"]
    folder = write_instances(tmp_path / "b", (60, 30), ((0, 4, 24, 28), (28, 4, 60, 28)))
    MaskedInstanceDataModule(str(folder), size=32).setup("fit")
    assert any("fit: pad keeps all of it" in m for m in caplog.messages)


def test_every_number_of_instances_is_equally_likely_and_every_order_occurs(tmp_path):
    data = dataset(tmp_path)
    drawn = [tuple(i for i in data.sample(n, 0)["instances"].tolist() if i >= 0) for n in range(900)]
    counts = np.bincount([len(d) for d in drawn], minlength=4)[1:]
    assert ((counts - 300) ** 2 / 300).sum() < 13.8  # chi-square, 2 degrees of freedom, p = 0.001
    assert len(set(drawn)) == 3 + 6 + 6
    single = dataset(tmp_path, union_sampling=False)
    assert {len([i for i in single.sample(n, 0)["instances"].tolist() if i >= 0]) for n in range(50)} == {1}


def test_masks_and_caption_follow_the_instances_and_mirroring_keeps_them_aligned(tmp_path):
    data = dataset(tmp_path)
    mirrored = set()
    for n in range(40):
        sample = data.sample(n, 1)
        chosen = [i for i in sample["instances"].tolist() if i >= 0]
        assert sample["caption"] == "a photo of " + " and ".join(f"<asset{i}>" for i in chosen)
        flip = sample["id"].endswith("-mirrored")
        mirrored.add(flip)
        for place, i in enumerate(chosen):
            expected = data.masks[i].flip(-1) if flip else data.masks[i]
            assert torch.equal(sample["masks"][place], expected)
        assert not sample["masks"][len(chosen) :].any()
        assert torch.equal(sample["image"], data.image.flip(-1) if flip else data.image)
        again = data.sample(n, 1)
        assert again["caption"] == sample["caption"]
        assert torch.equal(again["image"], sample["image"])
    assert mirrored == {True, False}
    epochs = {data.sample(0, epoch)["caption"] for epoch in range(20)}
    assert len(epochs) > 3


def test_a_shift_moves_masks_with_the_picture_and_keeps_what_is_named(tmp_path):
    data = dataset(tmp_path, flip=0.0, shift=1.0, union_sampling=False)
    seen = set()
    for n in range(60):
        sample = data.sample(n, 0)
        i = int(sample["instances"][0])
        mask = data.masks[i, 0].bool()
        moved = sample["masks"][0, 0].bool()
        assert moved.sum() == mask.sum()
        assert torch.equal(sample["image"][:, moved], data.image[:, mask])
        seen.add((i, *moved.nonzero()[0].tolist()))
        assert sample["id"] != "p"
    assert len(seen) > 30
    assert dataset(tmp_path, shift=1.0, training=False).sample(1, 0)["id"] == "p"
    near = dataset(tmp_path, flip=0.0, shift=0.125)
    offsets = {near.sample(n, 0)["id"].removeprefix("p") for n in range(80)}
    assert all(abs(int(o[:2])) <= 1 and abs(int(o[2:])) <= 1 for o in offsets)
    with pytest.raises(InputError, match="shift is 2"):
        MaskedInstanceDataModule(str(tmp_path), shift=2)


def test_the_module_gives_batches_of_the_schema(tmp_path):
    folder = write_instances(tmp_path / "pair")
    data = MaskedInstanceDataModule(str(folder), size=32, batch_size=3, train_length=6)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (3, 3, 32, 32)
    assert batch["masks"].shape == (3, 2, 1, 32, 32)
    assert set(batch["masks"].unique().tolist()) <= {0.0, 1.0}
    assert batch["instances"].dtype == torch.int64
    assert all(i.startswith("pair") for i in batch["id"])
    looked = next(iter(data.val_dataloader()))
    assert looked["caption"] == [caption_of([0, 1]), caption_of([1, 0])]
    with pytest.raises(InputError, match="has no class pictures"):
        MaskedInstanceDataModule(str(folder), size=32, class_prompt="a photo of a ring").train_dataloader()
    with pytest.raises(InputError, match="need one"):
        MaskedInstanceDataModule(str(folder), template="a photo")


def test_some_class_pictures_come_without_their_caption(tmp_path):
    folder = write_instances(tmp_path / "pair")
    (tmp_path / "class").mkdir()
    for i in range(2):
        Image.new("RGB", (32, 32), (i, 0, 0)).save(tmp_path / f"class/{i}.png")
    options = {"size": 32, "class_prompt": ["one", "two"], "class_folder": str(tmp_path / "class")}
    for dropout, empty in ((0.0, range(1)), (0.25, range(30, 71))):
        data = MaskedInstanceDataModule(str(folder), class_dropout=dropout, **options).dataset(True, 200)
        captions = [data.sample(n, 0)["prior_caption"] for n in range(200)]
        assert captions.count("") in empty
        assert min(captions.count("one"), captions.count("two")) > 50
    with pytest.raises(InputError, match="class_dropout is 1"):
        MaskedInstanceDataModule(str(folder), class_dropout=1.0)


def test_the_published_examples_are_read(shared_data):
    folders = sorted((shared_data / "instances").iterdir())
    assert folders
    for folder in folders:
        found = read_instances(folder)
        assert len(found.masks) == len(list(folder.glob("mask*.png")))
