"""Who learns more from the same photos: our network, a peer's, ours with a frozen random encoder, ours pre-trained?

All arms see the same pictures with the same augmentation in the same order, for the same number of steps, with the
same optimiser, schedule, loss and average of weights; the network, the loss and the augmentation are those of a YAML
file. Each is judged on the photos set aside (`split_of`: by a hash of their names), at their own size.

  ours      the YAML's network, from scratch
  smp       segmentation-models-pytorch's FPN around the same timm encoder, from scratch (pip install it first)
  frozen    ours, its encoder random and never trained: what the project this begins from did
  ours_mae  ours, its encoder from --mae_weights (an export of MaskedAutoencoderModule, trained on these pictures)

``python benchmarks/people_masks.py --folder data/people --steps 3000 --arms ours,smp,frozen --json --report out.html``
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from mask_throughput import peer_network
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lit_insert import MaskPipeline
from lit_insert.data.mask_folder import MaskFolder
from lit_insert.data.mask_source import collate_masks
from lit_insert.data.paired import Augmentation, PairedTransform
from lit_insert.data.people import MaskDataset
from lit_insert.mask_decoder.evaluate import MaskEvaluation, evaluate_masks, nothing, picture_rows, unlike_border
from lit_insert.mask_decoder.network import HieraFPN, MaskDecoderOutput
from lit_insert.mask_decoder.objective import LossWeights, mask_loss
from lit_insert.report import Report
from lit_insert.training.parameters import named_groups
from lit_insert.training.schedules import WarmupCosine

CONFIG = Path(__file__).parents[1] / "configs/mask_decoder/people_pocket.yaml"
ARMS = ("ours", "smp", "frozen", "ours_mae")
COLUMNS = ("iou", "image_iou", "dice", "boundary_f", "presence_accuracy")
SHOWN = 8


class Peer(nn.Module):
    """The peer's network behind the surface of ours; presence is its largest mask logit."""

    def __init__(self, network: nn.Module, like: HieraFPN) -> None:
        super().__init__()
        self.network = network
        self.img_size, self._normalize = like.img_size, like.normalize
        self.dtype = torch.float32

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.parameters()).device

    def normalize(self, image: Tensor) -> Tensor:
        """Pixel values from pictures in [-1,1]."""
        return self._normalize(image)

    def forward(self, pixel_values: Tensor) -> MaskDecoderOutput:
        """Logits of masks and presence."""
        logits = self.network(pixel_values)
        return MaskDecoderOutput(logits=logits, presence_logits=logits.flatten(1).amax(1))


def build(arm: str, config: Mapping[str, Any], args: argparse.Namespace) -> nn.Module:
    """An arm's network; the same seed for all."""
    torch.manual_seed(args.seed)
    ours = HieraFPN(**config)
    if arm == "smp":
        torch.manual_seed(args.seed)
        encoder = args.smp_encoder or config["encoder"]
        same = encoder == config["encoder"]
        kwargs = {k: tuple(v) if isinstance(v, list) else v for k, v in (config.get("encoder_kwargs") or {}).items()}
        return Peer(peer_network(encoder, args.size, kwargs if same else {}), ours)
    if arm == "ours_mae":
        ours.load_encoder(args.mae_weights)
    if arm == "frozen":
        ours.backbone.requires_grad_(False)
    return ours


