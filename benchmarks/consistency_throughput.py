"""Consistency training next to other people's: speed, and what comes out of the same budget.

``--peer`` is a checkout of Kinyugo/consistency_models (improved consistency training) or of locuslab/ect (easy
consistency tuning). Both sides train one network from the same weights on the same batches with the same optimiser,
learning rate, length of schedule and average, in one process, taking turns step by step, so that whatever else the
machine does hits both. The peer's objective, schedule and preconditioning are its own; its network is handed
250 ln(sigma) as ours is. A step is objective, backward, optimiser and average, without reading; its time is the median.

Quality is the distance of samples to held-out pictures (on our feature network; comparable only within a table), made
by the same sampler from the same noise with each side's averaged weights and own preconditioning.

``python benchmarks/consistency_throughput.py --peer ~/consistency_models --data data/cifar10 --minutes 30 --n 1000
--every 500 --save curve.json --json``
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from consistency_peers import Loss, load_peer, objective_of
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from lit_insert.artifacts.atomic import atomic_file
from lit_insert.consistency.distances import pseudo_huber
from lit_insert.consistency.edm import Denoiser, expand
from lit_insert.consistency.karras import NoiseRange
from lit_insert.consistency.network import build_unet, consistency_function
from lit_insert.consistency.objective import consistency_loss, shared_noise_point
from lit_insert.consistency.pairs import Pairs, PairSchedule
from lit_insert.consistency.sampling import multistep
from lit_insert.data.messi import MessiDataModule, ParquetImages, SceneImages
from lit_insert.errors import InputError
from lit_insert.metrics.distribution import GenerationQuality

NOISE = NoiseRange()
SIGMAS = {"1": [80.0], "2": [80.0, 0.821]}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
TITLES = {"ict": "improved consistency training", "ect": "easy consistency tuning"}


class Arm:
    """One side: its network, average, optimiser, loss and the times of its steps."""

    def __init__(
        self, net: nn.Module, loss: Loss, function: Callable[[nn.Module], Denoiser], args: Any, bf16: bool
    ) -> None:
        self.net, self.loss, self.function = net, loss, function
        self.average = copy.deepcopy(net).eval().requires_grad_(False)
        self.optimizer = torch.optim.RAdam(net.parameters(), lr=args.lr)
        self.decay, self.bf16, self.seconds, self.clock = args.ema, bf16, list[float](), CLOCKS[args.clock]

    def step(self, images: Tensor, number: int) -> None:
        """Train on one batch and note how long it took."""
        started = self.now(images.device)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            loss = self.loss(self.net, images, number)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            decay = min(self.decay, (1 + number) / (10 + number))
            torch._foreach_lerp_(list(self.average.parameters()), list(self.net.parameters()), 1 - decay)
        self.seconds.append(self.now(images.device) - started)

    def now(self, device: torch.device) -> float:
        """Seconds on the chosen clock, with nothing left to do on the device."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return self.clock()


def our_loss(objective: str, schedule: PairSchedule, fewest_rows: int) -> Loss:
    """The objective as `ConsistencyModule` computes it."""

    def loss(net: nn.Module, images: Tensor, step: int) -> Tensor:
        noise = torch.randn_like(images)
        uniform, normal = (draw(len(images), device=images.device) for draw in (torch.rand, torch.randn))
        pairs = schedule.draw(objective, step, uniform, normal, NOISE)
        return pair_loss(net, images, noise, pairs, objective, fewest_rows)

    return loss


def pair_loss(
    net: nn.Module, images: Tensor, noise: Tensor, pairs: Pairs, objective: str, fewest_rows: int = 1
) -> Tensor:
    """The same from given random numbers."""
    f = consistency_function(net, NOISE)
    distances = consistency_loss(
        f,
        f,
        x_high=images + expand(pairs.sigma, images) * noise,
        sigma=pairs.sigma,
        x_low=shared_noise_point(images, noise, pairs.lower),
        lower=pairs.lower,
        distance={"ict": pseudo_huber, "ect": lambda a, b: pseudo_huber(a, b, 0.0)}[objective],
        clean=images if objective == "ect" else None,
        floor=NOISE.sigma_min,
        fewest_rows=fewest_rows,
    )
    return (pairs.weight * distances).mean()


