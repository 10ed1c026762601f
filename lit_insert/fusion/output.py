"""What a fusion gives back."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from diffusers.utils import BaseOutput
from PIL import Image

from lit_insert.fusion.artifact import FusionArtifact


@dataclass
class FusionReport:
    """Figures of one result.

    Attributes:
        strength: First noise level t.
        steps: Steps that were taken.
        background_max_abs_diff: Largest difference of any channel outside the feather, in steps of 1/255; 0.
        seam_gradient_ratio: Gradients along the seam over those of the photo beside it; about 1 shows nothing.
        changed_area: What may differ from the scene, as a fraction of it.
        cosine_to_object: Cosine of the result's features to the fused ones where something is new.
        cosine_to_scene: The same to the scene's.
    """

    strength: float = 0.0
    steps: int = 0
    background_max_abs_diff: int = 0
    seam_gradient_ratio: float | None = None
    changed_area: float = 0.0
    cosine_to_object: float = 1.0
    cosine_to_scene: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        found = dataclasses.asdict(self)
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}


@dataclass
class FusionOutput(BaseOutput):
    """What `FusionPipeline` returns.

    Attributes:
        images: A picture of the scene's size for each strength.
        strengths: The first noise levels, in the order asked for.
        reports: Figures of each.
        artifact: What the first stage made.
        memory: Largest memory of each stage in MB, by stage.
    """

    images: list[Image.Image]
    strengths: list[float]
    reports: list[FusionReport]
    artifact: FusionArtifact
    memory: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def image(self) -> Image.Image:
        """The picture of the first strength."""
        return self.images[0]
