"""Real runs, really killed: what comes out in the end is what would have come out anyway."""

import json
import random
import signal
import socket
import sys

import pytest
import torch
from process import TOY, final, finish, kill, same, start, wait_for_step

STEPS = 45
RUN = (
    "fit",
    *TOY,
    f"--trainer.max_steps={STEPS}",
    "--trainer.log_every_n_steps=1",
    "--trainer.val_check_interval=4",
    "--checkpoint.every_n_steps=1",
    "--ema.decay=0.95",
    "--data.length=40",
    "--model.pause=0.03",
    "--model.optimizer=AdamW",
    "--model.lr_scheduler=OneCycleLR",
    "--model.lr_scheduler.max_lr=0.05",
    f"--model.lr_scheduler.total_steps={STEPS + 1}",
)
DDP = ("--trainer.devices=2", "--trainer.strategy=ddp")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The final state of runs that nobody killed, made once for each set of options."""
    made = {}

    def run(*options):
        if options not in made:
            out = tmp_path_factory.mktemp("undisturbed")
            finish(start(*RUN, *options, f"--out={out}"))
            made[options] = (out, final(out))
        return made[options]

    return run


def killed_and_resumed(out, options, kills):
    """Kill a run once it has passed each of the steps, resume it each time, and let it end."""
    process = start(*RUN, *options, f"--out={out}")
    for step in kills:
        wait_for_step(process, out, step)
        kill(process)
        process.wait()
        last = torch.load(out / "checkpoints/last.ckpt", weights_only=True)["global_step"]
        assert step <= last < STEPS, "the kill came too late to show anything"
        process = start("fit", f"--out={out}", "--resume", "--trust_config=toy")
    return finish(process)


@pytest.mark.parametrize("workers", [0, 2])
def test_sigkill_at_three_random_steps(undisturbed, tmp_path, workers):
    kills = sorted(random.Random(workers).sample([s for s in range(3, 36) if s % 10], 3))
    _, expected = undisturbed()  # the number of workers makes no difference either
    out = tmp_path / "run"
    killed_and_resumed(out, (f"--data.num_workers={workers}",), kills)
    found = final(out)
    assert found["global_step"] == STEPS
    assert same(expected, found)
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    logged = [row["step"] for row in steps if "train/loss" in row]
    assert logged == sorted(set(logged)), "a step is logged twice"
    parts = json.loads((out / "run.json").read_text())["parts"]
    assert [p["status"] for p in parts] == ["running"] * 3 + ["finished"]
    assert not list((out / "checkpoints").glob(".*")), "half-written files are left"


def test_sigkill_of_two_ranks(undisturbed, tmp_path):
    _, expected = undisturbed(*DDP)
    out = tmp_path / "run"
    killed_and_resumed(out, DDP, [8])
    assert same(expected, final(out))


def test_two_nodes_by_torchrun(undisturbed, tmp_path):
    """A real rendezvous over loopback; two nodes of one process are two processes of one node."""
    _, expected = undisturbed(*DDP)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = tmp_path / "run"
    nodes = [
        start(
            *RUN,
            "--trainer.devices=1",
            "--trainer.num_nodes=2",
            "--trainer.strategy=ddp",
            f"--out={out}",
            command=(
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"),
                *(f"--node_rank={rank}", "--rdzv_id=lit", "--rdzv_backend=c10d"),
                *(f"--rdzv_endpoint=127.0.0.1:{port}", "--local_addr=127.0.0.1"),
            ),
        )
        for rank in range(2)
    ]
    for node in nodes:
        finish(node)
    assert same(expected, final(out))
    assert json.loads((out / "run.json").read_text())["world_size"] == 2


def test_two_ranks_learn_what_one_process_learns(tmp_path):
    """Same global batch, no noise: the same loss at every step, and other noise on every rank."""
    plain = [a for a in RUN if "max_steps" not in a and "pause" not in a] + [
        "--trainer.max_steps=8",
        "--model.noise=0",
        "--model.dropout=0",
        "--model.norm=false",
    ]
    two, one, trace = tmp_path / "two", tmp_path / "one", tmp_path / "trace"
    finish(start(*plain, *DDP, "--data.batch_size=4", f"--out={two}", f"--model.trace={trace}"))
    finish(start(*plain, "--data.batch_size=8", f"--out={one}"))

    def losses(out):
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return torch.tensor([r["train/loss"] for r in rows if "train/loss" in r])

    assert len(losses(one)) == 8
    torch.testing.assert_close(losses(two), losses(one), rtol=1e-6, atol=1e-6)
    draws = [set((tmp_path / f"trace.{rank}").read_text().split()) for rank in range(2)]
    assert len(draws[0]) > 8
    assert not draws[0] & draws[1]


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_a_run_with_a_checkpoint(undisturbed, tmp_path, signum, status):
    """Sent to the loader's workers too, as SLURM and a terminal do."""
    out = tmp_path / "run"
    run = [a.replace("every_n_steps=1", "every_n_steps=1000") if "checkpoint" in a else a for a in RUN]
    process = start(*run, "--data.num_workers=2", f"--out={out}")
    wait_for_step(process, out, 6)
    kill(process, signum)
    output = finish(process, status)
    assert "Traceback" not in output
    assert json.loads((out / "run.json").read_text())["status"] == "interrupted"
    assert torch.load(out / "checkpoints/last.ckpt", weights_only=True)["global_step"] >= 7
    if signum == signal.SIGTERM:
        finish(start("fit", f"--out={out}", "--resume", "--trust_config=toy"))
        assert same(undisturbed()[1], final(out))


def test_sigterm_ends_both_ranks(tmp_path):
    out = tmp_path / "run"
    process = start(*RUN, *DDP, "--trainer.precision=bf16-mixed", f"--out={out}")
    wait_for_step(process, out, 4)
    process.terminate()
    output = finish(process, 143)
    assert "Traceback" not in output
    state = torch.load(out / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(v.dtype == torch.float32 for v in state.values() if v.is_floating_point())