def batches(dataset: MaskDataset, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Shuffled, augmented batches without end; a function of the seed only."""
    generator = torch.Generator().manual_seed(args.seed)
    epoch, left = 0, []
    while True:
        while len(left) < args.batch_size:
            left += [(int(i), epoch) for i in torch.randperm(len(dataset), generator=generator)]
            epoch += 1
        yield collate_masks([dataset.sample(*key) for key in left[: args.batch_size]])
        left = left[args.batch_size :]


def train(
    arm: str, config: Mapping[str, Any], loss: LossWeights, dataset: MaskDataset, held_out: MaskFolder, args: Any
) -> tuple[MaskPipeline, dict[str, list[tuple[int, float]]], MaskEvaluation, float]:
    """Train one arm; its averaged network, curves, last evaluation, and the seconds of its training."""
    network = build(arm, config, args).to(args.device)
    optimizer = torch.optim.AdamW(
        named_groups(network), lr=args.lr, betas=(0.9, 0.99), weight_decay=args.weight_decay, fused=True
    )
    schedule = WarmupCosine(optimizer, total_steps=args.steps, warmup_steps=min(200, max(1, args.steps // 20)))

    def average(kept: Tensor, new: Tensor, count: int) -> Tensor:
        return kept.lerp(new, 1 - min(args.ema, (1 + int(count)) / (10 + int(count))))

    averaged = AveragedModel(network, avg_fn=average, use_buffers=False)
    curves: dict[str, list[tuple[int, float]]] = {"loss": [], "iou": []}
    running, seconds, found = 0.0, 0.0, None
    stream = batches(dataset, args)
    columns = (*Progress.get_default_columns(), TimeElapsedColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(arm, total=args.steps, note="")
        for step in range(1, args.steps + 1):
            batch = next(stream)
            began = time.perf_counter()
            network.train()
            if arm == "frozen":
                network.backbone.eval()
            with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.bf16):
                output = network(network.normalize(batch["image"].to(args.device)))
            value = mask_loss(output.logits, output.presence_logits, batch["mask"].to(args.device), loss)["loss"]
            value.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            averaged.update_parameters(network)
            seconds += time.perf_counter() - began
            running = float(value.detach()) if step == 1 else 0.98 * running + 0.02 * float(value.detach())
            if step % args.eval_every == 0 or step == args.steps:
                found = evaluate_masks(MaskPipeline(averaged.module), held_out)
                curves["loss"].append((step, running))
                curves["iou"].append((step, found.scores["iou"]))
            bar.update(
                task, completed=step, note=f"loss {running:.3f}" + (f" iou {found.scores['iou']:.3f}" if found else "")
            )
    return MaskPipeline(averaged.module), curves, found, seconds


def write_report(path: Path, title: str, held_out: MaskFolder, results: dict[str, Any], rows: list[list[Any]]) -> None:
    """An HTML page: scores, curves, and the best and worst masks of the first arm."""
    report = Report("People masks", title)
    report.heading("Scores").table(["", *COLUMNS, "million weights", "seconds of training"], rows)
    report.heading("Validation IoU").curve({k: r["curves"]["iou"] for k, r in results.items()}, "step", "IoU")
    report.heading("Training loss").curve({k: r["curves"]["loss"] for k, r in results.items()}, "step", "loss")
    for arm, result in results.items():
        found, pipeline = result["evaluation"], result["pipeline"]
        for name, numbers in (("best", found.best(SHOWN)), ("worst", found.worst(SHOWN))):
            pictures = picture_rows(pipeline, held_out, found, numbers)
            header = ["IoU", "photo", "true mask", "found", "false alarms red, misses blue"]
            report.heading(f"{arm}: the {len(pictures)} {name}").images(pictures, header=header, cell_px=176)
    report.save(path)


def options() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", required=True, help="photos and masks, as MaskFolder reads them")
    parser.add_argument("--val_count", type=int, default=40, help="photos set aside")
    parser.add_argument("--steps", type=int, default=3000, help="of each arm")
    parser.add_argument("--arms", default="ours,smp,frozen", help=f"some of {','.join(ARMS)}")
    parser.add_argument(
        "--config", type=Path, default=CONFIG, help="YAML whose network, loss and augmentation are used"
    )
    parser.add_argument("--size", type=int, help="side in pixels; by default the YAML's")
    parser.add_argument("--batch_size", type=int, help="by default the YAML's")
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--weight_decay", type=float, default=0.1)
    parser.add_argument("--ema", type=float, default=0.998, help="decay of the averaged weights, which are judged")
    parser.add_argument("--smp_encoder", help="another timm encoder for the peer, at its own size")
    parser.add_argument("--mae_weights", help="pre-trained encoder for ours_mae: an exported folder")
    parser.add_argument("--eval_every", type=int, default=250, help="steps between points of the curve")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="train all arms in mixed precision")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--save", type=Path, help="folder to export our arms to")
    parser.add_argument("--report", type=Path, help="also write an HTML page with curves, the 8 best and the 8 worst")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    args.arms = args.arms.split(",")
    if unknown := [arm for arm in args.arms if arm not in ARMS]:
        parser.error(f"--arms: {unknown[0]!r} is none of {', '.join(ARMS)}")
    if "ours_mae" in args.arms and not args.mae_weights:
        parser.error("--arms ours_mae: give --mae_weights, a folder that mae_pocket.yaml's run exported")
    return args


def main() -> None:
    """Run the benchmark."""
    args = options()
    written = yaml.safe_load(args.config.read_text(encoding="utf-8"))
    model, data = written["model"]["init_args"], written["data"]["init_args"]
    args.size, args.batch_size = args.size or data["image_size"], args.batch_size or data["batch_size"]
    config = model["network"] | {"img_size": args.size}
    loss = LossWeights(**model.get("loss", {}))
    how = {k: tuple(v) if isinstance(v, list) else v for k, v in (data.get("augmentation") or {}).items()}
    photos = MaskFolder(args.folder, "train", val_count=args.val_count)
    held_out = MaskFolder(args.folder, "val", val_count=args.val_count)
    transform = PairedTransform((args.size, args.size), Augmentation(**how))
    dataset = MaskDataset(photos, transform, args.seed, train=True, cache_mb=2048)

    results: dict[str, Any] = {}
    for arm in args.arms:
        try:
            pipeline, curves, found, seconds = train(arm, config, loss, dataset, held_out, args)
        except ImportError:
            print("smp is left out: pip install segmentation-models-pytorch", file=sys.stderr)
            continue
        results[arm] = {"pipeline": pipeline, "curves": curves, "evaluation": found, "seconds": seconds}
        if args.save and arm != "smp":
            pipeline.network.register_to_config(encoder_origin=f"people_masks {arm}")
            pipeline.save_pretrained(args.save / arm)
        print(f"{arm}: " + ", ".join(f"{c} {found.scores[c]:.4f}" for c in COLUMNS), file=sys.stderr)
    rows: list[list[Any]] = [
        [
            arm,
            *(result["evaluation"].scores[c] for c in COLUMNS),
            sum(p.numel() for p in result["pipeline"].network.parameters()) / 1e6,
            round(result["seconds"], 1),
        ]
        for arm, result in results.items()
    ]
    controls = {"control: empty": nothing, "control: unlike the border": unlike_border}
    judged = {name: evaluate_masks(control, held_out).scores for name, control in controls.items()}
    rows += [[name, *(scores[c] for c in COLUMNS), None, None] for name, scores in judged.items()]
    title = f"{len(photos)} photos of {args.folder} to learn from, {len(held_out)} set aside; {args.steps} steps"
    table = Table(title=title)
    for name in ("", *COLUMNS, "weights, M", "seconds"):
        table.add_column(name)
    for row in rows:
        table.add_row(*("" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for v in row))
    Console(width=130).print(table)
    if args.report:
        write_report(args.report, title, held_out, results, rows)
    if args.json:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        arms = {
            arm: {
                "scores": result["evaluation"].scores,
                "curves": result["curves"],
                "image_iou": {held_out.files[i][0]: round(v, 4) for i, v in result["evaluation"].image_iou.items()},
                "seconds": round(result["seconds"], 1),
            }
            for arm, result in results.items()
        }
        record = {"benchmark": "people_masks", "settings": settings, "train": len(photos), "val": len(held_out)}
        print(json.dumps({**record, "arms": arms, "controls": judged}))


if __name__ == "__main__":
    main()
