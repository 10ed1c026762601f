"""What ``infer.py generate`` and ``infer.py edit`` share: noise levels, classes, loading the model."""

import argparse
from typing import TYPE_CHECKING, Any

from lit_insert.cli.common import add_model_options, device_name, move, positive, quiet_libraries

if TYPE_CHECKING:
    from lit_insert.consistency.pipeline import ConsistencyPipeline


def add_sampling_options(parser: argparse.ArgumentParser, steps: str) -> argparse._ArgumentGroup:
    """Declare the model's options and those of sampling; returns the group "how".

    Args:
        parser: Gets them.
        steps: What the number of steps is by default.
    """
    add_model_options(parser, batch_size=64, batch_help="pictures sampled at once", auto="float32")
    how = parser.add_argument_group("how")
    how.add_argument(
        "--steps",
        "--num_inference_steps",
        dest="num_inference_steps",
        metavar="N",
        type=positive,
        help=f"evaluations of the model; by default {steps}",
    )
    how.add_argument(
        "--sigmas", metavar="S,S,…", type=_numbers(float), help="noise levels to go through instead, falling: 80,0.8"
    )
    how.add_argument(
        "--ts", metavar="I,I,…", type=_numbers(int), help="the same as indices into the model's grid: 0,22,39"
    )
    how.add_argument(
        "--class_label", metavar="N,…", type=_numbers(int), help="class, or several in turn; by default drawn at random"
    )
    how.add_argument("--guidance_scale", metavar="S", type=float, default=1.0, help="above 1 pushes towards the class")
    how.add_argument("--seed", metavar="N", type=int, default=0, help="of the first result; the next have N+1, N+2, …")
    return how


def _numbers(kind: type) -> Any:
    def parse(text: str) -> list[Any]:
        try:
            return [kind(part) for part in text.split(",")]
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not numbers with commas between") from error

    return parse


def sampling_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of the pipeline that were asked for."""
    names = ("num_inference_steps", "sigmas", "ts", "guidance_scale")
    return {name: getattr(options, name) for name in names}


def labels_in_turn(options: argparse.Namespace, first: int, count: int) -> list[int] | None:
    """The classes of results number ``first`` to ``first + count - 1``."""
    given = options.class_label
    return None if given is None else [given[(first + i) % len(given)] for i in range(count)]


def load_pipeline(options: argparse.Namespace) -> "ConsistencyPipeline":
    """The model on its device, and a check of what was asked of it.

    Raises:
        InputError: If it is not there, or does not have the noise levels that were asked for.
    """
    import torch

    quiet_libraries()
    from lit_insert.consistency.pipeline import ConsistencyPipeline

    dtype = "float32" if options.dtype == "auto" else options.dtype
    pipeline = ConsistencyPipeline.from_pretrained(options.model, dtype=getattr(torch, dtype))
    move(pipeline, device_name(options.device))
    pipeline.levels(options.num_inference_steps, options.sigmas, options.ts)
    return pipeline
