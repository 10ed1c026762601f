"""Every test leaves environment, signal handlers and warning filters as it found them, and none uses the network."""

import os
import signal
import sys
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "training"))  # toy.py, for tests of other folders too

_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def _leave_no_trace():
    environment = dict(os.environ)
    handlers = {s: signal.getsignal(s) for s in _HANDLED}
    yield
    for s, handler in handlers.items():
        signal.signal(s, handler)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Datasets beside the checkout; tests that need them skip where they are absent."""
    path = Path(os.environ.get("LIT_INSERT_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no datasets at {path}")
    return path
