"""What the commands of ``infer.py`` share."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_insert.artifacts.atomic import atomic_file
from lit_insert.errors import InputError
from lit_insert.images import NEUTRAL, flatten_alpha, list_images, save_image

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console
    from rich.progress import Progress


def positive(text: str) -> int:
    """An option's whole number above 0."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value


def add_model_options(parser: argparse.ArgumentParser, batch_size: int, batch_help: str, auto: str) -> None:
    """Declare --model, --device, --dtype and --batch_size.

    Args:
        parser: Gets a group "model".
        batch_size: The default.
        batch_help: What is done at once.
        auto: What --dtype auto means.
    """
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        default="pocket",
        metavar="MODEL",
        help="pocket, a run folder, an exported folder, a .ckpt or a hub id",
    )
    model.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    model.add_argument(
        "--dtype",
        metavar="TYPE",
        choices=("auto", "float32", "float16", "bfloat16"),
        default="auto",
        help=f"float32, float16, bfloat16; auto: {auto}",
    )
    model.add_argument("--batch_size", metavar="N", type=positive, default=batch_size, help=batch_help)


def quiet_libraries() -> None:
    """Keep diffusers and transformers from writing between our lines."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def device_name(given: str) -> str:
    """The device that "auto" stands for, or the one given."""
    import torch

    if given != "auto":
        return given
    return "cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu"


def move(pipeline: Any, device: str) -> None:
    """Bring a pipeline to a device.

    Raises:
        InputError: If the device is not usable here.
    """
    try:
        pipeline.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {device}: not usable here ({reason})") from error


def picture_files(path: str, option: str) -> list[Path]:
    """A picture file, or those of a folder.

    Raises:
        InputError: If there is no such file or folder, or the folder has no pictures.
    """
    if Path(path).is_dir():
        return list_images(path)
    if not Path(path).exists():
        raise InputError(f"{option} {path}: no such file or folder")
    return [Path(path)]


def free_name(output: Path, taken: set[Path]) -> Path:
    """A name that is not taken yet, and now is; pictures of one name may come from several folders."""
    candidate, number = output, 2
    while candidate in taken:
        candidate, number = output.with_stem(f"{output.stem}-{number}"), number + 1
    taken.add(candidate)
    return candidate


def write_picture(picture: "Image.Image", path: Path) -> None:
    """Save a result.

    Raises:
        InputError: If it cannot be written.
    """
    try:
        save_image(picture, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def write_json(record: dict[str, Any], path: Path) -> None:
    """Save a record atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def thumbnail(picture: "Image.Image", side: int = 384) -> "Image.Image":
    """A copy for grids and reports; whole photos of a long run would fill the memory."""
    copy = flatten_alpha(picture, NEUTRAL).copy()
    copy.thumbnail((side, side))
    return copy


def progress_bar(console: "Console") -> "Progress":
    """A bar with what is done, how much of it, and the time that is left."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)
