"""What training costs at Stable Diffusion 1.5's size: parameters, work of a step, and on a GPU its speed.

Without a device the networks are on PyTorch's meta device, which has shapes and no numbers: parameter counts and
floating-point operations are exact, and take no memory. With ``--device cuda`` a base of random weights is written,
loaded and trained for some steps, in bf16 autocast as the configurations train. A scaled-down ``--size`` is measured
on a CPU too, which tries the script and says nothing about speed.

``python benchmarks/full_size.py --json``
``python benchmarks/full_size.py --device cuda --pixels 256 512 --batch_size 32 --json``
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bases import SIZES, Size, networks, write_base
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lit_insert.diffusion.unet import add_lora, select_parameters
from lit_insert.embedding_optimizer.ip_adapter import cross_attention_layers
from lit_insert.embedding_optimizer.module import EmbeddingOptimizerModule
from lit_insert.embedding_optimizer.network import EmbeddingOptimizer
from lit_insert.embedding_optimizer.parts import UnetTuning
from lit_insert.errors import InputError

BLOCKS = [*(f"down_blocks.{i}" for i in range(4)), "mid_block", *(f"up_blocks.{i}" for i in range(4))]
LOWEST = ["down_blocks.2", "mid_block", "up_blocks.1"]
RECIPES: dict[str, tuple[dict[str, Any], UnetTuning]] = {
    "adapter": ({}, UnetTuning("none")),
    "attn2": ({}, UnetTuning("attn2", LOWEST)),
    "attn2.kv": ({}, UnetTuning("attn2.kv", LOWEST)),
    "lora": ({}, UnetTuning("lora", LOWEST, rank=16)),
    "ip": ({"mode": "ip"}, UnetTuning("none")),
    "legacy": ({"mode": "legacy"}, UnetTuning("none")),
    "all": ({}, UnetTuning("all")),
}
PEAKS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "4090": 165.2}  # dense bf16 TFLOP/s


def meta(size: Size) -> dict[str, Any]:
    """The parts of a model, without storage."""
    with torch.device("meta"):
        return networks(size, channels=8)


def counts(unet: nn.Module) -> list[dict[str, Any]]:
    """Cross-attention by block: tensors and parameters, or why there is none."""
    rows = []
    for block in [*BLOCKS, "down_blocks.4"]:
        try:
            names = select_parameters(unet, [block], "attn2")
        except InputError as error:
            rows.append({"block": block, "refused": str(error)})
            continue
        size = sum(unet.get_parameter(name).numel() for name in names)
        rows.append({"block": block, "tensors": len(names), "parameters": size})
    return rows


def recipe(name: str, parts: dict[str, Any]) -> tuple[EmbeddingOptimizer, list[nn.Parameter]]:
    """An adapter for the UNet, and all that trains; only that requires a gradient."""
    given, tuning = RECIPES[name]
    unet, vision = parts["unet"].requires_grad_(False), parts["image_encoder"].config
    options = {"input_dim": vision.hidden_size, "output_dim": unet.config["cross_attention_dim"], **given}
    if given.get("mode") == "ip":
        options["input_dim"] = vision.projection_dim
        options["layer_dims"] = [layer.to_k.out_features for layer in cross_attention_layers(unet)]
    with torch.device("meta"):
        adapter = EmbeddingOptimizer(**options)
        adapter.attach(unet)
        if tuning.target == "lora":
            chosen = add_lora(unet, tuning.blocks, tuning.rank, tuning.alpha)
        else:
            chosen = [] if tuning.target == "none" else select_parameters(unet, tuning.blocks, tuning.target)
    if given.get("mode") == "legacy":
        adapter.legacy.queries = adapter.legacy.queries.to("meta")
    tuned = [unet.get_parameter(name) for name in chosen]
    for p in tuned:
        p.requires_grad_(True)
    return adapter, [*adapter.parameters(), *tuned]


def step_flops(name: str, size: Size, pixels: int) -> dict[str, float]:
    """Floating-point operations of one sample's step, multiply and add counted as two: encoders, and the rest."""
    parts = meta(size)
    adapter, _ = recipe(name, parts)
    picture = torch.empty(1, 3, pixels, pixels, device="meta")
    thing = torch.empty(1, 3, size.object_pixels, size.object_pixels, device="meta")
    with FlopCounterMode(display=False) as encoders, torch.no_grad():
        target = parts["vae"].encode(picture).latent_dist.parameters.chunk(2, 1)[0]
        scene = parts["vae"].encode(picture).latent_dist.mode()
        tokens = adapter.encode_image(parts["image_encoder"], thing)
    with FlopCounterMode(display=False) as training:
        states = adapter(tokens)
        noisy = torch.cat([target, scene], 1)
        timesteps = torch.empty(1, dtype=torch.int64, device="meta")
        parts["unet"](noisy, timesteps, states).sample.square().mean().backward()
    return {"encoders": float(encoders.get_total_flops()), "training": float(training.get_total_flops())}


def batches(count: int, pixels: int, object_pixels: int, device: str) -> Iterator[dict[str, Any]]:
    """Endless batches of noise pictures."""
    generator = torch.Generator(device).manual_seed(0)
    while True:
        draw = {"generator": generator, "device": device}
        source, target = torch.rand(2, count, 3, pixels, pixels, **draw) * 2 - 1
        thing = torch.randn(count, 3, object_pixels, object_pixels, **draw)
        yield {"source": source, "target": target, "object": thing, "id": [str(i) for i in range(count)]}


