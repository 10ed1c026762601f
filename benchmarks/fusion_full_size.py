"""What putting an object into a scene costs at the published size: time of each stage, time a step, largest memory.

Random weights, since only their number matters: DINOv2-base and a ViT-XL decoder (AutoencoderRAE at 512 pixels,
features of 768 x 32 x 32) and DiT^DH-XL, 839 M parameters. They are written to a folder and read back when their stage
needs them, as a user's would be. The object comes with its mask, so no segmenter runs.

``python benchmarks/fusion_full_size.py --dtype bfloat16 --json``
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderRAE
from PIL import Image
from rich.console import Console
from rich.table import Table

from lit_insert.fusion.network import DiTDH
from lit_insert.fusion.objects import FusionObject
from lit_insert.fusion.pipeline import FusionPipeline

AUTOENCODER: dict[str, dict[str, Any]] = {
    "full": {"encoder_hidden_size": 768, "encoder_num_hidden_layers": 12, "decoder_hidden_size": 1152,
             "decoder_num_hidden_layers": 28, "decoder_num_attention_heads": 16, "decoder_intermediate_size": 4096},
    "eighth": {"encoder_hidden_size": 96, "encoder_num_hidden_layers": 2, "decoder_hidden_size": 144,
               "decoder_num_hidden_layers": 3, "decoder_num_attention_heads": 4, "decoder_intermediate_size": 512},
}  # fmt: skip
TRANSFORMER: dict[str, dict[str, Any]] = {
    "full": {},
    "eighth": {"encoder_width": 144, "encoder_layers": 4, "encoder_heads": 4, "head_width": 256, "head_layers": 2,
               "head_heads": 4},
}  # fmt: skip


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="full", choices=list(TRANSFORMER), help="of the models")
    parser.add_argument("--pixels", type=int, default=512, help="side of the autoencoder's pictures")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="of the weights")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--steps", type=int, default=10, help="from pure noise; a strength of 0.3 takes 0.3 times that")
    parser.add_argument("--folder", type=Path, help="where the weights go meanwhile; by default a temporary folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    home = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        report(args, measure(args, home, write_models(args, home)))
    finally:
        shutil.rmtree(home)


def write_models(args: argparse.Namespace, home: Path) -> dict[str, float]:
    """Write both models with random weights; returns their parameters in millions."""
    dtype = getattr(torch, args.dtype)
    channels = AUTOENCODER[args.size]["encoder_hidden_size"]
    column = {"latents_mean": [[[0.0]]] * channels, "latents_std": [[[1.0]]] * channels}
    grid = args.pixels // 16
    counts = {}
    for name, make in (
        ("autoencoder", lambda: AutoencoderRAE(
            encoder_type="dinov2", encoder_patch_size=14, encoder_input_size=grid * 14, image_size=args.pixels,
            patch_size=16, **column, **AUTOENCODER[args.size])),
        ("transformer", lambda: DiTDH(in_channels=channels, sample_size=grid, **TRANSFORMER[args.size])),
    ):  # fmt: skip
        model = make().to(dtype)
        counts[f"{name}_millions"] = sum(p.numel() for p in model.parameters()) / 1e6
        model.save_pretrained(home / name)
        del model
    return counts


def measure(args: argparse.Namespace, home: Path, figures: dict[str, float]) -> dict[str, Any]:
    """Both stages once, on a scene and an object of noise."""
    draw = np.random.default_rng(0)
    scene, thing = (Image.fromarray(draw.integers(0, 255, (args.pixels, args.pixels, 3), np.uint8)) for _ in range(2))
    found = FusionObject(thing, mask=Image.new("L", thing.size, 255), target_area="bottom_left", base_scale=0.5)
    pipe = FusionPipeline(
        str(home / "autoencoder"), str(home / "transformer"), segmenter="given", dtype=getattr(torch, args.dtype)
    ).to(args.device)
    started = time.perf_counter()
    artifact = pipe.place(scene, [found])
    figures["stage_1_s"] = time.perf_counter() - started
    # Twice with different numbers of steps: the difference is the steps, the rest is loading, encoding and decoding.
    spent = {}
    for strength in (0.3, 0.6):
        started = time.perf_counter()
        output = pipe.refine([artifact], base_images=[scene], strengths=[strength], num_inference_steps=args.steps)[0]
        spent[output.reports[0].steps] = time.perf_counter() - started
    (few, short), (many, long) = sorted(spent.items())
    figures |= {"stage_2_s": short, "stage_2_steps": few, "s_per_step": (long - short) / (many - few)}
    assert output.images[0].size == scene.size
    return {**figures, "memory": output.memory}


def report(args: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Print a table, and one line of JSON if asked for."""
    table = Table(title=f"{args.size}, {args.pixels} px, {args.dtype}", show_header=False)
    for name, value in figures.items():
        if isinstance(value, dict):
            for stage, own in value.items():
                table.add_row(f"memory, {stage}", ", ".join(f"{k} {v:.0f}" for k, v in own.items()))
        else:
            table.add_row(name, f"{value:.4g}")
    Console().print(table)
    if args.json:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        print(json.dumps({"benchmark": "fusion_full_size", "settings": settings, **figures}))


if __name__ == "__main__":
    main()
