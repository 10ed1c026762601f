"""Time of one insertion, next to diffusers' own InstructPix2Pix pipeline on the same parts.

Both get the same scenes as PIL pictures, the same starting noise, steps, size, guidance and networks, and give PIL
pictures; the largest difference between their pictures is shown. diffusers' pipeline cannot read a reference picture,
so it is given the tokens that CLIP and the adapter make of it: made beforehand ("given tokens"), or made in the timed
call, which is what ours does. Ours also puts the photo's own pixels back where nothing was inserted, which is its
default and costs a second decoding; both ways are timed. One round runs every row once, in turn, after a round that
does not count; ratios are taken within a round, and their median is given with the smallest and the largest.

``python benchmarks/pipeline_latency.py --json``
"""

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from bases import SIZES, networks, quiet_loading
from diffusers import StableDiffusionInstructPix2PixPipeline
from PIL import Image
from rich.console import Console
from rich.table import Table

from lit_insert import EmbeddingOptimizer, InsertPipeline
from lit_insert.data.scenes import SceneDataset
from lit_insert.embedding_optimizer.evaluate import references
from lit_insert.images import to_pil

GIVEN, MADE = "diffusers, given tokens", "diffusers, tokens made in the call"
OURS, KEPT = "InsertPipeline, decoder's picture", "InsertPipeline, background kept (default)"


def random_pipeline(name: str) -> InsertPipeline:
    """An insertion pipeline of random weights, of a size in `bases.SIZES`."""
    size = SIZES[name]
    parts = networks(size, channels=8)
    adapter = EmbeddingOptimizer(
        input_dim=size.vision["hidden_size"],
        output_dim=size.unet["cross_attention_dim"],
        num_tokens=size.tokens,
        heads=4,
    )
    return InsertPipeline(**parts, embedding_optimizer=adapter.eval())


def pairs(count: int, side: int) -> tuple[list[Image.Image], list[Image.Image]]:
    """Scenes and references, square pictures of ``side`` pixels."""
    dataset = SceneDataset("test", count, size=min(side, 128), object_size=min(side, 128))
    batch = dataset.batch(range(count))
    scenes = [to_pil(image).resize((side, side), Image.Resampling.BICUBIC) for image in batch["source"]]
    return scenes, references(dataset, batch)


def rows(ours: InsertPipeline, args: argparse.Namespace) -> dict[str, Callable[[], list[Image.Image]]]:
    """What is timed, by name; every call makes ``args.batch`` pictures."""
    theirs = StableDiffusionInstructPix2PixPipeline(
        vae=ours.vae,
        unet=ours.unet,
        scheduler=ours.scheduler,
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for pipeline in (ours, theirs):
        pipeline.to(args.device)
        pipeline.set_progress_bar_config(disable=True)
    scenes, objects = pairs(args.batch, ours.processing_resolution)
    settings: dict[str, Any] = {
        "num_inference_steps": args.steps,
        "guidance_scale": args.guidance_scale,
        "image_guidance_scale": args.image_guidance_scale,
    }

    def noise() -> list[torch.Generator]:
        return [torch.Generator(args.device).manual_seed(i) for i in range(args.batch)]

    @torch.no_grad()
    def tokens() -> torch.Tensor:
        pixels = ours.feature_extractor(objects, return_tensors="pt").pixel_values.to(args.device, ours.dtype)
        return ours.embedding_optimizer(ours.embedding_optimizer.encode_image(ours.image_encoder, pixels))

    def diffusers(states: torch.Tensor) -> list[Image.Image]:
        null = ours.embedding_optimizer.null(args.batch).detach()
        return theirs(
            image=scenes, prompt_embeds=states, negative_prompt_embeds=null, generator=noise(), **settings
        ).images

    def insert(keep: bool) -> list[Image.Image]:
        return ours(image=scenes, object_image=objects, generator=noise(), preserve_background=keep, **settings).images

    made = tokens()
    return {
        GIVEN: lambda: diffusers(made),
        MADE: lambda: diffusers(tokens()),
        OURS: lambda: insert(False),
        KEPT: lambda: insert(True),
    }


def timed(call: Callable[[], Any], device: str) -> float:
    """Seconds that a call takes, the accelerator's queue included."""
    began = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", help="pocket, run, checkpoint or exported folder; by default random weights")
    parser.add_argument("--size", default="quarter", choices=list(SIZES), help="of the random weights")
    parser.add_argument("--steps", type=int, default=20, help="num_inference_steps")
    parser.add_argument("--guidance_scale", type=float, default=7.0)
    parser.add_argument("--image_guidance_scale", type=float, default=1.5, help="at 1, ours skips a third of the work")
    parser.add_argument("--batch", type=int, default=1, help="pairs in one call")
    parser.add_argument("--repeats", type=int, default=9, help="rounds")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()

    quiet_loading()
    ours = InsertPipeline.from_pretrained(args.model) if args.model else random_pipeline(args.size)
    calls = rows(ours, args)
    pictures = {name: np.stack([np.asarray(p, np.int16) for p in call()]) for name, call in calls.items()}
    difference = int(np.abs(pictures[OURS] - pictures[MADE]).max())
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(args.repeats):
        for name, call in calls.items():
            times[name].append(timed(call, args.device))

    ratios: dict[str, dict[str, dict[str, float]]] = {}
    for base in (GIVEN, MADE):
        for name in (OURS, KEPT):
            of_rounds = [a / b for a, b in zip(times[name], times[base], strict=True)]
            summary = {"median": median(of_rounds), "min": min(of_rounds), "max": max(of_rounds)}
            ratios.setdefault(name, {})[base] = {k: round(v, 4) for k, v in summary.items()}

    side = ours.processing_resolution
    table = Table(title=f"{args.model or args.size}: {args.batch} x {side} px, {args.steps} steps")
    for heading in ("", "ms", "x given tokens", "x tokens made in the call"):
        table.add_column(heading)
    for name, values in times.items():
        shown = [f"{r['median']:.3f} ({r['min']:.3f}-{r['max']:.3f})" for r in ratios.get(name, {}).values()]
        table.add_row(name, f"{1000 * median(values):.1f}", *shown)
    Console(width=130).print(table)
    print(f"largest difference between ours and diffusers': {difference} of 255")
    if args.json:
        print(
            json.dumps(
                {
                    "benchmark": "pipeline_latency",
                    "settings": vars(args),
                    "pixels": side,
                    "threads": torch.get_num_threads(),
                    "seconds": {name: round(median(values), 5) for name, values in times.items()},
                    "ratios": ratios,
                    "largest_difference": difference,
                }
            )
        )


if __name__ == "__main__":
    main()
