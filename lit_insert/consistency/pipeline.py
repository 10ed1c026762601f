"""Inference: pictures from noise in one to a few steps, and zero-shot edits with the same model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel
from torch import Tensor

from lit_insert.artifacts.folder import replace_model_folder
from lit_insert.artifacts.resolve import resolve_model
from lit_insert.artifacts.weights import cast
from lit_insert.consistency.edm import Denoiser, heun_sample
from lit_insert.consistency.generators import Generators, draw_labels, per_image
from lit_insert.consistency.karras import NoiseRange
from lit_insert.consistency.network import consistency_function, edm_denoiser
from lit_insert.consistency.output import ConsistencyOutput, finish, label_tensor
from lit_insert.consistency.sampling import check_sigmas, guided, multistep, sigmas_at, sigmas_for, standard_normal
from lit_insert.consistency.sources import ModelFacts, load_folder, save_folder
from lit_insert.consistency.start import load_start, scheduler_for
from lit_insert.consistency.tasks import edit_pictures
from lit_insert.errors import InputError
from lit_insert.images import Picture

POCKET = "generate"
HEUN_STEPS = 18
Labels = int | Sequence[int] | Tensor | None


class ConsistencyPipeline(ConsistencyModelPipeline):
    """Few-step generation and zero-shot editing (Song et al. 2023, algorithms 1 and 4).

    A diffusion teacher ("edm" in its facts) is sampled with Heun's method instead, and cannot edit.

    Args:
        unet: diffusers' network F; its time input is c_noise = 250 ln σ.
        scheduler: Noise range, the grid that ``ts`` counts in (``num_train_timesteps``), and ``clip_denoised``.
        facts: Kind of model, and its classes.

    Raises:
        InputError: If the facts do not fit the network.
    """

    def __init__(
        self, unet: UNet2DModel, scheduler: CMStochasticIterativeScheduler, facts: ModelFacts | None = None
    ) -> None:
        super().__init__(unet=unet, scheduler=scheduler)
        self.facts = facts or ModelFacts()
        self.facts.check(unet, "model")

    @classmethod
    def from_pretrained(cls, source: str | Path = "pocket", **kwargs: Any) -> Self:
        """Load a model with everything it needs.

        Args:
            source: "pocket", a run folder, an exported folder, a ``.ckpt``, or a folder or hub id in the layout of
                diffusers' ``ConsistencyModelPipeline``, such as ``openai/diffusers-cd_imagenet64_l2``.
            **kwargs: ``dtype``, ``variant``, and the hub's ``revision``, ``token``, ``cache_dir``,
                ``local_files_only``, ``force_download``.

        Raises:
            InputError: If the model is not found, is of another kind, or a part is missing, truncated or incomplete.
        """
        dtype = kwargs.pop("torch_dtype", None) or kwargs.pop("dtype", None) or torch.float32
        found = resolve_model(source, POCKET)
        if found.kind == "checkpoint":
            start = load_start(found.path)
            return cls(cast(start.unet, dtype), scheduler_for(start.noise, start.grid), start.facts)
        return cls(*load_folder(found, dtype, kwargs))

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write the exported folder atomically, which diffusers' ``ConsistencyModelPipeline`` reads as it is.

        Args:
            save_directory: Where to.
            **kwargs: diffusers', such as ``variant``.

        Raises:
            InputError: If ``save_directory`` holds something that is no exported model.
        """
        with replace_model_folder(save_directory) as temporary:
            save_folder(temporary, self.unet, self.scheduler, self.facts, **kwargs)

    # The model as a function

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        return int(self.unet.config["sample_size"])

    @property
    def classes(self) -> list[int] | None:
        """Classes that may be asked for; None for a model without classes."""
        count, facts = self.unet.config["num_class_embeds"], self.facts
        if not count:
            return None
        return [c for c in (range(count) if facts.labels is None else facts.labels) if c != facts.null_label]

    @property
    def noise_range(self) -> NoiseRange:
        """The noise levels that the model knows."""
        config = self.scheduler.config
        return NoiseRange(config["sigma_min"], config["sigma_max"], config["rho"], config["sigma_data"])

    @property
    def is_teacher(self) -> bool:
        """Whether this is a diffusion model, sampled in many steps."""
        return self.facts.kind == "edm"

    @property
    def clips(self) -> bool:
        """Whether every estimate of the picture is clipped to [-1,1]."""
        return bool(self.scheduler.config["clip_denoised"])

    def function(self, guidance_scale: float = 1.0) -> Denoiser:
        """The model as ``(x, sigma (N,), labels (N,) | None) -> x0``, float32: f, or a teacher's denoiser.

        Args:
            guidance_scale: w of f(x,∅) + w (f(x,c) - f(x,∅)); 1 is no guidance.
        """
        make = edm_denoiser if self.is_teacher else consistency_function
        plain = make(self._network, self.noise_range)
        return plain if guidance_scale == 1 else guided(plain, guidance_scale, self.facts.null_label or 0)

    def _network(self, x: Tensor, time: Tensor, class_labels: Tensor | None, return_dict: bool) -> tuple[Tensor]:
        return self.unet(x.to(self.unet.dtype), time, class_labels=class_labels, return_dict=return_dict)

    def levels(
        self,
        num_inference_steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        ts: Sequence[int] | None = None,
    ) -> list[float]:
        """The noise levels that a call would go through, falling, from the one argument that is given.

        Args:
            num_inference_steps: 1 by default, for a teacher 18; the model's own levels for that number are taken
                where it has some.
            sigmas: The levels themselves.
            ts: Rising indices into the model's grid, 0 being the largest level. The grid's last, the clean end,
                may close the list and is not evaluated.

        Raises:
            InputError: If more than one is given, or a level does not exist.
        """
        if sum(value is not None for value in (num_inference_steps, sigmas, ts)) > 1:
            raise InputError("give one of num_inference_steps, sigmas and ts")
        known, grid = self.noise_range, int(self.scheduler.config["num_train_timesteps"])
        if sigmas is not None:
            return check_sigmas(sigmas, known)
        if ts is not None:
            return sigmas_at(list(ts[:-1] if len(ts) > 1 and ts[-1] == grid - 1 else ts), known, grid)
        if self.is_teacher:
            steps = HEUN_STEPS if num_inference_steps is None else num_inference_steps
            if steps < 2:
                raise InputError(f"num_inference_steps is {steps}; a diffusion model needs 2 or more")
            return known.sigmas(steps).flip(0).tolist()
        steps = 1 if num_inference_steps is None else num_inference_steps
        own = (self.facts.sigmas or {}).get(str(steps))
        return check_sigmas(own, known) if own else sigmas_for(steps, known, grid)

    # Pictures

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        num_images: int = 1,
        num_inference_steps: int | None = None,
        *,
        sigmas: Sequence[float] | None = None,
        ts: Sequence[int] | None = None,
        class_labels: Labels = None,
        guidance_scale: float = 1.0,
        generator: Generators = None,
        seed: int | None = None,
        batch_size: int = 64,
        output_type: str = "pil",
        callback: Callable[[int], None] | None = None,
    ) -> ConsistencyOutput:
        """Make pictures from noise.

        Args:
            num_images: How many.
            num_inference_steps: Evaluations of the model, 1 by default.
            sigmas: Noise levels to go through instead, falling.
            ts: The same as rising indices into the model's grid, as OpenAI's ``0,22,39``.
            class_labels: One class for all, or one a picture; drawn at random by default.
            guidance_scale: Above 1 pushes towards the class; needs a model trained with label dropout.
            generator: One for each picture, or one that seeds them all.
            seed: Picture ``i`` is drawn from ``seed + i``: it is the same alone and in company.
            batch_size: Pictures at once.
            output_type: "pil", "pt" or "np".
            callback: Called with the number of pictures just finished.

        Raises:
            InputError: If an argument is out of range or asks for a class that was never trained.
        """
        if num_images < 1 or batch_size < 1:
            raise InputError("num_images and batch_size must be at least 1")
        levels = self.levels(num_inference_steps, sigmas, ts)
        generators = per_image(generator, seed, num_images)
        labels = self.check_labels(class_labels, generators, guidance_scale)
        function, device = self.function(guidance_scale), self._execution_device
        images: list[Any] = []
        for start in range(0, num_images, batch_size):
            rows = generators[start : start + batch_size]
            shape = (len(rows), self.unet.config["in_channels"], self.size, self.size)
            noise = standard_normal(shape, rows, device)
            classes = label_tensor(labels, start, batch_size, device)
            if self.is_teacher:
                made = heun_sample(function, noise, levels, classes)
                made = made.clamp(-1, 1) if self.clips else made
            else:
                low = self.noise_range.sigma_min
                made = multistep(function, noise, levels, sigma_min=low, label=classes, generator=rows, clip=self.clips)
            images += finish(made, output_type)
            if callback is not None:
                callback(len(rows))
        self.maybe_free_model_hooks()
        return ConsistencyOutput(images=images, labels=labels, sigmas=levels)

    @torch.no_grad()
    def edit(
        self,
        task: str,
        image: Picture | Sequence[Picture] | None = None,
        mask: Any = None,
        *,
        num_inference_steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        ts: Sequence[int] | None = None,
        class_labels: Labels = None,
        guidance_scale: float = 1.0,
        generator: Generators = None,
        seed: int | None = None,
        batch_size: int = 64,
        output_type: str = "pil",
        **options: Any,
    ) -> ConsistencyOutput:
        """Edit pictures without training for it.

        Args:
            task: "inpaint", "colorize", "superres", "sdedit" or "interpolate".
            image: One or several: PIL, path, or tensor (3,H,W) or (N,3,H,W) in [-1,1], of any size; 8 bits a channel
                are kept. For "interpolate" the two ends, or none for two noises.
            mask: For "inpaint", one for all or one a picture, of the picture's size: white (1) = generate, black =
                keep. PIL, path, array or tensor (H,W), (1,H,W) or (N,1,H,W) in [0,1].
            num_inference_steps: Noise levels, by default the task's own number (`tasks.TASKS`).
            sigmas: The noise levels themselves, falling.
            ts: The same as indices into the model's grid.
            class_labels: One class for all, or one a picture.
            guidance_scale: Above 1 pushes towards the class.
            generator: One for each result, or one that seeds them all.
            seed: Result ``i`` is drawn from ``seed + i``.
            batch_size: Pictures at once.
            output_type: "pil", "pt" or "np".
            **options: Of the task, see `lit_insert.consistency.tasks.EditOptions`: ``sigma_start`` of all, ``start``
                ("empty", "surround"), ``repeats`` and ``region`` of inpaint, ``patch`` of superres, ``frames`` of
                interpolate.

        Returns:
            Results at the photo's own size; of "superres" at ``patch`` times the size that was read, of "interpolate"
            at the model's.

        Raises:
            InputError: If something is missing, does not fit, or is out of range.
        """
        made, labels, levels = edit_pictures(
            self,
            task,
            image,
            mask,
            steps=(num_inference_steps, sigmas, ts),
            class_labels=class_labels,
            guidance_scale=guidance_scale,
            generators=(generator, seed),
            batch_size=batch_size,
            options=options,
        )
        self.maybe_free_model_hooks()
        return ConsistencyOutput([finish(m[None], output_type)[0] for m in made], labels, levels)

    def check_labels(
        self, given: Labels, generators: Sequence[torch.Generator], guidance_scale: float = 1.0
    ) -> list[int] | None:
        """A trained class for each picture, drawn where none is given.

        Raises:
            InputError: If the model has no such class, or no class for none where guidance needs one.
        """
        classes, count = self.classes, len(generators)
        if guidance_scale != 1 and self.facts.null_label is None:
            raise InputError(
                f"guidance_scale {guidance_scale:g}: the model was not trained with label dropout; leave it"
            )
        if classes is None:
            if given is not None:
                raise InputError("class_labels: the model has no classes; leave it out")
            return None
        if given is None:
            return draw_labels(generators, classes)
        labels = [given] * count if isinstance(given, int) else [int(label) for label in given]
        if len(labels) != count:
            raise InputError(f"{len(labels)} class_labels for {count} pictures: give one for all, or one a picture")
        for label in labels:
            if label not in classes:
                known = f"{classes[0]} to {classes[-1]}" if len(classes) > 12 else ", ".join(map(str, classes))
                raise InputError(f"class {label} was never trained; the model knows {known}")
        return labels
