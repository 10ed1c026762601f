"""Improved consistency training next to Kinyugo/consistency_models: speed, and what comes out of the same budget.

Both train the same network from the same weights on the same batches with the same optimiser, learning rate, number of
levels and average, in one process, taking turns step by step, so that whatever else the machine does hits both. The
peer's objective, schedule and preconditioning are its own, called as its notebook does; its network is handed
250 ln(sigma) as ours is. A step is objective, backward, optimiser and average, without reading; its time is the median.

Quality is the distance of samples to held-out pictures (on our feature network; comparable only within a table), made
by the same sampler from the same noise with each side's averaged weights and own preconditioning.

``python benchmarks/consistency_throughput.py --peer ~/consistency_models --data data/cifar10 --steps 2000 --json``
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
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from lit_insert.consistency.distances import pseudo_huber
from lit_insert.consistency.edm import Denoiser, expand
from lit_insert.consistency.karras import NoiseRange, noise_condition
from lit_insert.consistency.network import build_unet, consistency_function
from lit_insert.consistency.objective import consistency_loss, shared_noise_point
from lit_insert.consistency.pairs import PairSchedule
from lit_insert.consistency.sampling import multistep
from lit_insert.data.messi import MessiDataModule, ParquetImages, SceneImages
from lit_insert.metrics.distribution import GenerationQuality

NOISE = NoiseRange()
SIGMAS = {"1": [80.0], "2": [80.0, 0.821]}
Loss = Callable[[nn.Module, Tensor, int], Tensor]


class Timed(nn.Module):
    """The network as the peer calls it: with a noise level instead of c_noise."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """F(x, 250 ln sigma)."""
        return self.unet(x, noise_condition(sigma)).sample


class Arm:
    """One side: its network, average, optimiser, loss and the times of its steps."""

    def __init__(self, net: nn.Module, loss: Loss, function: Callable[[nn.Module], Denoiser], args: Any) -> None:
        self.net, self.loss, self.function = net, loss, function
        self.average = copy.deepcopy(net).eval().requires_grad_(False)
        self.optimizer = torch.optim.RAdam(net.parameters(), lr=args.lr)
        self.decay, self.bf16, self.seconds = args.ema, args.bf16, list[float]()

    def step(self, images: Tensor, number: int) -> None:
        """Train on one batch and note how long it took."""
        started = _now(images.device)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            loss = self.loss(self.net, images, number)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            decay = min(self.decay, (1 + number) / (10 + number))
            torch._foreach_lerp_(list(self.average.parameters()), list(self.net.parameters()), 1 - decay)
        self.seconds.append(_now(images.device) - started)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def our_loss(schedule: PairSchedule) -> Loss:
    """The objective as `ConsistencyModule` computes it."""

    def loss(net: nn.Module, images: Tensor, step: int) -> Tensor:
        noise = torch.randn_like(images)
        uniform = torch.rand(len(images), device=images.device)
        pairs = schedule.draw("ict", step, uniform, uniform, NOISE)
        f = consistency_function(net, NOISE)
        distances = consistency_loss(
            f,
            f,
            x_high=images + expand(pairs.sigma, images) * noise,
            sigma=pairs.sigma,
            x_low=shared_noise_point(images, noise, pairs.lower),
            lower=pairs.lower,
            distance=pseudo_huber,
        )
        return (pairs.weight * distances).mean()

    return loss


def arms(args: argparse.Namespace, device: torch.device) -> dict[str, Arm]:
    """Both sides, from the same weights; ours alone without a peer."""
    torch.manual_seed(args.seed)
    unet = build_unet(
        args.image_size, args.channels, args.channel_mult, args.blocks, [], args.channels, norm_groups=8
    ).to(device)
    original = copy.deepcopy(unet)
    if args.compile:
        unet.compile()
    schedule = PairSchedule(total_steps=args.steps, s0=10, s1=args.s1).filled("ict")
    sides = {"ours": Arm(unet, our_loss(schedule), lambda net: consistency_function(net, NOISE), args)}
    if args.peer is None:
        return sides
    sys.path.insert(0, str(args.peer))
    from consistency_models.consistency_models import (
        ImprovedConsistencyTraining,
        model_forward_wrapper,
        pseudo_huber_loss,
    )

    training = ImprovedConsistencyTraining(final_timesteps=args.s1)

    def loss(net: nn.Module, images: Tensor, step: int) -> Tensor:
        out = training(net, images, step, args.steps)
        return (pseudo_huber_loss(out.predicted, out.target) * out.loss_weights).mean()

    def function(net: nn.Module) -> Denoiser:
        return lambda x, sigma, label: model_forward_wrapper(net, x, sigma)

    sides["peer"] = Arm(Timed(original), loss, function, args)
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
        metric = GenerationQuality().to(real.device)
        f, generator = arm.function(arm.average), torch.Generator().manual_seed(seed)
        for part in real.split(100):
            noise = torch.randn(part.shape, generator=generator).to(part)
            metric.update(part, real=True)
            metric.update(multistep(f, noise, sigmas, generator=generator), real=False)
        values = metric.compute()
        found |= {f"fid_{steps}": float(values["fid"]), f"swd_{steps}": float(values["swd"])}
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peer", type=Path, help="checkout of Kinyugo/consistency_models; without it, ours alone")
    parser.add_argument("--data", default="scenes", help="scenes, or a folder of parquet files such as CIFAR-10's")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=5, help="steps left out of the times")
    parser.add_argument("--every", type=int, help="steps between two looks at the quality; at the end only by default")
    parser.add_argument("--n", type=int, default=0, help="pictures to judge the quality by; 0 for speed alone")
    parser.add_argument("--s1", type=int, default=1280, help="last number of intervals")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--channel_mult", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--blocks", type=int, default=1, help="residual blocks a level")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--compile", action="store_true", help="torch.compile ours, as `compile: true` does")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16, both")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    run(parser.parse_args())


def sources(args: argparse.Namespace) -> MessiDataModule:
    """Training and held-out pictures."""
    held_out = max(args.n, 1)
    if args.data == "scenes":
        train: Any = SceneImages("train", count=max(args.steps * args.batch_size, 1))
        test: Any = SceneImages("test", count=held_out)
    else:
        train, test = (ParquetImages(args.data, split) for split in ("train", "test"))
    return MessiDataModule(
        train, test=test, image_size=args.image_size, batch_size=args.batch_size, drop_last=True, seed=args.seed
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train, measure and print; returns what is printed."""
    device, data = torch.device(args.device), sources(args)
    data.setup("fit")
    data.setup("test")
    sides, batches = arms(args, device), endless(data, device)
    held_out = islice(data.test_dataloader(), -(-args.n // args.batch_size) or 1)
    real = torch.cat([b["image"] for b in held_out])[: args.n].to(device)
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
    times = {name: median(arm.seconds[min(args.warmup, args.steps - 1) :]) for name, arm in sides.items()}
    result: dict[str, Any] = {
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "parameters": sum(p.numel() for p in sides["ours"].net.parameters()),
        "steps_per_second": {name: 1 / seconds for name, seconds in times.items()},
        "images": args.steps * args.batch_size,
        "quality": looks,
    }
    if "peer" in times:
        pairs = zip(sides["peer"].seconds, sides["ours"].seconds, strict=True)
        result["ratio"] = median([p / o for p, o in list(pairs)[min(args.warmup, args.steps - 1) :]])
    show(result, sides)
    if args.json:
        print(json.dumps(result))
    return result


def show(result: dict[str, Any], sides: dict[str, Arm]) -> None:
    """A table of speed and of the last quality."""
    last = result["quality"][-1] if result["quality"] else {}
    table = Table("", "steps/s", "FID 1 step", "FID 2 steps", title="improved consistency training")
    for name in sides:
        found = [f"{last[name][k]:.3f}" for k in ("fid_1", "fid_2")] if last else ["", ""]
        table.add_row(name, f"{result['steps_per_second'][name]:.2f}", *found)
    Console().print(table)
    if "ratio" in result:
        print(f"ours over peer, median of pairs of steps: {result['ratio']:.2f}")


if __name__ == "__main__":
    main()
