import multiprocessing

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_samples import write_pipe
from datasets import Dataset

from lit_insert.data.parquet_join import ArrowRows, ParquetRows, join, parquet_files, row_key, unit_hash
from lit_insert.errors import InputError

COLUMNS = ("source_img", "target_img_dataset", "img_id", "ann_id")


def open_both(root, split="train", cls=ParquetRows):
    tables = [parquet_files(root / name, split) for name in ("PIPE", "PIPE_Masks")]
    if cls is ArrowRows:
        cache = str(root / "cache")
        return [ArrowRows(Dataset.from_parquet([str(p) for p in t], cache_dir=cache)) for t in tables]
    return [ParquetRows(t) for t in tables]


@pytest.mark.parametrize("cls", [ParquetRows, ArrowRows])
def test_join_has_no_mismatch_though_img_ids_repeat_and_orders_differ(tmp_path, cls):
    shuffled = np.random.default_rng(0).permutation(40)
    keys = write_pipe(tmp_path, mask_order=shuffled)
    assert len({k[1] for k in keys}) < len(keys)
    source, masks = open_both(tmp_path, cls=cls)
    rows, partners, splits = join(source, masks)
    assert rows.tolist() == list(range(40))
    for row, partner in zip(rows.tolist(), partners.tolist(), strict=True):
        assert row_key(source.row(row)) == row_key(masks.row(partner)) == keys[row]
    for row, split in zip(rows.tolist(), splits.tolist(), strict=True):
        assert split == unit_hash(*keys[row][:2])


def test_rows_without_a_mask_are_absent(tmp_path):
    keys = write_pipe(tmp_path, mask_order=[n for n in range(40) if n % 5])
    rows, _, _ = join(*open_both(tmp_path))
    assert rows.tolist() == [n for n in range(len(keys)) if n % 5]


def test_a_key_that_comes_twice_is_named(tmp_path):
    keys = write_pipe(tmp_path, mask_order=[*range(40), 17])
    with pytest.raises(InputError, match=f"PIPE_Masks: the key {'/'.join(keys[17])} comes twice"):
        join(*open_both(tmp_path))


def test_nothing_in_common_is_an_error(tmp_path):
    write_pipe(tmp_path / "a")
    write_pipe(tmp_path / "b", per_image=4)
    source, _ = open_both(tmp_path / "a")
    _, masks = open_both(tmp_path / "b")
    table = pq.read_table(masks.files[0])
    other = table.set_column(1, "target_img_dataset", [["elsewhere"] * len(table)])
    pq.write_table(other, masks.files[0])
    with pytest.raises(InputError, match="no row of PIPE has its"):
        join(source, ParquetRows(masks.files))


def test_rows_come_by_number_over_files_and_groups(pipe):
    root, keys = pipe
    source, _ = open_both(root)
    assert len(source) == 40
    assert source.largest_group == 7
    for number in (0, 19, 20, 39, 6, 7):
        assert row_key(source.row(number)) == keys[number]
    assert source.name(20).endswith("train-00001-of-00002.parquet row 0")
    assert source.group_of(np.array([0, 6, 7, 19, 20, 39])).tolist() == [0, 0, 1, 2, 3, 5]


def test_few_groups_stay_in_memory(pipe):
    root, _ = pipe
    rows = ParquetRows(parquet_files(root / "PIPE", "train"), COLUMNS, cache_rows=10)
    for number in range(40):
        rows.row(number)
        assert sum(map(len, rows._groups.values())) < 10 + 7
    assert len(rows._open) <= 2


def read_key(rows, number):
    return row_key(rows.row(number))


def test_other_processes_open_their_own_files(pipe):
    root, keys = pipe
    source, _ = open_both(root)
    source.row(0)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap(read_key, [(source, n) for n in range(40)]) == keys


def test_files_are_chosen_by_split(tmp_path):
    write_pipe(tmp_path, 8, "train")
    write_pipe(tmp_path, 4, "test")
    assert len(ParquetRows(parquet_files(tmp_path / "PIPE", "train"))) == 8
    assert len(ParquetRows(parquet_files(tmp_path / "PIPE", "test"))) == 4
    with pytest.raises(InputError, match="no parquet file of split 'val'; there is test, train"):
        parquet_files(tmp_path / "PIPE", "val")
    with pytest.raises(InputError, match=r"no \.parquet file"):
        parquet_files(tmp_path / "nothing", "train")


def test_files_without_a_split_in_their_name_are_for_training(tmp_path):
    write_pipe(tmp_path, 8, "part", files=1)
    assert len(parquet_files(tmp_path / "PIPE", "train")) == 1


@pytest.mark.parametrize("content", [b"", b"not parquet at all"])
def test_a_broken_file_is_named(tmp_path, content):
    (tmp_path / "train.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"train\.parquet: not a readable parquet file"):
        ParquetRows(parquet_files(tmp_path, "train"))


def test_a_missing_column_is_named(pipe):
    root, _ = pipe
    with pytest.raises(InputError, match="no column 'mask'; it has Instruction_Class"):
        ParquetRows(parquet_files(root / "PIPE", "train"), ("mask",))
    with pytest.raises(InputError, match="no column 'mask'"):
        ArrowRows(Dataset.from_dict({"a": [1]}), ("mask",))


def test_optional_columns_are_read_where_they_are(pipe):
    root, _ = pipe
    rows = ParquetRows(parquet_files(root / "PIPE", "train"), ("img_id",), ("ann_id", "nowhere"))
    assert list(rows.row(0)) == ["img_id", "ann_id"]


def test_unit_hash_is_uniform_and_keeps_parts_apart():
    values = [unit_hash("COCO", str(n)) for n in range(4000)]
    assert abs(np.mean(values) - 0.5) < 0.02
    assert abs(np.mean(np.array(values) < 0.1) - 0.1) < 0.015
    assert unit_hash("a", "bc") != unit_hash("ab", "c")
