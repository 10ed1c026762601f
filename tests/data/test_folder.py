import csv
import json

import pytest
import torch
from data_samples import write_triplets
from datasets import load_dataset
from PIL import Image

from lit_insert.data.folder import TripletFolder, read_metadata
from lit_insert.data.loading import BrokenSample
from lit_insert.data.transforms import TripletTransform, clip_processor
from lit_insert.errors import InputError

TRANSFORM = TripletTransform(32, clip_processor(32))


def rewrite(folder, change):
    path = folder / "metadata.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows = change(rows) or rows
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_reads_what_was_written(triplets):
    data = TripletFolder(triplets / "train", TRANSFORM)
    assert len(data) == 12
    triplet = data.triplet(3)
    assert triplet.id == "toy-0003"
    assert triplet.instruction == "add number 3"
    assert triplet.mask.mode == "L"
    assert triplet.object.size == (30, 38)
    assert data.records[3].image_id == "toy/0003"


def test_the_format_is_one_that_datasets_loads(triplets):
    rows = load_dataset("imagefolder", data_dir=str(triplets), split="train", cache_dir=str(triplets / ".cache"))
    assert len(rows) == 12
    kinds = ("original_image", "target_image", "object_image", "mask")
    assert all(isinstance(rows[0][kind], Image.Image) for kind in kinds)


def test_jsonl_serves_as_well(triplets):
    folder = triplets / "val"
    with (folder / "metadata.csv").open(newline="") as file:
        lines = [json.dumps(row) for row in csv.DictReader(file)]
    expected = read_metadata(folder)
    (folder / "metadata.csv").unlink()
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n\n")
    assert read_metadata(folder) == expected


def test_ids_are_strings_whatever_they_look_like(triplets):
    rewrite(triplets / "train", lambda rows: [r | {"triplet_id": f"{i:08d}"} for i, r in enumerate(rows)])
    assert read_metadata(triplets / "train")[5].id == "00000005"


@pytest.mark.parametrize("name", ["../val/target/toy-0100.png", "/etc/hostname", "target/../../../x.png", ".."])
@pytest.mark.parametrize("column", ["target_image_file_name", "mask_file_name"])
def test_paths_may_not_leave_the_root(triplets, name, column):
    def change(rows):
        rows[4][column] = name

    rewrite(triplets / "train", change)
    with pytest.raises(InputError, match=r"metadata.csv line 6: the path .* leads out of") as error:
        read_metadata(triplets / "train")
    assert name in str(error.value)


def test_links_may_not_leave_the_root(triplets, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    link = triplets / "train/target/toy-0000.png"
    link.unlink()
    link.symlink_to(tmp_path / "secret.png")
    with pytest.raises(InputError, match=r"toy-0000\.png' leads out of"):
        read_metadata(triplets / "train")


def test_a_linked_data_set_is_fine(triplets, tmp_path):
    (tmp_path / "link").symlink_to(triplets)
    assert len(read_metadata(tmp_path / "link" / "train")) == 12


def test_duplicate_ids_name_both_lines(triplets):
    rewrite(triplets / "train", lambda rows: [*rows, rows[2]])
    with pytest.raises(InputError, match=r"line 14: triplet_id 'toy-0002' is already on line 4"):
        read_metadata(triplets / "train")


@pytest.mark.parametrize("column", ["triplet_id", "original_image_file_name", "object_image_file_name"])
def test_missing_values_name_line_and_column(triplets, column):
    def change(rows):
        rows[1][column] = ""

    rewrite(triplets / "train", change)
    with pytest.raises(InputError, match=f"line 3: no value for '{column}'"):
        read_metadata(triplets / "train")


def test_other_mistakes_in_metadata(triplets, tmp_path):
    with pytest.raises(InputError, match=r"no metadata\.csv or metadata\.jsonl"):
        read_metadata(tmp_path)
    (triplets / "val/metadata.csv").write_text("triplet_id\n")
    with pytest.raises(InputError, match="no rows"):
        read_metadata(triplets / "val")
    rewrite(triplets / "train", lambda rows: [rows[0] | {"x0": "left"}])
    with pytest.raises(InputError, match="must be numbers"):
        read_metadata(triplets / "train")
    (triplets / "test/metadata.csv").unlink()
    (triplets / "test/metadata.jsonl").write_text("{not json\n")
    with pytest.raises(InputError, match=r"metadata\.jsonl: cannot be read"):
        read_metadata(triplets / "test")


def test_without_a_mask_the_box_serves_and_without_a_box_everything(triplets):
    rewrite(triplets / "train", lambda rows: [r | {"mask_file_name": ""} for r in rows])
    data = TripletFolder(triplets / "train", TRANSFORM)
    assert data.triplet(0).mask.getbbox() == data.records[0].box == (10, 12, 40, 50)
    assert set(data.triplet(0).mask.crop((10, 12, 40, 50)).tobytes()) == {255}
    rewrite(triplets / "train", lambda rows: [r | {"x0": ""} for r in rows])
    assert TripletFolder(triplets / "train", TRANSFORM).triplet(0).mask.getextrema() == (255, 255)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"no picture", "not a readable picture"), (None, "no such file")],
)
def test_a_broken_file_is_named(triplets, content, reason):
    path = triplets / "train/original/toy-0007.png"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BrokenSample, match=reason) as error:
        TripletFolder(triplets / "train", TRANSFORM).sample(7, 0)
    assert error.value.name == str(path)


def test_a_truncated_file_is_broken(triplets):
    path = triplets / "train/target/toy-0007.png"
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(BrokenSample):
        TripletFolder(triplets / "train", TRANSFORM).sample(7, 0)


def test_augmentation_depends_on_epoch_and_index_in_training_only(tmp_path):
    write_triplets(tmp_path, "train", 3)
    train = TripletFolder(tmp_path / "train", TRANSFORM, seed=1, train=True)
    assert torch.equal(train.sample(1, 4)["source"], train.sample(1, 4)["source"])
    assert not torch.equal(train.sample(1, 4)["object"], train.sample(1, 5)["object"])
    plain = TripletFolder(tmp_path / "train", TRANSFORM, seed=1)
    assert torch.equal(plain.sample(1, 4)["object"], plain.sample(1, 5)["object"])
