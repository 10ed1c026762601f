"""What the pipeline knows of a prompt and its pictures."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from lit_insert.grounding.entities import Entity
from lit_insert.grounding.pairing import Match
from lit_insert.segmenters.base import Instance

Role = Literal["context", "generated"]


@dataclass
class Thing:
    """One object in one picture.

    Attributes:
        label: By which it was found.
        instance: Mask, score and boxes.
        vector: Its embedding (D,), unit length; None before it is made.
        verified: What the second look said; None if there was none.
    """

    label: str
    instance: Instance
    vector: Tensor | None = None
    verified: bool | None = None


@dataclass
class Query:
    """One label asked of one picture.

    Attributes:
        label: The label.
        presence: How likely there is such a thing at all, in [0,1].
        status: "ok", "absent" (nothing kept) or "error".
        n_found: Instances that the segmenter gave.
        n_kept: Those that were left after duplicates, specks and denied ones.
        error: Why it failed.
    """

    label: str
    presence: float = 0.0
    status: Literal["ok", "absent", "error"] = "absent"
    n_found: int = 0
    n_kept: int = 0
    error: str | None = None


@dataclass
class PictureResult:
    """One picture.

    Attributes:
        path: Its file.
        role: "context" or "generated".
        size: (H, W), upright; (0, 0) while unknown.
        sha256: Of the file; empty while unknown.
        status: "pending", "segmented", "ok" or "error".
        error: Why it failed.
        things: What was found in it.
        queries: One for each label.
    """

    path: Path
    role: Role
    size: tuple[int, int] = (0, 0)
    sha256: str = ""
    status: Literal["pending", "segmented", "ok", "error"] = "pending"
    error: str | None = None
    things: list[Thing] = field(default_factory=list)
    queries: list[Query] = field(default_factory=list)


@dataclass
class SegmentResult:
    """Everything of a run.

    Attributes:
        prompt: The prompt.
        entities: What it names.
        pictures: Contextual pictures in order, then the generated ones.
        matches: For each thing of the generated pictures, in order, what it was made of; indices count the things of
            the contextual pictures.
        models: Role to id, backend and dtype of what was used.
        warnings: What the user should know.
    """

    prompt: str
    entities: list[Entity] = field(default_factory=list)
    pictures: list[PictureResult] = field(default_factory=list)
    matches: list[Match] = field(default_factory=list)
    models: dict[str, dict[str, str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def of(self, role: Role) -> Iterator[tuple[PictureResult, Thing]]:
        """All things of the pictures with a role, in order."""
        for picture in self.pictures:
            if picture.role == role:
                for thing in picture.things:
                    yield picture, thing

    @property
    def failed(self) -> list[PictureResult]:
        """Pictures that could not be done."""
        return [picture for picture in self.pictures if picture.status == "error"]

    def warn(self, text: str) -> None:
        """Note something, once."""
        if text not in self.warnings:
            self.warnings.append(text)
