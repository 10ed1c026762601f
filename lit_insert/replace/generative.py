"""Models that fill a hole: a consistency model, or a diffusers inpainting pipeline."""

import inspect
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from PIL import Image

from lit_insert.artifacts.hub import pull_model
from lit_insert.artifacts.resolve import resolve_model
from lit_insert.artifacts.weights import check_safetensors
from lit_insert.consistency.editing import edit, masked
from lit_insert.consistency.photos import whole
from lit_insert.consistency.pipeline import ConsistencyPipeline
from lit_insert.consistency.sampling import standard_normal
from lit_insert.consistency.tasks import EditOptions, edit_levels
from lit_insert.errors import InputError
from lit_insert.images import to_pil, to_tensor
from lit_insert.replace.fills import FillRequest

PICTURE_START = 0.1  # near the noise level at which a reference keeps its shape and loses its edges


class ConsistencyFill:
    """Fills with a consistency model, zero-shot: the surround is put back after every evaluation.

    The square is scaled to the model's size and its fill back, so a hole much larger than the model comes out soft.
    Three ways to begin: from noise at the model's largest level (the plain method); from the surround blurred into
    the hole, at ``start_sigma``; or from a given picture, at ``start_sigma``.

    Args:
        pipeline: The model.
        num_inference_steps: Evaluations.
        start_sigma: Noise level to begin at; higher forgets more of what it begins with. By default `PICTURE_START`
            for a given picture, and otherwise the model's largest, which forgets everything.
        repeats: How often each level is denoised and noised again; more lets the fill settle into its surround.
        guidance_scale: Above 1 pushes towards the class; needs a model trained with label dropout.
    """

    name = "consistency"
    sees_paste = True
    follows = frozenset({"class_label", "start"})

    def __init__(
        self,
        pipeline: ConsistencyPipeline,
        num_inference_steps: int = 2,
        start_sigma: float | None = None,
        repeats: int = 1,
        guidance_scale: float = 1.0,
    ) -> None:
        if pipeline.is_teacher:
            raise InputError("a diffusion teacher cannot fill; give a consistency model (cd, ct, ict or ect)")
        self.pipeline, self.num_inference_steps = pipeline, num_inference_steps
        self.start_sigma, self.repeats, self.guidance_scale = start_sigma, repeats, guidance_scale
        self._levels()  # a level that the model does not have should fail before any photo is read

    def __call__(self, request: FillRequest) -> np.ndarray:
        """Fill at the model's size.

        Raises:
            InputError: If the class was never trained.
        """
        if request.start is not None:
            return self._from_picture(request, request.start)
        output = self.pipeline.edit(
            "inpaint",
            Image.fromarray(request.image),
            request.replace_mask,
            num_inference_steps=self.num_inference_steps,
            class_labels=request.class_label,
            guidance_scale=self.guidance_scale,
            seed=request.seed,
            region="whole",
            start="empty" if self.start_sigma is None else "surround",
            sigma_start=self.start_sigma,
            repeats=self.repeats,
        )
        return np.asarray(output.images[0])

    def _levels(self) -> list[float]:
        sigma = PICTURE_START if self.start_sigma is None else self.start_sigma
        return edit_levels(
            self.pipeline, "sdedit", (self.num_inference_steps, None, None), EditOptions(sigma_start=sigma)
        )

    @torch.no_grad()
    def _from_picture(self, request: FillRequest, picture: np.ndarray) -> np.ndarray:
        """Begin from a picture, noised; the surround is put back as in an inpainting."""
        pipeline, generator = self.pipeline, torch.Generator().manual_seed(request.seed)
        labels = pipeline.check_labels(request.class_label, [generator], self.guidance_scale)
        classes = None if labels is None else torch.tensor(labels, device=pipeline.device)
        function = pipeline.function(self.guidance_scale)

        def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
            made = function(x, x.new_full((len(x),), sigma), classes)
            return made.clamp(-1, 1) if pipeline.clips else made

        photo = to_tensor(Image.fromarray(request.image))
        square = whole(photo)
        given = square.take(photo, pipeline.size)[None].to(pipeline.device)
        start = square.take(to_tensor(Image.fromarray(picture)), pipeline.size)[None].to(pipeline.device)
        mask = torch.from_numpy(request.replace_mask).float()[None]
        kept = masked(square.take_mask(mask, pipeline.size)[None].to(pipeline.device))
        made = edit(
            denoise,
            given,
            kept,
            self._levels(),
            partial(standard_normal, given.shape, [generator], pipeline.device),
            start=kept.mix(given, start),
            repeats=self.repeats,
            sigma_min=pipeline.noise_range.sigma_min,
        )
        return np.where(mask[0, ..., None] > 0, np.asarray(to_pil(square.put(made[0].cpu()))), request.image)


