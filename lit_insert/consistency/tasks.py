"""The edits of `lit_insert.consistency.editing` for photos: which size, which noise levels, what is put back."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lit_insert.consistency import editing
from lit_insert.consistency.generators import Generators, per_image
from lit_insert.consistency.photos import Square, around, as_masks, whole
from lit_insert.consistency.sampling import check_sigmas, sigmas_below, standard_normal
from lit_insert.errors import InputError
from lit_insert.images import Picture, as_pictures, to_tensor

if TYPE_CHECKING:
    from lit_insert.consistency.pipeline import ConsistencyPipeline

# Where each task starts (None: the model's largest level) and in how many evaluations, unless told otherwise.
TASKS: dict[str, tuple[float | None, int]] = {
    "inpaint": (None, 8),
    "colorize": (None, 8),
    "superres": (None, 8),
    "sdedit": (2.0, 2),
    "interpolate": (None, 1),
}
SURROUND_START = 6.0  # where a fill starts from the blurred surround: its colours are still there, its detail is not
_OWN = {
    "inpaint": ("start", "repeats", "region"),
    "colorize": ("repeats",),
    "superres": ("patch", "repeats"),
    "sdedit": (),
    "interpolate": ("frames",),
}


@dataclasses.dataclass(frozen=True)
class EditOptions:
    """What a single task can be told.

    Attributes:
        start: inpaint: "empty" begins with a grey hole, "surround" with the blurred surround.
        repeats: inpaint, colorize, superres: evaluations at every noise level; more lets a fill settle.
        region: inpaint: "auto" works on the square around the hole, "whole" on all of the photo.
        patch: superres: how many times larger the result is; divides the model's size.
        frames: interpolate: number of results, the two ends included.
        sigma_start: All: noise level to start from, instead of the task's own.
    """

    start: Literal["empty", "surround"] = "empty"
    repeats: int = 1
    region: Literal["auto", "whole"] = "auto"
    patch: int = 4
    frames: int = 8
    sigma_start: float | None = None

    @classmethod
    def of(cls, task: str, given: dict[str, Any]) -> "EditOptions":
        """Check names and values.

        Raises:
            InputError: If the task is unknown, has no such option, or a value is out of range.
        """
        if task not in TASKS:
            raise InputError(f"no task is called {task!r}; there is: {', '.join(TASKS)}")
        for name in given:
            if name not in (*_OWN[task], "sigma_start"):
                raise InputError(f"{task} has no option {name}; it has: {', '.join((*_OWN[task], 'sigma_start'))}")
        options = cls(**given)
        for name, least in (("repeats", 1), ("patch", 1), ("frames", 2)):
            if getattr(options, name) < least:
                raise InputError(f"{name} is {getattr(options, name)}; give {least} or more")
        for name, known in (("start", ("empty", "surround")), ("region", ("auto", "whole"))):
            if getattr(options, name) not in known:
                raise InputError(f"{name} is {getattr(options, name)!r}; give {' or '.join(known)}")
        return options


def edit_pictures(
    pipe: "ConsistencyPipeline",
    task: str,
    image: Picture | Sequence[Picture] | None,
    mask: Any,
    *,
    steps: tuple[int | None, Sequence[float] | None, Sequence[int] | None],
    class_labels: Any,
    guidance_scale: float,
    generators: tuple[Generators, int | None],
    batch_size: int,
    options: dict[str, Any],
) -> tuple[list[Tensor], list[int] | None, list[float]]:
    """Do a task; arguments as of `ConsistencyPipeline.edit`.

    Returns:
        Results (3,H,W) in [-1,1], their classes, the noise levels.

    Raises:
        InputError: If something is missing, does not fit, or is out of range.
    """
    chosen = EditOptions.of(task, options)
    if pipe.is_teacher:
        raise InputError("a diffusion teacher cannot edit; give a consistency model (cd, ct, ict or ect)")
    if batch_size < 1:
        raise InputError("batch_size must be at least 1")
    levels = edit_levels(pipe, task, steps, chosen)
    if (mask is None) == (task == "inpaint"):
        raise InputError("inpaint needs a mask" if mask is None else f"{task} takes no mask")
    photos = [] if image is None and task == "interpolate" else [to_tensor(p) for p in as_pictures(image, "image")]
    work = _prepare(task, photos, mask, pipe.size, chosen)
    count = chosen.frames if task == "interpolate" else len(work)
    rows = per_image(*generators, count)
    labels = pipe.check_labels(class_labels, rows, guidance_scale)
    if task == "interpolate":
        labels = None if labels is None else [labels[0]] * count
        return _between(pipe, work, levels, labels, guidance_scale, rows[0], chosen), labels, levels
    made: list[Tensor] = []
    for start in range(0, count, batch_size):
        part = slice(start, start + batch_size)
        y = torch.stack([w.pixels for w in work[part]]).to(pipe._execution_device)
        holes = [w.hole for w in work[part] if w.hole is not None]
        hole = torch.stack(holes).to(pipe._execution_device) if holes else None
        denoise = _bound(pipe, None if labels is None else labels[part], guidance_scale)
        noise = partial(standard_normal, y.shape, rows[part], pipe._execution_device)
        results = _edit(task, denoise, y, hole, levels, noise, chosen, pipe.noise_range.sigma_min)
        made += [w.restore(r) for w, r in zip(work[part], results.float().cpu(), strict=True)]
    return made, labels, levels


def edit_levels(
    pipe: "ConsistencyPipeline",
    task: str,
    steps: tuple[int | None, Sequence[float] | None, Sequence[int] | None],
    options: EditOptions,
) -> list[float]:
    """Noise levels of a task: those given, or `sigmas_below` its first level.

    Raises:
        InputError: If the first level is outside the model's, or it has not so many steps from there.
    """
    count, sigmas, ts = steps
    known = pipe.noise_range
    if sigmas is not None or ts is not None:
        if options.sigma_start is not None:
            raise InputError("give either sigma_start or the noise levels themselves")
        return pipe.levels(count, sigmas, ts)
    begin, own_steps = TASKS[task]
    if options.start == "surround":
        begin = SURROUND_START
    if options.sigma_start is not None:
        begin = check_sigmas([options.sigma_start], known)[0]
    grid = pipe.scheduler.config["num_train_timesteps"]
    return sigmas_below(begin, own_steps if count is None else count, known, grid, at_most=count is None)


@dataclasses.dataclass(frozen=True)
class _Work:
    """A picture on its way: at the model's size, and how a result becomes one of the photo's size."""

    pixels: Tensor
    restore: Callable[[Tensor], Tensor]
    hole: Tensor | None = None


def _prepare(task: str, photos: list[Tensor], mask: Any, size: int, options: EditOptions) -> list[_Work]:
    if task == "inpaint":
        masks = as_masks(mask)
        if len(masks) not in (1, len(photos)):
            raise InputError(f"{len(masks)} masks for {len(photos)} pictures: give one for all, or one a picture")
        masks = masks if len(masks) == len(photos) else masks * len(photos)
        return [_hole(p, m, size, options.region) for p, m in zip(photos, masks, strict=True)]
    if task == "superres":
        if size % options.patch:
            raise InputError(f"patch {options.patch} does not divide the model's size, {size}")
        return [_enlarged(p, size, options.patch) for p in photos]
    if task == "interpolate" and len(photos) not in (0, 2):
        raise InputError(f"interpolate takes two pictures, or none; not {len(photos)}")
    squares = [whole(p) for p in photos]
    restore: Callable[[Square, Tensor], Callable[[Tensor], Tensor]]
    restore = (lambda s, p: partial(_coloured, s, p)) if task == "colorize" else (lambda s, _: s.put)
    return [_Work(s.take(p, size), restore(s, p)) for s, p in zip(squares, photos, strict=True)]


def _hole(photo: Tensor, mask: Tensor, size: int, region: str) -> _Work:
    if mask.shape[-2:] != photo.shape[-2:]:
        sizes = f"{mask.shape[-1]}x{mask.shape[-2]} for a picture of {photo.shape[-1]}x{photo.shape[-2]}"
        raise InputError(f"mask: {sizes}; give them one size")
    if not mask.any():
        raise InputError("mask: nothing in it is white, so there is nothing to generate")
    square = whole(photo) if region == "whole" else around(mask, size)

    def restore(made: Tensor) -> Tensor:
        result = photo.clone()
        rows, columns = square.visible
        own = photo[:, rows, columns]
        result[:, rows, columns] = torch.where(mask[:, rows, columns] > 0, square.put(made), own)
        return result

    return _Work(square.take(photo, size), restore, square.take_mask(mask, size))


def _enlarged(photo: Tensor, size: int, patch: int) -> _Work:
    square = whole(photo, at_least=size // patch)
    low = square.take(photo, size // patch)
    return _Work(low.repeat_interleave(patch, -1).repeat_interleave(patch, -2), square.crop)


def _coloured(square: Square, photo: Tensor, made: Tensor) -> Tensor:
    """The photo's own grey at its full size, with the made colours."""
    return editing.grey_kept().mix(photo[None], square.put(made)[None])[0]


