"""Running train.py as users do: a process of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
TOY = ("--trust_config=toy", "--model=toy.ToyModule", "--data=toy.ToyData", "--trainer.accelerator=cpu")


def environment() -> dict[str, str]:
    """The environment of a single-threaded process that can import the toy."""
    paths = f"{ROOT / 'tests/training'}{os.pathsep}{ROOT}"
    dropped = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {k: v for k, v in os.environ.items() if k not in dropped}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}


def start(*args: str, command: tuple[str, ...] = (), **options: Any) -> subprocess.Popen[str]:
    """Start train.py, at the head of a process group of its own."""
    return subprocess.Popen(
        [*(command or (sys.executable,)), str(ROOT / "train.py"), *args],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )


def finish(process: subprocess.Popen[str], status: int = 0, timeout: float = 240) -> str:
    """Wait for a process and return what it printed; fails on another exit status."""
    try:
        output = process.communicate(timeout=timeout)[0]
    finally:
        kill(process)
    assert process.returncode == status, f"status {process.returncode}:\n{output}"
    return output


def kill(process: subprocess.Popen[str], signum: int = signal.SIGKILL) -> None:
    """Kill the process and all that it started."""
    try:
        os.killpg(process.pid, signum)
    except ProcessLookupError:
        return


def wait_for_step(process: subprocess.Popen[str], out: Path, step: int, timeout: float = 120) -> None:
    """Return as soon as the run has logged a step."""
    metrics = out / "metrics.jsonl"
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        text = metrics.read_text() if metrics.exists() else ""
        if any(f'"step": {s},' in text for s in range(step, step + 30)):
            return
        assert process.poll() is None, f"ended before step {step}:\n{process.communicate()[0]}"
        time.sleep(0.005)
    raise AssertionError(f"step {step} not reached in {timeout} s")


def final(out: Path) -> dict[str, Any]:
    """What must be the same bits at the end of a run: weights, optimiser, scheduler, average."""
    checkpoint = torch.load(out / "checkpoints/last.ckpt", weights_only=True)
    keys = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
    return {k: checkpoint[k] for k in keys} | {"ema": checkpoint["callbacks"]["EMA"]}


def same(a: Any, b: Any) -> bool:
    """Equality of nested states, tensors bit by bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