class DiffusionFill:
    """Fills with a text-to-image inpainting pipeline of diffusers, such as Stable Diffusion's.

    Args:
        pipeline: Takes ``prompt``, ``image`` and ``mask_image``.
        num_inference_steps: Denoising steps.
        guidance_scale: How closely to follow the prompt.
        negative_prompt: What is not wanted.
        strength: With a picture to begin from, how much of it is noised away, in (0,1].
        resolution: Side of the square it works on; by default the model's.

    Raises:
        InputError: If the pipeline takes no mask.
    """

    name = "diffusion"
    sees_paste = True
    follows = frozenset({"prompt", "start"})

    def __init__(
        self,
        pipeline: Any,
        num_inference_steps: int = 30,
        guidance_scale: float = 7.5,
        negative_prompt: str | None = None,
        strength: float = 0.6,
        resolution: int | None = None,
    ) -> None:
        self.takes = set(inspect.signature(pipeline.__call__).parameters)
        if not {"prompt", "image", "mask_image"} <= self.takes:
            raise InputError(f"{type(pipeline).__name__} is no inpainting pipeline: it takes no prompt and mask_image")
        if not 0 < strength <= 1:
            raise InputError(f"strength is {strength:g}; give more than 0 and at most 1")
        self.pipeline, self.num_inference_steps = pipeline, num_inference_steps
        self.guidance_scale, self.negative_prompt, self.strength = guidance_scale, negative_prompt, strength
        factor = int(getattr(pipeline, "vae_scale_factor", 8))
        model = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
        own = int(model.config["sample_size"]) * factor if model is not None else 512
        self.resolution = resolution or own
        if self.resolution % factor:
            raise InputError(f"resolution {self.resolution} is not a multiple of {factor}, which the model needs")
        pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def from_pretrained(cls, source: str, *, dtype: torch.dtype = torch.float32, **settings: Any) -> Self:
        """Load a pipeline.

        Args:
            source: A folder in diffusers' layout, or a hub id.
            dtype: Of the weights.
            **settings: As of the class.

        Raises:
            InputError: If it is not found, truncated, or no pipeline that inpaints.
        """
        from diffusers import AutoPipelineForInpainting

        found = resolve_model(source)
        if found.kind == "checkpoint":
            raise InputError(f"{source}: a training checkpoint; give the folder of an inpainting pipeline")
        folder = pull_model(found.location) if found.kind == "hub" else found.path
        for file in sorted(folder.rglob("*.safetensors")):
            check_safetensors(file)
        try:
            pipeline = AutoPipelineForInpainting.from_pretrained(folder).to(dtype)
        except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise InputError(f"{source}: no inpainting pipeline could be loaded ({reason.strip()[:160]})") from error
        return cls(pipeline, **settings)

    @torch.no_grad()
    def __call__(self, request: FillRequest) -> np.ndarray:
        """Fill at the model's size.

        Raises:
            InputError: If the model's safety checker blanked the result.
        """
        size = (self.resolution, self.resolution)
        shown = request.image if request.start is None else request.start
        mask = torch.from_numpy(request.replace_mask).float()[None]
        hole = whole(mask).take_mask(mask, self.resolution)
        options: dict[str, Any] = {
            "prompt": request.prompt or "",
            "negative_prompt": self.negative_prompt,
            "image": Image.fromarray(shown).resize(size, Image.Resampling.LANCZOS),
            "mask_image": to_pil(hole),
            "height": self.resolution,
            "width": self.resolution,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "strength": 1.0 if request.start is None else self.strength,
            "generator": torch.Generator().manual_seed(request.seed),
        }
        output = self.pipeline(**{k: v for k, v in options.items() if k in self.takes})
        if any(getattr(output, "nsfw_content_detected", None) or []):
            raise InputError("the model's safety checker blanked the result; try another seed or prompt")
        return _back(output.images[0], request)


def _back(made: Image.Image, request: FillRequest) -> np.ndarray:
    """The fill at the size of its square, the known pixels as they were."""
    side = len(request.image)
    picture = made.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    return np.where(request.replace_mask[..., None], np.asarray(picture), request.image)
