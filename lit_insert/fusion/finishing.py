"""The second stage: the flow over fused features, and its result in the scene."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from lit_insert.blending import background_difference, seam_ratio
from lit_insert.errors import InputError
from lit_insert.fusion.artifact import FusionArtifact
from lit_insert.fusion.compose import Composite, changing_cells
from lit_insert.fusion.latents import LatentSpace
from lit_insert.fusion.network import DiTDH
from lit_insert.fusion.objective import Velocity, guided
from lit_insert.fusion.output import FusionReport
from lit_insert.fusion.sampling import job_noise, refine
from lit_insert.fusion.scaling import as_scene
from lit_insert.images import Picture, flatten_alpha
from lit_insert.letterbox import Frame


def scene_of(artifact: FusionArtifact, given: Picture | None) -> Image.Image:
    """The scene of an artifact, RGB or RGBA.

    Raises:
        InputError: If it names none, or the picture is unreadable or of another size.
    """
    if given is None and not artifact.scene:
        raise InputError("the artifact names no scene; give base_image")
    source = artifact.scene if given is None else given
    picture = as_scene(source, str(source) if isinstance(source, str | Path) else "base_image")
    if artifact.size is not None and artifact.size != (picture.height, picture.width):
        raise InputError(
            f"the scene has {picture.width}x{picture.height} pixels, the artifact is of one with "
            f"{artifact.size[1]}x{artifact.size[0]}"
        )
    return picture


def base_features(space: LatentSpace, artifact: FusionArtifact, scene: Image.Image, device: torch.device) -> Tensor:
    """The scene's own features (C,G,G): the artifact's or, for the original program's files, encoded as it did."""
    if artifact.base is not None:
        return artifact.base
    pixels = torch.from_numpy(np.array(flatten_alpha(scene), dtype=np.float32) / 255).permute(2, 0, 1)
    side = [space.input_size] * 2
    canvas = TF.resize(pixels, side, InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    return space.encode(canvas[None].to(device))[0].cpu()


def network_velocity(transformer: DiTDH) -> Velocity:
    """A transformer as a velocity in float32, whatever its weights are."""
    dtype = transformer.dtype
    return lambda x, time, label: transformer(x.to(dtype), time, label, return_dict=False)[0].float()


def guided_velocity(
    transformer: DiTDH,
    guide: DiTDH | None,
    scale: float,
    interval: tuple[float, float],
    label: int | None,
) -> Velocity:
    """The transformer, guided: away from a weaker one or, without one, away from "no class".

    Raises:
        InputError: If there is no such class, or neither a class nor a weaker transformer to guide by.
    """
    null = transformer.null_class
    if label is not None and not 0 <= label < null:
        raise InputError(f"class_label {label}: the transformer's classes are {f'0 to {null - 1}' if null else 'none'}")
    strong = network_velocity(transformer)
    if scale == 1:
        return strong
    if guide is not None:
        return guided(strong, network_velocity(guide), scale, interval=interval)
    if label is None:
        raise InputError(f"guidance_scale {scale:g}: needs a class_label, or a weaker guidance_transformer")
    return guided(strong, strong, scale, lambda classes: torch.full_like(classes, null), interval)


def flow(
    velocity: Velocity,
    artifacts: Sequence[FusionArtifact],
    bases: Sequence[Tensor],
    levels: Sequence[float],
    *,
    label: int | None = None,
    hold: bool = True,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Results (N,C,G,G) of several artifacts, each with the noise of its own seed.

    Args:
        velocity: The transformer.
        artifacts: What to begin with.
        bases: The scenes' own features.
        levels: Noise levels, falling.
        label: The class of all; None for "no class".
        hold: Hold the scenes' features where nothing is new.
        device: Where to compute.
    """
    mask = torch.stack([changing_cells(a.union) for a in artifacts])[:, None].to(device)
    classes = None if label is None else torch.full((len(artifacts),), label, device=device)
    return refine(
        velocity,
        torch.stack([a.fused for a in artifacts]).to(device),
        torch.cat([job_noise(a.seed, a.shape) for a in artifacts]).to(device),
        levels,
        base=torch.stack(list(bases)).to(device) if hold else None,
        mask=mask if hold else None,
        label=classes,
    ).cpu()


def into_scene(
    space: LatentSpace,
    artifact: FusionArtifact,
    base: Tensor,
    scene: Image.Image,
    results: Sequence[Tensor],
    device: torch.device | str = "cpu",
) -> list[tuple[Image.Image, FusionReport]]:
    """Decode results and put them into the scene.

    Args:
        space: The autoencoder.
        artifact: What they were made of.
        base: The scene's own features.
        scene: RGB or RGBA.
        results: Features (C,G,G).
        device: Where to compute.

    Returns:
        For each, a picture of the scene's size and mode, and its figures; strength and steps are still 0.
    """
    side, cells = space.input_size, changing_cells(artifact.union)
    objects = artifact.objects
    if objects is None:
        cell = side // space.grid
        objects = artifact.union.repeat_interleave(cell, 0).repeat_interleave(cell, 1)
    composite = Composite(artifact.frame or Frame(0, 0, side, side), side, cells, objects)
    photo = np.array(scene)
    before = np.ascontiguousarray(photo[..., :3])
    plain = space.decode(base[None].to(device))[0].cpu()
    made = []
    for features in results:
        pixels, alpha = composite.photo(photo, space.decode(features[None].to(device))[0].cpu(), plain)
        picture = Image.fromarray(pixels)
        picture.info = {k: v for k, v in scene.info.items() if k == "icc_profile"}
        after = np.ascontiguousarray(pixels[..., :3])
        report = FusionReport(
            background_max_abs_diff=background_difference(before, after, alpha),
            seam_gradient_ratio=seam_ratio(before, after, alpha, max(2, round(0.02 * max(scene.size)))),
            changed_area=float((alpha > 0).mean()),
            cosine_to_object=_cosine(features, artifact.fused, cells),
            cosine_to_scene=_cosine(features, base, cells),
        )
        made.append((picture, report))
    return made


def _cosine(first: Tensor, second: Tensor, cells: Tensor) -> float:
    """Mean cosine of features (C,G,G) over cells (G,G) bool; 1 where there are none."""
    if not cells.any():
        return 1.0
    return float(F.cosine_similarity(first[:, cells], second[:, cells], dim=0).mean())
