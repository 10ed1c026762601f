import json
import sys

import pytest
from scripts import load


@pytest.fixture(scope="module")
def bench():
    return load("import_time")


def test_only_what_is_used_is_imported(bench):
    for name in bench.QUIET:
        assert bench.heavy_imports(bench.RUNS[name]) == [], name


def test_heavy_imports_are_seen(bench):
    assert bench.heavy_imports(["-c", "sys.modules['torch'] = sys"]) == ["torch"]


def test_a_command_that_fails_is_no_fast_one(bench):
    with pytest.raises(RuntimeError, match="no_such_module"):
        bench.seconds(["-c", "import no_such_module"])


def test_json_line(bench, monkeypatch, capsys):
    monkeypatch.setattr(bench, "RUNS", {name: ["-c", "pass"] for name in bench.RUNS})
    monkeypatch.setattr(sys, "argv", ["import_time.py", "--repeats", "1", "--json"])
    bench.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["seconds"].keys() == bench.RUNS.keys()
    assert all(value > 0 for value in result["seconds"].values())
    assert result["met"].keys() == {"import lit_insert", "infer.py --help", "train.py --help"}