def _bound(pipe: "ConsistencyPipeline", labels: list[int] | None, guidance_scale: float) -> editing.Denoise:
    """The consistency function with classes, guidance and clipping fixed."""
    function = pipe.function(guidance_scale)
    classes = None if labels is None else torch.tensor(labels, device=pipe._execution_device)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        made = function(x, x.new_full((len(x),), sigma), classes)
        return made.clamp(-1, 1) if pipe.clips else made

    return denoise


def _edit(
    task: str,
    denoise: editing.Denoise,
    y: Tensor,
    hole: Tensor | None,
    levels: list[float],
    noise: editing.Noise,
    options: EditOptions,
    sigma_min: float,
) -> Tensor:
    again: dict[str, Any] = {"repeats": options.repeats, "sigma_min": sigma_min}
    if hole is not None:
        return editing.inpaint(denoise, y, hole, levels, noise, start=options.start, **again)
    if task == "colorize":
        return editing.colorize(denoise, y, levels, noise, **again)
    if task == "superres":
        return editing.superres(denoise, y, options.patch, levels, noise, **again)
    return editing.sdedit(denoise, y, levels, noise, sigma_min=sigma_min)


def _between(
    pipe: "ConsistencyPipeline",
    ends: list[_Work],
    levels: list[float],
    labels: list[int] | None,
    guidance_scale: float,
    generator: torch.Generator,
    options: EditOptions,
) -> list[Tensor]:
    shape = (1, pipe.unet.config["in_channels"], pipe.size, pipe.size)
    draw = partial(standard_normal, shape, generator, pipe._execution_device)
    noisy = [levels[0] * draw()[0] for _ in range(2)]
    if ends:
        noisy = [x + end.pixels.to(x) for x, end in zip(noisy, ends, strict=True)]
    weights = torch.linspace(0, 1, options.frames)
    denoise = _bound(pipe, labels, guidance_scale)
    low = pipe.noise_range.sigma_min
    made = editing.interpolate(denoise, noisy[0], noisy[1], weights, levels, draw, sigma_min=low)
    return list(made.float().cpu())
