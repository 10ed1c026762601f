"""Inference: a prompt and a box for each thing in it to pictures."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DDIMScheduler
from rich.progress import Progress
from torch import Tensor

from lit_insert.artifacts.folder import replace_model_folder
from lit_insert.artifacts.resolve import resolve_model
from lit_insert.diffusion.schedulers import scheduler_by_name
from lit_insert.diffusion.text import prompt_states
from lit_insert.errors import InputError
from lit_insert.images import to_pil
from lit_insert.mifo.bounded import EndTokens
from lit_insert.mifo.boxes import Box, check_subjects, make_boxes
from lit_insert.mifo.guidance import GuidanceSettings
from lit_insert.mifo.output import SynthesisOutput, note_control
from lit_insert.mifo.prompts import PromptTokens, check_placeholders, find_tokens, separate_states
from lit_insert.mifo.regions import RefinementSettings
from lit_insert.mifo.sampling import Control, denoise
from lit_insert.mifo.settings import CFG_PLUS_PLUS_SCALE, SynthesisSettings, changed
from lit_insert.mifo.sources import POCKET, TextParts, load_parts, save_parts


class SynthesisPipeline:
    """Text to image with a box for each subject: bounded attention, latent guidance, regions that follow the picture.

    Example::

        pipe = SynthesisPipeline.from_pretrained("runs/m")
        boxes = {"<asset0>": [0.05, 0.3, 0.45, 0.9], "<asset1>": [0.55, 0.3, 0.95, 0.9]}
        pipe("a photo of <asset0> and <asset1> on the beach", boxes).images[0].save("beach.png")

    Args:
        parts: A text-to-image model, with instances or without.

    Raises:
        InputError: If its settings have an unknown name or a value out of range.
    """

    def __init__(self, parts: TextParts) -> None:
        self.parts = parts
        for name in ("unet", "vae", "text_encoder"):
            getattr(parts, name).eval().requires_grad_(False)
        self.settings = SynthesisSettings.of(parts.settings)
        self.vae_scale_factor = 2 ** (len(parts.vae.config["block_out_channels"]) - 1)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = "pocket",
        *,
        dtype: torch.dtype = torch.float32,
        base: str | None = None,
        **hub: Any,
    ) -> Self:
        """Load a model.

        Args:
            source: "pocket"; learned instances as a run folder, a training checkpoint (.ckpt), an exported folder or
                a hub id; or a Stable Diffusion model as a folder or hub id.
            dtype: Of the weights. Latents stay in float32.
            base: The model under learned instances, if it is no longer where they say.
            **hub: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.

        Raises:
            InputError: If the model is not found, or a part of it is missing, truncated or incomplete.
        """
        return cls(load_parts(resolve_model(source, POCKET), dtype, base, **hub))

    def save_pretrained(self, save_directory: str | Path, *, whole: bool = False) -> None:
        """Write the learned instances, which name their base; or the whole model, for diffusers to read.

        Args:
            save_directory: Where to.
            whole: Write every weight, as ``StableDiffusionPipeline`` reads it. A model without learned instances is
                always written whole.

        Raises:
            InputError: If ``save_directory`` holds something that is no exported model.
        """
        artifact = self.parts.artifact
        if artifact is not None and not whole:
            artifact.save(save_directory)
            return
        with replace_model_folder(save_directory) as temporary:
            save_parts(self.parts, temporary)

    def to(self, device: str | torch.device) -> Self:
        """Move to a device; returns the pipeline."""
        for name in ("unet", "vae", "text_encoder"):
            getattr(self.parts, name).to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.parts.unet.device

    @property
    def tokens(self) -> list[str]:
        """The learned tokens."""
        return list(self.parts.artifact.tokens) if self.parts.artifact else []

    def locate(
        self, prompt: str, boxes: Any, subject_token_indices: Sequence[Sequence[int]] | None = None
    ) -> tuple[list[Box], PromptTokens]:
        """The boxes of a prompt, and where in it their subjects are; computes nothing.

        Args:
            prompt: What to draw.
            boxes: As for ``__call__``.
            subject_token_indices: As for ``__call__``.

        Raises:
            InputError: If prompt and boxes do not fit each other or the model.
        """
        if subject_token_indices is not None:
            corners = [
                b.corners if isinstance(b, Box) else b for b in (boxes if isinstance(boxes, list | tuple) else [])
            ]
            if len(corners) != len(subject_token_indices):
                raise InputError(f"{len(corners)} boxes for {len(subject_token_indices)} subject_token_indices")
            named = [{"subject": f"subject {i}", "box": list(box)} for i, box in enumerate(corners)]
            found = make_boxes(named)
        else:
            found = make_boxes(boxes, prompt)
            if not found:
                raise InputError("there are no boxes; leave them out altogether to draw without")
            check_placeholders(prompt, self.parts.tokenizer)
            check_subjects(found, prompt)
        subjects = [box.subject for box in found]
        return found, find_tokens(prompt, subjects, self.parts.tokenizer, positions=subject_token_indices)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str,
        boxes: Any = None,
        *,
        negative_prompt: str = "",
        num_images: int = 1,
        seed: int = 0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        cfg_plus_plus: bool = False,
        masks: bool = True,
        guidance: bool | GuidanceSettings | dict[str, Any] = True,
        refinement: bool | RefinementSettings | dict[str, Any] = True,
        end_tokens: EndTokens | None = None,
        separate_words: bool | None = None,
        subject_token_indices: Sequence[Sequence[int]] | None = None,
        height: int | None = None,
        width: int | None = None,
        batch_size: int = 4,
        output_type: str = "pil",
        progress: bool = False,
        on_step: Callable[[int], None] | None = None,
    ) -> SynthesisOutput:
        """Draw pictures of a prompt.

        Picture number i has seed ``seed + i`` and is the same in a batch of any size, up to rounding.

        Args:
            prompt: What to draw, with the model's tokens or plain words.
            boxes: A box for each subject: a mapping of words of the prompt to [x0,y0,x1,y1] in fractions of the
                picture, a list of `Box`, or a list of boxes for the placeholders in their order. None draws without.
            negative_prompt: What to keep away from.
            num_images: How many.
            seed: Of the first.
            num_inference_steps: Steps of DDIM; by default the model's own.
            guidance_scale: Weight of the prompt; by default the model's own, with CFG++ 0.6.
            cfg_plus_plus: CFG++ (Chung et al. 2025) in place of classifier-free guidance; its scale is from 0 to 1.
            masks: Keep attention within bounds.
            guidance: Guide the latents; or how, in part or whole.
            refinement: Let regions follow the picture once it has taken shape; or how. Of no use without masks.
            end_tokens: Who sees the end of the prompt: "subjects", "everywhere", "nowhere"; by default the model's own.
            separate_words: Read each subject's words without the others'; by default the model's own.
            subject_token_indices: Token positions of each box's subject (the first word is 1), for a list of boxes;
                by default they are found.
            height: In pixels; by default the model's own.
            width: In pixels.
            batch_size: Pictures made at once.
            output_type: "pil", "pt" or "latent".
            progress: Show a progress bar.
            on_step: Called after each step with the number of pictures in it.

        Raises:
            InputError: If prompt and boxes do not fit each other or the model, or a setting is out of range.
        """
        if output_type not in ("pil", "pt", "latent"):
            raise InputError(f"output_type {output_type!r}: give pil, pt or latent")
        if min(num_images, batch_size) < 1:
            raise InputError("num_images and batch_size must be at least 1")
        if guidance_scale is None and cfg_plus_plus:
            guidance_scale = CFG_PLUS_PLUS_SCALE
        given = {
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "end_tokens": end_tokens,
            "separate_words": separate_words,
            "guidance": _part(guidance),
            "refinement": _part(refinement),
        }
        settings = changed(self.settings, given)
        if cfg_plus_plus and not 0 <= settings.guidance_scale <= 1:
            raise InputError(f"guidance_scale is {settings.guidance_scale:g}; CFG++ takes 0 to 1")
        size = self._latent_size(height, width)
        located = None if boxes is None else self.locate(prompt, boxes, subject_token_indices)
        check_placeholders(prompt, self.parts.tokenizer)
        states = prompt_states(self.parts.tokenizer, self.parts.text_encoder, [negative_prompt, prompt])
        if located is not None and masks and settings.separate_words:
            states = torch.cat([states[:1], separate_states(self.parts.text_encoder, located[1])])
        output = SynthesisOutput(images=[], seeds=list(range(seed, seed + num_images)))
        scheduler = self._scheduler(settings.num_inference_steps)
        with Progress(disable=not progress, transient=True) as bar:
            task = bar.add_task("drawing", total=num_images * settings.num_inference_steps)
            for start in range(0, num_images, batch_size):
                seeds = output.seeds[start : start + batch_size]

                def step_done(count: int = len(seeds)) -> None:
                    bar.advance(task, count)
                    if on_step is not None:
                        on_step(count)

                control = None
                if located is not None and (masks or guidance is not False):
                    control = Control(
                        self.parts.unet,
                        located[1],
                        located[0],
                        masks=masks,
                        guidance=None if guidance is False else settings.guidance,
                        refinement=None if refinement is False else settings.refinement,
                        end_tokens=settings.end_tokens,
                    )
                with nullcontext() if control is None else control.attention.attached(self.parts.unet):
                    latents = denoise(
                        self.parts.unet,
                        scheduler,
                        self._noise(seeds, size),
                        states,
                        guidance_scale=settings.guidance_scale,
                        plus_plus=cfg_plus_plus,
                        control=control,
                        on_step=step_done,
                    )
                output.images += list(latents.cpu()) if output_type == "latent" else self._decode(latents, output_type)
                note_control(output, control, len(seeds))
        output.boxes = [] if located is None else located[0]
        return output

    def _latent_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        own = self.parts.unet.config["sample_size"]
        own = list(own) if isinstance(own, list | tuple) else [own, own]
        sides = [own[0] if height is None else height, own[1] if width is None else width]
        for index, (name, given) in enumerate((("height", height), ("width", width))):
            if given is not None:
                if given < 1 or given % self.vae_scale_factor:
                    raise InputError(f"{name} is {given}; give a multiple of {self.vae_scale_factor}")
                sides[index] = given // self.vae_scale_factor
        return sides[0], sides[1]

    def _scheduler(self, steps: int) -> DDIMScheduler:
        scheduler: Any = scheduler_by_name("ddim", self.parts.scheduler)
        scheduler.register_to_config(clip_sample=False)  # latents are not bounded by 1
        if steps > scheduler.config["num_train_timesteps"]:
            raise InputError(
                f"num_inference_steps is {steps}; the model has {scheduler.config['num_train_timesteps']} noise levels"
            )
        scheduler.set_timesteps(steps)
        return scheduler

    def _noise(self, seeds: Sequence[int], size: tuple[int, int]) -> Tensor:
        channels = self.parts.unet.config["in_channels"]
        rows = [torch.randn(channels, *size, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(rows).to(self.device)

    def _decode(self, latents: Tensor, output_type: str) -> list[Any]:
        vae = self.parts.vae
        pixels = vae.decode((latents / vae.config["scaling_factor"]).to(vae.dtype), return_dict=False)[0].float()
        if output_type == "pil":
            return [to_pil(picture) for picture in pixels]
        return list((pixels / 2 + 0.5).clamp(0, 1).cpu())


def _part(given: Any) -> Any:
    """Settings from a call, None where it only says whether."""
    return None if isinstance(given, bool) else given
