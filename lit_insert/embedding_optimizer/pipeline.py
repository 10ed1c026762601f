"""Inference: put the object of one picture into another, with no mask and no prompt."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import (
    AutoencoderKL,
    SchedulerMixin,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from lit_insert.artifacts.folder import replace_model_folder
from lit_insert.artifacts.resolve import resolve_model
from lit_insert.diffusion.schedulers import scheduler_by_name
from lit_insert.embedding_optimizer.canvas import (
    Canvas,
    change_map,
    place,
    plan_canvas,
    reference_picture,
    restore,
)
from lit_insert.embedding_optimizer.guidance import needed_rows
from lit_insert.embedding_optimizer.network import EmbeddingOptimizer
from lit_insert.embedding_optimizer.pairs import Generators, pair_up, per_pair
from lit_insert.embedding_optimizer.sources import load_checkpoint_parts, load_folder_parts
from lit_insert.errors import InputError
from lit_insert.images import Picture, as_pictures, to_pil

SAMPLING: dict[str, Any] = {"num_inference_steps": 50, "guidance_scale": 7.0, "image_guidance_scale": 1.5}


@dataclass
class InsertOutput(BaseOutput):
    """What `InsertPipeline` returns.

    Attributes:
        images: One a result, pair after pair: PIL pictures at their photo's size; or float32 (3,h,w) tensors
            or (h,w,3) arrays in [0,1]; or latents.
        metadata: One dictionary a result: ``pair`` (index), ``size`` and ``processing_size`` (width, height),
            and with a kept background ``changed``, the fraction of the photo that was repainted.
    """

    images: list[Any]
    metadata: list[dict[str, Any]] = field(default_factory=list)


class InsertPipeline(StableDiffusionInstructPix2PixPipeline):
    """InstructPix2Pix's sampler, steered by a reference picture in place of a prompt.

    The reference goes through CLIP and the embedding optimizer; its tokens take the prompt's place, and the
    optimizer's null embedding that of the empty prompt. The sampling loop, with guidance in three terms
    (Brooks et al. 2023, eq. 3), is diffusers'.

    Args:
        vae: Encodes scenes and decodes results.
        unet: Takes the noisy latents and the scene's, 2·C channels.
        scheduler: Any diffusers scheduler that the UNet's noise schedule fits.
        image_encoder: CLIP vision model that the adapter was trained on.
        feature_extractor: Its preprocessing, the same as in training.
        embedding_optimizer: The adapter.
        processing_resolution: Side of the squares it was trained on; by default the UNet's sample size.
        sampling: The model's own ``num_inference_steps``, ``guidance_scale`` and ``image_guidance_scale``, used
            where a call names none; what it leaves out is 50, 7 and 1.5.
    """

    model_cpu_offload_seq = "image_encoder->embedding_optimizer->unet->vae"
    _optional_components: list[str] = []  # noqa: RUF012 - diffusers reads it from the class
    _exclude_from_cpu_offload: list[str] = []  # noqa: RUF012
    # The base class asks for these; there is no prompt here, and no file for them in the folder.
    text_encoder = None
    tokenizer = None
    safety_checker = None

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        image_encoder: CLIPVisionModelWithProjection,
        feature_extractor: CLIPImageProcessor,
        embedding_optimizer: EmbeddingOptimizer,
        processing_resolution: int | None = None,
        sampling: dict[str, Any] | None = None,
    ) -> None:
        super(StableDiffusionInstructPix2PixPipeline, self).__init__()
        try:
            embedding_optimizer.attach(unet)
        except ValueError as error:
            raise InputError(f"the adapter does not fit the UNet: {error}") from error
        self.register_modules(
            vae=vae,
            unet=unet,
            scheduler=scheduler,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
            embedding_optimizer=embedding_optimizer,
        )
        self.register_to_config(processing_resolution=processing_resolution, sampling=sampling)
        self.sampling: dict[str, Any] = {**SAMPLING, **(sampling or {})}
        self.vae_scale_factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
        self.image_processor = VaeImageProcessor(
            vae_scale_factor=self.vae_scale_factor, vae_latent_channels=vae.config["latent_channels"]
        )
        self.processing_resolution = processing_resolution or unet.config["sample_size"] * self.vae_scale_factor

    @classmethod
    def from_pretrained(cls, source: str | Path = "pocket", **kwargs: Any) -> Self:
        """Load a model with everything it needs.

        Args:
            source: "pocket", a run folder, a training checkpoint (.ckpt), an exported folder, or a hub id.
            **kwargs: ``scheduler`` may be a short name (`lit_insert.diffusion.schedulers.SCHEDULERS`); the
                rest is diffusers': ``dtype``, ``variant``, ``revision``, ``token``, components that replace
                the folder's.

        Raises:
            InputError: If the model is not found, or a part of it (such as the adapter) is missing, truncated
                or incomplete.
        """
        found = resolve_model(source)
        dtype = kwargs.pop("torch_dtype", None) or kwargs.pop("dtype", None) or torch.float32
        named = kwargs.get("scheduler")
        if isinstance(named, str):
            del kwargs["scheduler"]
        if found.kind == "checkpoint":
            loaded = load_checkpoint_parts(found.path, dtype)
            names = {f.name for f in dataclasses.fields(loaded)}
            replaced = {key: value for key, value in kwargs.items() if key in names}
            pipeline = cls.from_parts(dataclasses.replace(loaded, **replaced))
        else:
            # diffusers would let tensors that a file lacks pass with a warning, so the models come checked.
            folder, parts = load_folder_parts(found, dtype, kwargs)
            hub_only = ("revision", "token", "cache_dir", "local_files_only", "force_download", "variant")
            rest = {key: value for key, value in kwargs.items() if key not in hub_only}
            pipeline = super().from_pretrained(folder, **{**parts, **rest})
        if isinstance(named, str):
            pipeline.set_scheduler(named)
        return pipeline

    @classmethod
    def from_parts(cls, parts: Any) -> Self:
        """Assemble from any object that has the components as attributes, such as a training module."""
        return cls(
            vae=parts.vae,
            unet=parts.unet,
            scheduler=parts.scheduler,
            image_encoder=parts.image_encoder,
            feature_extractor=parts.feature_extractor,
            embedding_optimizer=parts.embedding_optimizer,
            processing_resolution=getattr(parts, "processing_resolution", None),
            sampling=dataclasses.asdict(parts.sampling) if hasattr(parts, "sampling") else None,
        )

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write the exported folder atomically, adapter included; ``**kwargs`` are diffusers'.

        Raises:
            InputError: If ``save_directory`` holds something that is no exported model.
        """
        with replace_model_folder(save_directory) as temporary:
            super().save_pretrained(temporary, **kwargs)

    def set_scheduler(self, name: str) -> None:
        """Sample with another scheduler, by short name.

        Raises:
            InputError: If it is unknown or does not fit the model's noise schedule.
        """
        self.scheduler: SchedulerMixin = scheduler_by_name(name, self.scheduler)

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        image: Picture | Sequence[Picture],
        object_image: Picture | Sequence[Picture] | None = None,
        *,
        image_guidance_scale: float | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        height: int | None = None,
        width: int | None = None,
        processing_resolution: int | None = None,
        output_type: str = "pil",
        preserve_background: bool = True,
        object_pixel_values: Tensor | None = None,
        eta: float = 0.0,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> InsertOutput:
        """Insert each object into its scene.

        One scene with many objects, or one object with many scenes, pairs with all. Scenes of one working
        size are sampled as one batch. Guidance is on when ``guidance_scale`` > 1 and
        ``image_guidance_scale`` >= 1; otherwise each step is one conditional pass.

        Args:
            image: Scene or scenes: PIL, a path, or a tensor (3,H,W) or (N,3,H,W) in [-1,1].
            object_image: Reference or references, in the same forms; may have alpha.
            image_guidance_scale: Weight of the scene: higher keeps more of it; by default the model's own.
            guidance_scale: Weight of the reference: higher follows it more; by default the model's own.
            num_inference_steps: Denoising steps; by default the model's own.
            num_images_per_prompt: Results for each pair.
            generator: One for all, or one a pair: then a pair's result does not depend on its batch.
            height: Working height in pixels; by default from ``processing_resolution`` and the aspect.
            width: Working width in pixels.
            processing_resolution: Side of the square whose area the canvas gets; by default the model's.
            output_type: "pil", "pt", "np" or "latent".
            preserve_background: Give back the photo's own pixels wherever the model changed nothing, and
                blend softly at the edge of what it did change. False returns the decoder's picture as it is.
            object_pixel_values: CLIP-normalised references (N,3,S,S), in place of ``object_image``.
            eta: η of DDIM.
            callback_on_step_end: Called as ``f(pipeline, step, timestep, tensors)``, as in diffusers.
            callback_on_step_end_tensor_inputs: Names of the tensors it gets.
            cross_attention_kwargs: Passed to the UNet's attention.

        Raises:
            InputError: If the numbers of scenes, objects and generators do not fit, or a picture is
                unreadable.
        """
        scenes = as_pictures(image, "image")
        pixels = self._reference_pixels(object_image, object_pixel_values)
        scenes, pixels = pair_up(scenes, pixels)
        given = zip(SAMPLING, (num_inference_steps, guidance_scale, image_guidance_scale), strict=True)
        settings = [self.sampling[name] if value is None else value for name, value in given]
        num_inference_steps, (guidance_scale, image_guidance_scale) = int(settings[0]), settings[1:]
        if num_inference_steps < 1 or num_images_per_prompt < 1:
            raise InputError("num_inference_steps and num_images_per_prompt must be at least 1")
        if output_type not in ("pil", "pt", "np", "latent"):
            raise InputError(f"output_type {output_type!r}: give pil, pt, np or latent")
        generators = per_pair(generator, len(scenes))
        n, cell = num_images_per_prompt, self.vae_scale_factor
        side = processing_resolution or self.processing_resolution
        canvases = [plan_canvas(s.size, side, cell, height, width) for s in scenes]
        done: list[list[tuple[Any, dict[str, Any]]]] = [[] for _ in scenes]
        for group in _groups(canvases):
            scene_latents = self._encode_scenes([place(scenes[i], canvases[i]) for i in group])
            tokens = self._tokens(pixels[group])
            rows = [i for i in group for _ in range(n)]
            with needed_rows(self.unet, guidance_scale, image_guidance_scale):
                sampled = super().__call__(
                    image=scene_latents.repeat_interleave(n, dim=0),
                    prompt_embeds=tokens.repeat_interleave(n, dim=0),
                    negative_prompt_embeds=self.embedding_optimizer.null(len(rows)),
                    num_inference_steps=num_inference_steps,
                    guidance_scale=guidance_scale,
                    image_guidance_scale=image_guidance_scale,
                    generator=None if generators is None else [generators[i] for i in rows],
                    eta=eta,
                    output_type="latent",
                    callback_on_step_end=callback_on_step_end,
                    callback_on_step_end_tensor_inputs=list(callback_on_step_end_tensor_inputs),
                    cross_attention_kwargs=cross_attention_kwargs,
                )
            latents: Tensor = sampled.images
            changes: Sequence[Tensor | None] = [None] * len(rows)
            results = latents
            if output_type != "latent":
                results = self._decode(latents / self.vae.config["scaling_factor"])
                if preserve_background:
                    # The scene's latents are the posterior mode itself, which was never scaled.
                    untouched = self._decode(scene_latents).repeat_interleave(n, dim=0)
                    changes = list(change_map(results, untouched, reach=max(1, cell // 2)))
            for row, result, change in zip(rows, results, changes, strict=True):
                photo, canvas = scenes[row], canvases[row]
                about = {"pair": row, "size": photo.size, "processing_size": canvas.size}
                if change is not None:
                    about["changed"] = round(float(change[:, : canvas.content[1], : canvas.content[0]].mean()), 6)
                if output_type != "latent":
                    result = restore(result, canvas, photo, change)
                done[row].append((_finish(result, output_type, photo), about))
        self.maybe_free_model_hooks()
        in_order = [item for of_pair in done for item in of_pair]
        return InsertOutput(images=[i for i, _ in in_order], metadata=[about for _, about in in_order])

    def prepare_image_latents(
        self,
        image: Tensor,
        batch_size: int,
        num_images_per_prompt: int,
        dtype: torch.dtype,
        device: torch.device,
        do_classifier_free_guidance: bool,
        generator: Generators = None,
    ) -> Tensor:
        """The scene's rows for guidance, in diffusers' order: scene, scene, none.

        ``image`` holds latents already, one row a result: the base class would encode again, would tell
        latents by having four channels, and would repeat them in another order than the prompts.
        """
        latents = image.to(device=device, dtype=dtype)
        return torch.cat([latents, latents, torch.zeros_like(latents)]) if do_classifier_free_guidance else latents

    def _reference_pixels(
        self, object_image: Picture | Sequence[Picture] | None, pixel_values: Tensor | None
    ) -> Tensor:
        if (object_image is None) == (pixel_values is None):
            raise InputError("give either object_image or object_pixel_values")
        if pixel_values is not None:
            return pixel_values
        pictures = [reference_picture(p) for p in as_pictures(object_image, "object_image", alpha=True)]
        return self.feature_extractor(pictures, return_tensors="pt").pixel_values

    def _tokens(self, pixel_values: Tensor) -> Tensor:
        encoder = self.image_encoder
        pixel_values = pixel_values.to(self._execution_device, encoder.dtype)
        tokens = self.embedding_optimizer.encode_image(encoder, pixel_values)
        return self.embedding_optimizer(tokens.to(self.embedding_optimizer.dtype))

    def _encode_scenes(self, scenes: list[Tensor]) -> Tensor:
        batch = torch.stack(scenes).to(self._execution_device, self.vae.dtype)
        return self.vae.encode(batch).latent_dist.mode()

    def _decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0].float()


def _groups(canvases: list[Canvas]) -> Iterator[list[int]]:
    """Indices of pairs with one working size, in order of first appearance."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, canvas in enumerate(canvases):
        groups.setdefault(canvas.size, []).append(index)
    yield from groups.values()


def _finish(result: Tensor, output_type: str, photo: Image.Image) -> Any:
    if output_type == "latent":
        return result
    if output_type == "pil":
        picture = to_pil(result)
        if "icc_profile" in photo.info:
            picture.info["icc_profile"] = photo.info["icc_profile"]
        return picture
    unit = (result.float() / 2 + 0.5).clamp(0, 1).cpu()
    return unit if output_type == "pt" else unit.permute(1, 2, 0).numpy()