def speed(module: EmbeddingOptimizerModule, pixels: int, args: argparse.Namespace, *, cache: bool) -> dict[str, float]:
    """Samples per second and peak memory of whole steps: encode, forward, backward, clip, AdamW."""
    device, cuda = args.device, args.device == "cuda"
    wait = torch.cuda.synchronize if cuda else lambda: None
    groups = module.parameter_groups()
    optimizer = torch.optim.AdamW(groups, lr=1e-5, fused=True)
    trained = [p for group in groups for p in group["params"]]
    source = batches(args.batch_size, pixels, SIZES[args.size].object_pixels, device)
    generator = torch.Generator(device).manual_seed(0)
    batch = next(source)
    if cache:
        with torch.autocast(device, torch.bfloat16):
            batch = {**module.encode_features(batch), "id": batch["id"]}
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    began = 0.0
    for step in range(args.warmup + args.steps):
        if step == args.warmup:
            wait()
            began = time.perf_counter()
        with torch.autocast(device, torch.bfloat16):
            loss = module.compute_loss(batch, generator)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    wait()
    seconds = (time.perf_counter() - began) / args.steps
    result = {"samples_per_s": args.batch_size / seconds, "seconds_per_step": seconds}
    return {**result, "peak_gib": torch.cuda.max_memory_allocated() / 2**30} if cuda else result


def on_device(args: argparse.Namespace, flops: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Speed of one recipe at each resolution, with and without the feature cache."""
    adapter, tuning = RECIPES[args.recipe]
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    peak = args.peak_tflops or next((v for key, v in PEAKS.items() if key in name), None)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        base = write_base(Path(folder) / "base", SIZES[args.size], channels=8)
        module = EmbeddingOptimizerModule(
            base=str(base), adapter=adapter, unet=tuning, gradient_checkpointing=args.gradient_checkpointing
        )
    module = module.to(args.device).train()
    for pixels in args.pixels:
        for cache in (False, True):
            row: dict[str, Any] = {
                "pixels": pixels,
                "cache": cache,
                "device": name,
                **speed(module, pixels, args, cache=cache),
            }
            work = flops[str(pixels)]["training"] + (0 if cache else flops[str(pixels)]["encoders"])
            row["tflops"] = work * row["samples_per_s"] / 1e12
            row["mfu"] = row["tflops"] / peak if peak else None
            rows.append(row)
    return rows


def main() -> None:
    """Count, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="cpu counts only")
    parser.add_argument("--size", default="full", choices=["full", "half", "quarter", "eighth"], help="of all widths")
    parser.add_argument("--recipe", default="attn2", choices=list(RECIPES), help="what trains")
    parser.add_argument("--pixels", type=int, nargs="+", default=[256, 512], help="sides of the scenes")
    parser.add_argument("--batch_size", type=int, default=16, help="samples a step")
    parser.add_argument("--steps", type=int, default=20, help="steps measured")
    parser.add_argument("--warmup", type=int, default=5, help="steps before")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="trade time for memory")
    parser.add_argument("--peak_tflops", type=float, help="the device's dense bf16 peak, for utilisation")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU here")
    console, size = Console(), SIZES[args.size]

    rows = counts(meta(size)["unet"])
    table = Table("block", "tensors", "attn2 parameters", title="Cross-attention")
    for row in rows:
        table.add_row(
            row["block"], str(row.get("tensors", "-")), row.get("refused") or f"{row['parameters'] / 1e6:.2f} M"
        )
    console.print(table)
    trains = {}
    for name in RECIPES:
        adapter, params = recipe(name, meta(size))
        trains[name] = {"adapter": sum(p.numel() for p in adapter.parameters()), "all": sum(p.numel() for p in params)}
    table = Table("recipe", "adapter", "all that trains", title="Trainable parameters")
    for name, sizes in trains.items():
        table.add_row(name, f"{sizes['adapter'] / 1e6:.2f} M", f"{sizes['all'] / 1e6:.2f} M")
    console.print(table)
    flops = {str(pixels): step_flops(args.recipe, size, pixels) for pixels in args.pixels}
    table = Table("pixels", "encoders", "adapter and UNet", title=f"TFLOP a sample and step ({args.recipe})")
    for pixels, work in flops.items():
        table.add_row(pixels, *(f"{work[part] / 1e12:.2f}" for part in ("encoders", "training")))
    console.print(table)
    result: dict[str, Any] = {"blocks": rows, "trains": trains, "recipe": args.recipe, "flops": flops}
    if args.device == "cuda" or args.size != "full":
        result["speed"] = on_device(args, flops)
        title = f"{result['speed'][0]['device']}, {args.recipe}, batch {args.batch_size}"
        table = Table("pixels", "cache", "samples/s", "peak GiB", "TFLOP/s", "MFU", title=title)
        for row in result["speed"]:
            mfu = f"{row['mfu']:.1%}" if row["mfu"] else "-"
            peak = f"{row['peak_gib']:.1f}" if "peak_gib" in row else "-"
            cells = (f"{row['samples_per_s']:.1f}", peak, f"{row['tflops']:.3g}", mfu)
            table.add_row(str(row["pixels"]), "yes" if row["cache"] else "no", *cells)
        console.print(table)
    else:
        console.print("Samples/s, peak memory and utilisation need an accelerator: --device cuda.")
    if args.json:
        print(json.dumps({**result, "settings": vars(args)}))


if __name__ == "__main__":
    main()
