import os
from pathlib import Path

import pytest
from data_samples import write_pipe, write_triplets

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture
def pipe(tmp_path):
    return tmp_path, write_pipe(tmp_path)


@pytest.fixture
def triplets(tmp_path):
    write_triplets(tmp_path / "set", "train", 12)
    write_triplets(tmp_path / "set", "val", 4, first=100)
    write_triplets(tmp_path / "set", "test", 3, first=200)
    return tmp_path / "set"


@pytest.fixture(scope="session")
def people():
    root = Path(os.environ.get("LIT_INSERT_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data")) / "people"
    if not root.is_dir():
        pytest.skip("the shared photos are not here")
    return root