def arms(args: argparse.Namespace, device: torch.device) -> dict[str, Arm]:
    """Both sides, from the same weights; ours alone without a peer."""
    torch.manual_seed(args.seed)
    unet = build_unet(
        args.image_size, args.channels, args.channel_mult, args.blocks, [], args.channels, norm_groups=8
    ).to(device)
    original = copy.deepcopy(unet)
    if args.compile:
        unet.compile()
    given = {"ict": {"s0": 10, "s1": args.s1}, "ect": {"stages": args.stages}}[args.objective]
    schedule = PairSchedule(total_steps=args.steps, **given).filled(args.objective)
    loss = our_loss(args.objective, schedule, 2 if args.compile else 1)
    sides = {"ours": Arm(unet, loss, lambda net: consistency_function(net, NOISE), args, args.bf16 is not None)}
    if args.peer is not None:
        peer = load_peer(args.peer, original, steps=args.steps, s1=args.s1, stages=args.stages)
        sides["peer"] = Arm(peer.net.to(device), peer.loss, peer.function, args, args.bf16 == "both")
    return sides


def endless(data: MessiDataModule, device: torch.device) -> Iterator[Tensor]:
    """Training pictures without end."""
    loader = data.train_dataloader()
    while True:
        for batch in loader:
            yield batch["image"].to(device)


@torch.no_grad()
def quality(arm: Arm, real: Tensor, seed: int) -> dict[str, float]:
    """FID on own features and sliced Wasserstein distance in 1 and 2 steps."""
    found = {}
    for steps, sigmas in SIGMAS.items():
        f, generator = arm.function(arm.average), torch.Generator().manual_seed(seed)
        made = []
        for part in real.split(100):
            noise = torch.randn(part.shape, generator=generator).to(part)
            made.append(multistep(f, noise, sigmas, generator=generator))
        found |= {f"{name}_{steps}": value for name, value in distances(real, torch.cat(made)).items()}
    return found


def distances(real: Tensor, made: Tensor) -> dict[str, float]:
    """FID on own features and sliced Wasserstein distance."""
    metric = GenerationQuality().to(real.device)
    metric.update(real, real=True)
    metric.update(made, real=False)
    values = metric.compute()
    return {name: float(values[name]) for name in ("fid", "swd")}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peer", type=Path, help="checkout of the other code; without it, ours alone")
    parser.add_argument("--objective", choices=TITLES, help="the peer's by default, else ict")
    parser.add_argument("--data", default="scenes", help="scenes, or a folder of parquet files such as CIFAR-10's")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--minutes", type=float, help="instead of --steps: as many as take a side about so long")
    parser.add_argument("--warmup", type=int, default=5, help="steps left out of the times")
    parser.add_argument("--every", type=int, help="steps between two looks at the quality; at the end only by default")
    parser.add_argument("--n", type=int, default=0, help="pictures to judge the quality by; 0 for speed alone")
    parser.add_argument("--save", type=Path, help="write what is known so far to this JSON file at every look")
    parser.add_argument("--s1", type=int, default=1280, help="ict: last number of intervals")
    parser.add_argument("--stages", type=int, default=8, help="ect: number of stages")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--channel_mult", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--blocks", type=int, default=1, help="residual blocks a level")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--compile", action="store_true", help="torch.compile ours, as `compile: true` does")
    parser.add_argument(
        "--bf16", nargs="?", const="both", choices=["both", "ours"], help="autocast to bfloat16, both or ours alone"
    )
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help="cpu: processor time, where others compute too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    try:
        run(args)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error


