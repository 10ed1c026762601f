import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "data_streaming.py"


def test_tables_have_every_key_once_and_masks_in_another_order(tmp_path):
    from lit_insert.data.parquet_join import ParquetRows, join, parquet_files

    write = runpy.run_path(str(SCRIPT))["write_tables"]
    write(tmp_path, 300, 32, 40)
    source, masks = (ParquetRows(parquet_files(tmp_path / n, "train")) for n in ("PIPE", "PIPE_Masks"))
    assert len(source.files) != len(masks.files)
    rows, partners, _ = join(source, masks)
    assert len(rows) == 300
    assert (rows != partners).mean() > 0.8


@pytest.mark.slow
def test_small_stream(tmp_path):
    import subprocess

    command = [
        sys.executable, str(SCRIPT), "--rows", "1200", "--row_group", "50", "--window", "100", "--plain_rows", "200",
        "--compare_batches", "5", "--json",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["rows_missing"] == figures["rows_twice"] == 0
    assert figures["resume_exact"]
    assert figures["resume_batches_compared"] == 10
    assert figures["rows_per_s_plain_datasets"] > 0
