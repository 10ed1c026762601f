"""Speed next to segmentation-models-pytorch's FPN with the same timm encoder, picture size and batch.

Training is forward, binary cross-entropy at full size, backward and a fused AdamW step; inference is one forward pass
without gradients. Both networks run in one process and take turns, ``--repeats`` rounds of ``--steps`` each; ratios are
taken within a round, and their median is given with the smallest and the largest. The decoders differ, and are meant
to: the peer's stops at a quarter of the size and enlarges its logits, ours goes on to full size.

``pip install segmentation-models-pytorch && python benchmarks/mask_throughput.py --json``
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from lit_insert.mask_decoder.network import HieraFPN


class Ours(nn.Module):
    """Our network, returning mask logits alone."""

    def __init__(self, network: HieraFPN) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits (B,1,H,W)."""
        return self.network(pixel_values).logits


def peer_network(encoder: str, size: int, kwargs: dict[str, Any]) -> nn.Module:
    """Their FPN with the same encoder, nothing downloaded.

    Raises:
        ImportError: If segmentation-models-pytorch is not installed.
    """
    import segmentation_models_pytorch as smp

    fixed = {} if encoder.startswith(("hieradet", "sam2")) else {"img_size": size}
    return smp.FPN(f"tu-{encoder}", encoder_weights=None, in_channels=3, classes=1, **fixed, **kwargs)


def training_step(model: nn.Module, picture: Tensor, mask: Tensor) -> Callable[[], None]:
    """A function that makes one optimiser step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        loss = F.binary_cross_entropy_with_logits(model(picture), mask)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def inference_step(model: nn.Module, picture: Tensor) -> Callable[[], None]:
    """A function that makes one forward pass."""

    def step() -> None:
        with torch.no_grad():
            model(picture)

    return step


def measure(
    steps: dict[str, Callable[[], None]], count: int, repeats: int, cuda: bool, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of a step, one figure a round; the order turns round every time."""

    def run(step: Callable[[], None], times: int) -> float:
        if cuda:
            torch.cuda.synchronize()
        began = clock()
        for _ in range(times):
            step()
        if cuda:
            torch.cuda.synchronize()
        return (clock() - began) / times

    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        run(step, 2)
    for repeat in range(repeats):
        for name in list(steps)[:: 1 if repeat % 2 == 0 else -1]:
            seconds[name].append(run(steps[name], count))
    return seconds


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--encoder", default="hiera_tiny_224", help="timm's name")
    parser.add_argument("--encoder_kwargs", type=json.loads, default={}, help="JSON, for other sizes of encoder")
    parser.add_argument("--size", type=int, default=256, help="side of the pictures")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--decoder_channels", type=int, default=128, help="of ours")
    parser.add_argument("--steps", type=int, default=3, help="of each network in a round")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: seconds of processor, on a machine that is shared",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()

    torch.manual_seed(0)
    try:
        peer = peer_network(args.encoder, args.size, args.encoder_kwargs)
    except ImportError:
        print("skipped: the peer is not installed; pip install segmentation-models-pytorch", file=sys.stderr)
        if args.json:
            print(json.dumps({"benchmark": "mask_throughput", "skipped": "segmentation-models-pytorch is missing"}))
        return
    network = HieraFPN(
        encoder=args.encoder,
        encoder_kwargs=args.encoder_kwargs,
        img_size=args.size,
        decoder_channels=args.decoder_channels,
    )
    models = {"ours": Ours(network).to(args.device), "peer": peer.to(args.device)}
    picture = torch.rand(args.batch_size, 3, args.size, args.size, device=args.device)
    mask = (torch.rand(args.batch_size, 1, args.size, args.size, device=args.device) > 0.7).float()
    cuda = torch.device(args.device).type == "cuda"
    if cuda and args.clock == "cpu":
        parser.error("--clock cpu: would not count the accelerator's time")
    timing = (args.steps, args.repeats, cuda, time.process_time if args.clock == "cpu" else time.perf_counter)
    training = {name: training_step(model.train(), picture, mask) for name, model in models.items()}
    seconds = {"training": measure(training, *timing)}
    inference = {name: inference_step(model.eval(), picture) for name, model in models.items()}
    seconds["inference"] = measure(inference, *timing)
    result: dict[str, Any] = {}
    table = Table(title=f"{args.encoder}, {args.size} px, batch {args.batch_size}: pictures a second")
    for heading in ("", "ours", "peer", "ours/peer: median (smallest-largest)"):
        table.add_column(heading)
    for what, rounds in seconds.items():
        speed = {name: args.batch_size / median(values) for name, values in rounds.items()}
        ratios = [theirs / own for own, theirs in zip(rounds["ours"], rounds["peer"], strict=True)]
        ratio = {"median": round(median(ratios), 3), "min": round(min(ratios), 3), "max": round(max(ratios), 3)}
        result[what] = {
            "pictures_per_second": {k: round(v, 2) for k, v in speed.items()},
            "ratio": ratio,
            "seconds_of_rounds": {k: [round(v, 4) for v in values] for k, values in rounds.items()},
        }
        shown = f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})"
        table.add_row(what, f"{speed['ours']:.1f}", f"{speed['peer']:.1f}", shown)
    Console(width=110).print(table)
    weights = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    print(f"weights: ours {weights['ours'] / 1e6:.2f} million, peer {weights['peer'] / 1e6:.2f} million")
    if args.json:
        device = torch.cuda.get_device_name() if cuda else "cpu"
        record = {"benchmark": "mask_throughput", "settings": vars(args), "device": device}
        print(json.dumps({**record, "threads": torch.get_num_threads(), "weights": weights, **result}))


if __name__ == "__main__":
    main()