def sources(args: argparse.Namespace) -> MessiDataModule:
    """Training and held-out pictures."""
    held_out = max(args.n, 1)
    if args.data == "scenes":
        train: Any = SceneImages("train", count=max(args.steps * args.batch_size, 2 * held_out))
        test: Any = SceneImages("test", count=held_out)
    else:
        train, test = (ParquetImages(args.data, split) for split in ("train", "test"))
    return MessiDataModule(
        train, test=test, image_size=args.image_size, batch_size=args.batch_size, drop_last=True, seed=args.seed
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train, measure and print; returns what is printed."""
    args.objective = args.objective or (objective_of(args.peer) if args.peer else "ict")
    device, data = torch.device(args.device), sources(args)
    data.setup("fit")
    data.setup("test")
    if args.minutes:
        args.steps = steps_for(args, device, next(endless(data, device)))
    sides, batches = arms(args, device), endless(data, device)
    held_out = islice(data.test_dataloader(), -(-args.n // args.batch_size) or 1)
    real = torch.cat([b["image"] for b in held_out])[: args.n].to(device)
    controls = {}
    if args.n:
        trained_on = torch.cat([next(batches) for _ in range(-(-args.n // args.batch_size))])[: args.n]
        noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(args.seed)).to(real)
        controls = {"floor": distances(real, trained_on), "noise": distances(real, noise.clamp(-1, 1))}
    looks: list[dict[str, Any]] = []
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("steps", total=args.steps)
        for number in range(args.steps):
            images = next(batches)
            order = list(sides) if number % 2 else list(reversed(sides))
            for name in order:
                sides[name].step(images, number)
            progress.advance(task)
            done = number + 1
            if args.n and (done == args.steps or (args.every and done % args.every == 0)):
                looks.append({"step": done, **{name: quality(arm, real, args.seed) for name, arm in sides.items()}})
                print(json.dumps(looks[-1]), file=sys.stderr, flush=True)
                save(args, summary(args, sides, controls, looks))
    result = summary(args, sides, controls, looks)
    save(args, result)
    show(result)
    if args.json:
        print(json.dumps(result))
    return result


def steps_for(args: argparse.Namespace, device: torch.device, images: Tensor) -> int:
    """Steps that take the slower side about ``--minutes``, from a few steps on throw-away copies."""
    trial = arms(args, device)
    for arm in trial.values():
        for number in range(5):
            arm.step(images, number)
    return max(1, round(60 * args.minutes / max(median(arm.seconds[1:]) for arm in trial.values())))


def summary(
    args: argparse.Namespace, sides: dict[str, Arm], controls: dict[str, Any], looks: list[dict[str, Any]]
) -> dict[str, Any]:
    """What is known so far."""
    done = len(sides["ours"].seconds)
    first = min(args.warmup, done - 1)
    result: dict[str, Any] = {
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "parameters": sum(p.numel() for p in sides["ours"].net.parameters()),
        "steps": done,
        "images": done * args.batch_size,
        "steps_per_second": {name: 1 / median(arm.seconds[first:]) for name, arm in sides.items()},
        "minutes": {name: sum(arm.seconds) / 60 for name, arm in sides.items()},
        "controls": controls,
        "quality": looks,
    }
    if "peer" in sides:
        pairs = zip(sides["peer"].seconds[first:], sides["ours"].seconds[first:], strict=True)
        result["ratio"] = median(p / o for p, o in pairs)
        result["ratio_of_totals"] = result["minutes"]["peer"] / result["minutes"]["ours"]
    return result


def save(args: argparse.Namespace, result: dict[str, Any]) -> None:
    """Write the file of ``--save``."""
    if args.save:
        with atomic_file(args.save) as temporary:
            temporary.write_text(json.dumps(result), encoding="utf-8")


def show(result: dict[str, Any]) -> None:
    """Tables of speed and of quality over training."""
    table = Table("", "steps/s", "minutes", title=TITLES[result["settings"]["objective"]])
    for name, speed in result["steps_per_second"].items():
        table.add_row(name, f"{speed:.2f}", f"{result['minutes'][name]:.1f}")
    Console().print(table)
    if "ratio" in result:
        print(
            f"ours over peer, steps/s: {result['ratio']:.2f} (median of pairs), {result['ratio_of_totals']:.2f} in all"
        )
    if result["quality"]:
        names = [f"{side} {n}" for side in result["steps_per_second"] for n in SIGMAS]
        table = Table("FID after", *names, title=f"{result['settings']['n']} held-out pictures, 1 and 2 evaluations")
        for look in result["quality"]:
            table.add_row(str(look["step"]), *(f"{look[c.split()[0]]['fid_' + c.split()[1]]:.3f}" for c in names))
        Console().print(table)
        print("floor and noise:", {name: round(row["fid"], 4) for name, row in result["controls"].items()})


if __name__ == "__main__":
    main()
