"""Inference: a scene and objects in, the scene with the objects in it out."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import AutoencoderRAE
from PIL import Image
from torch import Tensor

from lit_insert.artifacts.folder import replace_model_folder
from lit_insert.errors import InputError
from lit_insert.fusion.artifact import FusionArtifact
from lit_insert.fusion.compose import changing_cells
from lit_insert.fusion.finding import find_objects
from lit_insert.fusion.finishing import base_features, flow, guided_velocity, into_scene, scene_of
from lit_insert.fusion.latents import PART, LatentSpace
from lit_insert.fusion.loading import (
    GUIDE,
    TRANSFORMER,
    find_parts,
    lazy_autoencoder,
    lazy_segmenter,
    lazy_transformer,
    write_index,
)
from lit_insert.fusion.memory import Lazy, PeakMemory
from lit_insert.fusion.network import DiTDH
from lit_insert.fusion.objective import shift_of
from lit_insert.fusion.objects import FusionObject, FusionSettings
from lit_insert.fusion.output import FusionOutput
from lit_insert.fusion.placing import Placer, Scene
from lit_insert.fusion.sampling import noise_levels
from lit_insert.fusion.scaling import as_scene
from lit_insert.images import Picture, to_pil

CLIP = "openai/clip-vit-base-patch32"


class FusionPipeline:
    """Puts objects into a scene by words, in the feature space of a representation autoencoder.

    The first stage cuts objects out, finds their places and fuses their features into the scene's; the second noises
    the result to a level t < 1 and lets a diffusion transformer bring it back, with the rest of the scene held. Models
    are loaded when they are needed and, if they came by name, let go after their stage.

    Example::

        pipe = FusionPipeline.from_pretrained("pocket")
        pipe("scene.png", [FusionObject("butterfly.png", "butterfly", location_prompt="on the flower")]).image

    Args:
        autoencoder: The autoencoder, or where it is.
        transformer: The transformer, or where it is; None can only do the first stage.
        guidance_transformer: A weaker one, for autoguidance.
        segmenter: A segmenter, or the name of one.
        segmenter_source: Its weights, if they are not the default ones.
        clip_model: Judges windows when reranking: a folder, a hub id, or a callable of (picture (3,H,W), words).
        dtype: Of the models' weights.
    """

    def __init__(
        self,
        autoencoder: "str | Path | AutoencoderRAE | LatentSpace",
        transformer: "str | Path | DiTDH | None" = None,
        guidance_transformer: "str | Path | DiTDH | None" = None,
        segmenter: Any = "clipseg",
        segmenter_source: str | Path | None = None,
        clip_model: Any = CLIP,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._space = lazy_autoencoder(autoencoder, dtype)
        self._transformer = lazy_transformer(transformer, dtype)
        self._guide = lazy_transformer(guidance_transformer, dtype)
        self._segmenter = lazy_segmenter(segmenter, segmenter_source, torch.float32)
        self._scorer: Lazy[Any] = (
            Lazy(lambda: _scorer(clip_model)) if isinstance(clip_model, str | Path) else Lazy(None, clip_model)
        )
        self.dtype, self.device = dtype, torch.device("cpu")

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | None = "pocket",
        *,
        autoencoder: str | Path | None = None,
        transformer: str | Path | None = None,
        guidance_transformer: str | Path | None = None,
        segmenter: Any = None,
        segmenter_source: str | Path | None = None,
        clip_model: Any = CLIP,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Settle which models are used; their weights are read when they are needed.

        Args:
            source: "pocket", an exported folder or a hub id with the parts; None if both are named below.
            autoencoder: Such as ``nyu-visionx/RAE-dinov2-wReg-base-ViTXL-n08-i512``.
            transformer: An exported folder, a run, or a published ``.pt``.
            guidance_transformer: The same.
            segmenter: A segmenter or the name of one; by default the pocket's for "pocket", else "clipseg".
            segmenter_source: Its weights, if they are not the default ones.
            clip_model: A folder or hub id, for reranking.
            dtype: Of the weights.

        Raises:
            InputError: If a name stands for nothing, or there is no autoencoder.
        """
        parts = find_parts(source, autoencoder, transformer, guidance_transformer)
        if parts.autoencoder is None:
            raise InputError(f"{source}: no {PART}/ in it; name an autoencoder")
        chosen = segmenter or ("pocket" if str(source).startswith("pocket") else "clipseg")
        return cls(*parts, chosen, segmenter_source, clip_model, dtype)

    def keep_loaded(self, keep: bool = True) -> Self:
        """Keep models between calls, for many scenes where there is memory for all of them; returns the pipeline."""
        for part in (self._space, self._transformer, self._guide, self._segmenter, self._scorer):
            if part is not None:
                part.keep = keep
        return self

    def to(self, device: torch.device | str) -> Self:
        """Choose where models run; returns the pipeline.

        Raises:
            RuntimeError: If the device does not exist here.
        """
        self.device = torch.device(device)
        torch.empty(0, device=self.device)
        return self

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write autoencoder and transformers as an exported folder, atomically.

        Raises:
            InputError: If there is no transformer, or the folder holds something that is no exported model.
        """
        transformer = self._need_transformer()(torch.device("cpu"))
        with replace_model_folder(save_directory) as temporary:
            self._space(torch.device("cpu")).autoencoder.save_pretrained(temporary / PART)
            transformer.save_pretrained(temporary / TRANSFORMER)
            if self._guide is not None:
                self._guide(torch.device("cpu")).save_pretrained(temporary / GUIDE)
            write_index(temporary, self._guide is not None)

    def _need_transformer(self) -> Lazy[DiTDH]:
        if self._transformer is None:
            raise InputError("no transformer: the model here can only place objects; name one for the second stage")
        return self._transformer

    # First stage

    @torch.no_grad()
    def place(
        self,
        base_image: Picture,
        objects: Sequence[FusionObject],
        *,
        seed: int = 0,
        settings: FusionSettings | None = None,
        memory: PeakMemory | None = None,
    ) -> FusionArtifact:
        """Cut objects out, find their places and fuse their features into the scene's.

        Args:
            base_image: The scene: PIL picture, path or tensor (3,H,W) in [-1,1].
            objects: What to put in.
            seed: Of what is drawn when reranking, and of the second stage's noise.
            settings: How.
            memory: Gets the largest memory.

        Raises:
            InputError: If a picture is unreadable, an object is not found in its picture, or it does not fit.
        """
        how, memory = settings or FusionSettings(), memory or PeakMemory(self.device)
        if not objects:
            raise InputError("objects: give at least one")
        picture = as_scene(base_image, str(base_image) if isinstance(base_image, str | Path) else "base_image")
        path = str(base_image) if isinstance(base_image, str | Path) else ""
        with memory.stage("segment"):
            found, keep_free = find_objects(picture, path, objects, how, lambda: self._segmenter(self.device))
            self._segmenter.free()
        with memory.stage("place"):
            space = self._space(self.device)
            scene = Scene.of(picture, path, space)
            scorer = self._scorer(self.device) if how.rerank else None
            placer = Placer(space, scene, how, seed, scorer, self.device, keep_free)
            base, fused, pixels = placer.run(objects, found)
            self._space.free()
            self._scorer.free()
        return FusionArtifact(
            fused=fused.features,
            base=base,
            union=fused.union if not how.grow else changing_cells(fused.union, how.grow).float(),
            objects=pixels,
            scene=path,
            frame=scene.frame,
            size=(picture.height, picture.width),
            autoencoder=space.name,
            seed=seed,
            notes=placer.notes,
            placements=placer.placements,
        )

    @torch.no_grad()
    def preview(self, artifact: FusionArtifact) -> Image.Image:
        """The fused features, decoded as they are: what the second stage begins with, (P,P) pixels."""
        space = self._space(self.device)
        artifact.check_space(space.name, space.shape)
        decoded = space.decode(artifact.fused[None].to(self.device))[0].clamp(0, 1).cpu()
        self._space.free()
        return to_pil(decoded * 2 - 1)

    # Second stage

    @torch.no_grad()
    def refine(
        self,
        artifacts: Sequence[FusionArtifact],
        *,
        base_images: Sequence[Picture | None] | None = None,
        strengths: Sequence[float] = (0.3,),
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        class_label: int | None = None,
        hold_background: bool = True,
        batch_size: int = 1,
        memory: PeakMemory | None = None,
        callback: Callable[[int], None] | None = None,
    ) -> list[FusionOutput]:
        """Let the flow make the fused features natural, and put the result into the scenes.

        Each result depends on its own artifact, seed and strength alone.

        Args:
            artifacts: From `place`, or `FusionArtifact.load`.
            base_images: The scenes, for artifacts whose file is elsewhere; None takes the artifact's own.
            strengths: First noise levels t in (0,1]: more changes more.
            num_inference_steps: Steps from pure noise; from t it is t times as many.
            guidance_scale: w; 1 for none. With a ``guidance_transformer`` that is the weak one, else "no class".
            guidance_interval: Noise levels at which to guide.
            class_label: The class; None for "no class".
            hold_background: Hold the scene's features where nothing is new.
            batch_size: Artifacts at once.
            memory: Gets the largest memory.
            callback: Called with the number of results finished.

        Raises:
            InputError: If an artifact is of another model, a scene is missing, or a number is out of range.
        """
        memory = memory or PeakMemory(self.device)
        if not artifacts or not strengths or batch_size < 1:
            raise InputError("refine: give artifacts, strengths, and a batch_size of 1 or more")
        given = list(base_images) if base_images is not None else [None] * len(artifacts)
        scenes = [scene_of(a, g) for a, g in zip(artifacts, given, strict=True)]
        with memory.stage("encode"):
            space = self._space(self.device)
            name, shape = space.name, space.shape
            for artifact in artifacts:
                artifact.check_space(name, shape)
            bases = [base_features(space, a, s, self.device) for a, s in zip(artifacts, scenes, strict=True)]
            self._space.free()
        alpha = shift_of(shape)
        grids = [noise_levels(t, num_inference_steps, alpha) for t in strengths]
        made: list[list[Tensor]] = [[] for _ in artifacts]
        with memory.stage("refine"):
            strong = self._need_transformer()(self.device)
            guide = self._guide(self.device) if self._guide is not None and guidance_scale != 1 else None
            velocity = guided_velocity(strong, guide, guidance_scale, guidance_interval, class_label)
            del strong, guide
            for levels in grids:
                for start in range(0, len(artifacts), batch_size):
                    rows = range(start, min(start + batch_size, len(artifacts)))
                    result = flow(
                        velocity,
                        [artifacts[i] for i in rows],
                        [bases[i] for i in rows],
                        levels,
                        label=class_label,
                        hold=hold_background,
                        device=self.device,
                    )
                    for i, features in zip(rows, result, strict=True):
                        made[i].append(features)
                        if callback is not None:
                            callback(1)
            del velocity
            self._need_transformer().free()
            if self._guide is not None:
                self._guide.free()
        with memory.stage("decode"):
            space = self._space(self.device)
            outputs = []
            for artifact, base, scene, results in zip(artifacts, bases, scenes, made, strict=True):
                pairs = into_scene(space, artifact, base, scene, results, self.device)
                for (_, report), strength, levels in zip(pairs, strengths, grids, strict=True):
                    report.strength, report.steps = float(strength), len(levels)
                pictures, reports = [picture for picture, _ in pairs], [report for _, report in pairs]
                outputs.append(FusionOutput(pictures, [float(t) for t in strengths], reports, artifact))
            self._space.free()
        for output in outputs:
            output.memory = memory.stages
        return outputs

    # Both

    def __call__(
        self,
        base_image: Picture,
        objects: Sequence[FusionObject],
        strength: float | Sequence[float] = 0.3,
        num_inference_steps: int = 50,
        *,
        seed: int = 0,
        settings: FusionSettings | None = None,
        **options: Any,
    ) -> FusionOutput:
        """Put objects into a scene.

        Args:
            base_image: The scene.
            objects: What to put in.
            strength: First noise level t, or several: a result for each.
            num_inference_steps: Steps from pure noise.
            seed: The same seed gives the same result.
            settings: How.
            **options: `refine`'s: ``guidance_scale``, ``class_label``, ``hold_background`` …

        Raises:
            InputError: As `place` and `refine` do.
        """
        strengths = [strength] if isinstance(strength, int | float) else list(strength)
        for value in strengths:
            noise_levels(value, num_inference_steps)
        self._need_transformer()
        memory = PeakMemory(self.device)
        kept, self._space.keep = self._space.keep, True  # the second stage begins with it
        try:
            artifact = self.place(base_image, objects, seed=seed, settings=settings, memory=memory)
        finally:
            self._space.keep = kept
        return self.refine(
            [artifact],
            base_images=[base_image],
            strengths=strengths,
            num_inference_steps=num_inference_steps,
            memory=memory,
            **options,
        )[0]


def _scorer(source: str | Path) -> Any:
    from lit_insert.fusion.clip_score import ClipScorer

    return ClipScorer.from_pretrained(source)
