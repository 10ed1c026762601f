import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_samples import jpeg
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from lit_insert.data.image_parquet import ParquetImages
from lit_insert.data.loading import BrokenSample
from lit_insert.errors import InputError


def cells(count):
    return [jpeg(Image.new("RGB", (8, 8), (20 * n, 0, 0))) for n in range(count)]


def opened(path, tmp_path, **options):
    source = ParquetImages(str(path), cache_dir=str(tmp_path / "cache"), **options)
    source.prepare()
    source.open()
    return source


@pytest.fixture
def table(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for split, count in (("train", 10), ("test", 4)):
        rows = {"image": [{"bytes": c, "path": None} for c in cells(count)], "label": [n % 3 for n in range(count)]}
        features = Features({"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog", "owl"])})
        Dataset.from_dict(rows, features=features).to_parquet(str(folder / f"{split}.parquet"))
    return folder


def test_rows_with_their_classes(table, tmp_path):
    source = opened(table, tmp_path, label="label")
    assert len(source) == 10
    assert source.classes == ["cat", "dog", "owl"]
    assert [source.label(i) for i in range(5)] == [0, 1, 2, 0, 1]
    assert source.name(3) == "train-3"
    assert np.asarray(source.picture(9))[..., 0].mean() == pytest.approx(180, abs=3)
    test = opened(table, tmp_path, split="test")
    assert (len(test), test.classes) == (4, [])


def test_a_part_of_the_rows(table, tmp_path):
    source = opened(table, tmp_path, label="label", start=7)
    assert [source.name(i) for i in range(len(source))] == ["train-7", "train-8", "train-9"]
    assert source.label(0) == 1
    with pytest.raises(InputError, match="rows 0 to 11 asked for, there are 10"):
        opened(table, tmp_path, stop=11)


def test_one_file_with_plain_bytes_and_class_names(tmp_path):
    path = tmp_path / "some.parquet"
    pq.write_table(pa.table({"img": [*cells(2), b"no picture"], "kind": ["b", "a", "b"]}), path)
    source = opened(path, tmp_path, image="img", label="kind")
    assert source.classes == ["a", "b"]
    assert [source.label(i) for i in range(3)] == [1, 0, 1]
    assert source.picture(1).size == (8, 8)
    with pytest.raises(BrokenSample, match="row 2"):
        source.picture(2)
    with pytest.raises(InputError, match="no column 'image'"):
        opened(path, tmp_path)


def test_labels_must_be_numbers_or_names(tmp_path):
    path = tmp_path / "some.parquet"
    pq.write_table(pa.table({"image": cells(2), "label": [0.5, 1.0]}), path)
    with pytest.raises(InputError, match="whole numbers from 0, or names"):
        opened(path, tmp_path, label="label")


def test_reads_cifar10(shared_data, tmp_path):
    if not (shared_data / "cifar10").is_dir():
        pytest.skip("CIFAR-10 is not here")
    source = opened(shared_data / "cifar10", tmp_path, split="test", label="label")
    assert len(source) == 10_000
    assert len(source.classes) == 10
    assert source.picture(123).size == (32, 32)
