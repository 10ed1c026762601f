"""Whether our easy consistency tuning is that of its authors: loss and gradient of both from the same random numbers.

``--peer`` is a checkout of locuslab/ect. One network, one batch and one set of draws for both, at every stage of the
schedule; what differs is the boundary, at sigma_min here and at 0 there.

``python benchmarks/consistency_agreement.py --peer ~/ect --json``
"""

import argparse
import json
from pathlib import Path

import torch
from consistency_peers import load_peer, objective_of
from consistency_quality import pictures
from consistency_throughput import NOISE, pair_loss
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lit_insert.consistency.network import build_unet
from lit_insert.consistency.pairs import PairSchedule
from lit_insert.errors import InputError


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="checkout of locuslab/ect")
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--n", type=int, default=64, help="pictures in the batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    try:
        run(args)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error


def run(args: argparse.Namespace) -> None:
    """Compare stage by stage and print.

    Raises:
        InputError: If the peer is not of this objective.
    """
    if objective_of(args.peer) != "ect":
        raise InputError(f"--peer {args.peer}: give a checkout of locuslab/ect")
    torch.manual_seed(args.seed)
    unet = build_unet(32, 16, [1, 2, 4], 1, [], 16, norm_groups=8)
    with torch.no_grad():  # new weights put out zeros
        for parameter in unet.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    args.data, args.content = "scenes", "scene"
    images = pictures(args, "train", 32)
    peer = load_peer(args.peer, unet, steps=args.stages, s1=1280, stages=args.stages)
    schedule = PairSchedule(total_steps=args.stages, stages=args.stages).filled("ect")
    rows = []
    for stage in range(args.stages):
        torch.manual_seed(args.seed + stage)
        theirs = peer.loss(peer.net, images, stage)
        their_gradient = gradient(theirs, unet)
        torch.manual_seed(args.seed + stage)  # their order: levels, then noise
        normal, noise = torch.randn(args.n, 1, 1, 1).flatten(), torch.randn_like(images)
        pairs = schedule.draw("ect", stage, torch.zeros_like(normal), normal, NOISE)
        ours = pair_loss(unet, images, noise, pairs, "ect")
        our_gradient = gradient(ours, unet)
        rows.append({
            "stage": stage + 1,
            "loss": ours.item(),
            "peer_loss": theirs.item(),
            "cosine": torch.nn.functional.cosine_similarity(our_gradient, their_gradient, dim=0).item(),
            "norm_ratio": (our_gradient.norm() / their_gradient.norm()).item(),
        })  # fmt: skip
    table = Table(*rows[0], title="ECT, same weights, pictures and draws")
    for row in rows:
        table.add_row(*(f"{value:.4g}" for value in row.values()))
    Console().print(table)
    if args.json:
        print(json.dumps({"benchmark": "consistency_agreement", "rows": rows}))


def gradient(loss: Tensor, net: nn.Module) -> Tensor:
    """All gradients in one vector."""
    found = torch.autograd.grad(loss, list(net.parameters()))
    return torch.cat([part.flatten() for part in found])


if __name__ == "__main__":
    main()
