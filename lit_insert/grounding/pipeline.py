"""Inference: a prompt and pictures in, the things it names and which source object became which out."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from lit_insert.errors import InputError
from lit_insert.grounding import verify
from lit_insert.grounding.entities import Entity
from lit_insert.grounding.filter import filter_labels
from lit_insert.grounding.models import Loaders, Stage
from lit_insert.grounding.nms import Labelled, suppress
from lit_insert.grounding.pairing import pair
from lit_insert.grounding.result import PictureResult, Query, SegmentResult, Thing
from lit_insert.grounding.settings import GroundingSettings
from lit_insert.images import load_image
from lit_insert.segmenters.base import Instances, Segmenter

Note = Callable[[str, int, int], None]
Save = Callable[[SegmentResult], None]


class SegmentPipeline:
    """Names the things of a prompt, finds them in pictures, and says which source object became which.

    Four stages follow each other: entities, segmentation, (second look,) vectors; pairing needs no model. Each loads
    its model, goes through all pictures, and frees it before the next one loads. A picture that fails is noted, and
    does not take the others with it.

    Example::

        pipeline = SegmentPipeline(settings_from({"segmenter": {"backend": "pocket", "model": "pocket"}}))
        result = pipeline("a red circle and a blue ring", contextual=["a.png"], generated=["b.png"])

    Args:
        settings: See `lit_insert.grounding.settings.GroundingSettings`.
        device: Where to compute, such as "cpu" or "cuda".
        loaders: What loads the models; by default by the settings.
    """

    def __init__(
        self, settings: GroundingSettings | None = None, device: str = "cpu", loaders: Loaders | None = None
    ) -> None:
        self.settings = (settings or GroundingSettings()).check()
        self.loaders = loaders or Loaders(self.settings, device)
        self.stage = Stage()

    def __call__(
        self,
        prompt: str,
        contextual: Sequence[str | Path],
        generated: Sequence[str | Path] = (),
        *,
        labels: str | list[str] | None = None,
        previous: SegmentResult | None = None,
        note: Note | None = None,
        save: Save | None = None,
    ) -> SegmentResult:
        """Run all stages.

        Args:
            prompt: What the generated picture was made from.
            contextual: Files of the source pictures.
            generated: Files of the generated ones.
            labels: The things themselves, with ``;`` between them, in place of what the prompt names.
            previous: An earlier result with the same settings: what it has of the same pictures is not done again.
            note: Called with (stage, done, total) as work goes on.
            save: Called with the result after every picture, so that a stopped run can be resumed.

        Raises:
            InputError: If the prompt is empty, a model cannot be had, or the model's answer is no list of things.
        """
        if not prompt.strip() and labels is None:
            raise InputError("prompt: is empty; give a prompt or labels")
        note = note or (lambda stage, done, total: None)
        save = save or (lambda result: None)
        result = SegmentResult(prompt)
        self._entities(result, labels, previous)
        result.pictures = [PictureResult(Path(p), "context") for p in contextual]
        result.pictures += [PictureResult(Path(p), "generated") for p in generated]
        if previous is not None:
            _take_over(result, previous)
        if not result.entities:
            result.warn("the prompt names nothing that can have a mask; give --labels, or change entities.excluded")
            return result
        self._segment(result, note, save)
        self._verify(result, note)
        self._embed(result, note, save)
        self._pair(result)
        save(result)
        return result

    def _entities(self, result: SegmentResult, labels: str | list[str] | None, previous: SegmentResult | None) -> None:
        own = self.settings.entities
        known = previous.entities if previous is not None and previous.prompt == result.prompt else []
        if previous is not None and labels is None and known and known[0].source == own.backend:
            result.entities = list(known)
            result.models["entities"] = previous.models.get("entities", {})
            return
        with self.stage.hold("entities", lambda: self.loaders.entities(labels)) as held:
            found, name = held[0].extract(result.prompt), held[0].name
        if name == "given":  # the user knows best; only what is said twice goes
            kept = filter_labels(found, (), (), own.most)
        else:
            kept = filter_labels(found, own.excluded, own.qualifiers, own.most)
        result.entities = [Entity(text, name) for text in kept]
        model = own.model if name == "qwen3-vl" else ""
        result.models["entities"] = {"backend": name, "model": model, "dtype": own.dtype if model else ""}

    def _segment(self, result: SegmentResult, note: Note, save: Save) -> None:
        result.models["segmenter"] = self.loaders.describe("segmenter")
        todo = [p for p in result.pictures if p.status in ("pending", "error")]
        opened = [(picture, _open(picture)) for picture in todo]
        todo = [picture for picture, readable in opened if readable]
        if not todo:
            return
        with self.stage.hold("segmenter", self.loaders.segmenter) as held:
            for done, picture in enumerate(todo):
                note("segmentation", done, len(todo))
                try:
                    self._segment_one(held[0], picture, [e.text for e in result.entities])
                    picture.status, picture.error = "segmented", None
                except (InputError, torch.OutOfMemoryError) as error:
                    _fail(picture, error)
                save(result)
            note("segmentation", len(todo), len(todo))

    def _segment_one(self, segmenter: Segmenter, picture: PictureResult, labels: list[str]) -> None:
        own = self.settings.segmenter
        image = load_image(picture.path)
        features = segmenter.encode(image, picture.path.stem)
        options: dict[str, Any] = {
            "threshold": own.threshold,
            "mask_threshold": own.mask_threshold,
            "max_instances": own.max_instances,
        }
        answers, picture.queries = _ask(segmenter, features, labels, options)
        least = own.min_area * image.width * image.height if own.min_area < 1 else own.min_area
        found = [
            Labelled(answer.prompt, instance) for answer in answers for instance in answer if instance.area >= least
        ]
        nms = self.settings.nms
        kept = suppress(found, iou=nms.iou, containment=nms.containment, part=nms.part)
        picture.things = [Thing(k.label, k.instance) for k in kept]
        _count(picture)

    def _verify(self, result: SegmentResult, note: Note) -> None:
        if not self.settings.verify.enabled:
            return
        todo = [p for p in result.pictures if p.status == "segmented" and any(t.verified is None for t in p.things)]
        if not todo:
            return
        result.models["verify"] = {"backend": "qwen3-vl", "model": self.settings.verify.model, "dtype": "auto"}
        with self.stage.hold("verify", self.loaders.verifier) as held:
            for done, picture in enumerate(todo):
                note("second look", done, len(todo))
                image = load_image(picture.path)
                for thing in picture.things:
                    thing.verified = verify.shows(held[0], image, thing, self.settings.verify.margin)
                picture.things = [thing for thing in picture.things if thing.verified]
                _count(picture)
            note("second look", len(todo), len(todo))

    def _embed(self, result: SegmentResult, note: Note, save: Save) -> None:
        result.models["embedder"] = self.loaders.describe("embedder")
        todo = [p for p in result.pictures if p.status == "segmented" and p.things]
        for picture in result.pictures:
            if picture.status == "segmented" and not picture.things:
                picture.status = "ok"
        if not todo:
            return
        with self.stage.hold("embedder", self.loaders.embedder) as held:
            for done, picture in enumerate(todo):
                note("vectors", done, len(todo))
                try:
                    vectors = held[0].vectors(load_image(picture.path), [t.instance for t in picture.things])
                    for thing, vector in zip(picture.things, vectors, strict=True):
                        thing.vector = vector
                    picture.status = "ok"
                except (InputError, torch.OutOfMemoryError) as error:
                    _fail(picture, error)
                save(result)
            note("vectors", len(todo), len(todo))

    def _pair(self, result: SegmentResult) -> None:
        own = self.settings.pairing
        ours, theirs = ([t for _, t in result.of(role)] for role in ("generated", "context"))
        result.matches = pair(
            _stacked(ours),
            _stacked(theirs),
            [t.label for t in ours],
            [t.label for t in theirs],
            threshold=own.threshold,
            labels=own.labels,  # type: ignore[arg-type]  # checked by the settings
        )


def _ask(
    segmenter: Segmenter, features: Any, labels: list[str], options: dict[str, Any]
) -> tuple[list[Instances], list[Query]]:
    """All labels at once; where one of them is refused, each on its own, so that the others are answered."""
    try:
        answers = segmenter.instances(features, labels, **options)
    except InputError as error:
        if len(labels) == 1:
            return [], [Query(labels[0], status="error", error=str(error))]
        parts = [_ask(segmenter, features, [label], options) for label in labels]
        return [a for answer, _ in parts for a in answer], [q for _, queries in parts for q in queries]
    return answers, [Query(a.prompt, a.presence, n_found=len(a)) for a in answers]


def _count(picture: PictureResult) -> None:
    for query in picture.queries:
        if query.status != "error":
            query.n_kept = sum(thing.label == query.label for thing in picture.things)
            query.status = "ok" if query.n_kept else "absent"


def _open(picture: PictureResult) -> bool:
    """Note size and digest of a picture; False, with the reason noted, if it cannot be read."""
    try:
        image: Image.Image = load_image(picture.path)
    except InputError as error:
        _fail(picture, error)
        return False
    picture.size = (image.height, image.width)
    picture.sha256 = digest(picture.path)
    return True


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fail(picture: PictureResult, error: Exception) -> None:
    picture.status, picture.error = "error", " ".join(str(error).split())
    picture.things, picture.queries = [], []


def _take_over(result: SegmentResult, previous: SegmentResult) -> None:
    """What an earlier run has of the same files, if it was asked for the same labels."""
    if [e.text for e in previous.entities] != [e.text for e in result.entities]:
        return
    known = {(p.sha256, p.role): p for p in previous.pictures if p.status in ("segmented", "ok")}
    for i, picture in enumerate(result.pictures):
        if not picture.path.is_file():
            continue
        old = known.get((digest(picture.path), picture.role))
        if old is not None:
            whole = all(thing.vector is not None for thing in old.things)
            status: Literal["ok", "segmented"] = "ok" if old.status == "ok" and whole else "segmented"
            result.pictures[i] = dataclasses.replace(old, path=picture.path, status=status)


def _stacked(things: Sequence[Thing]) -> torch.Tensor:
    """Vectors (N,D); zeros where one is missing."""
    width = next((len(t.vector) for t in things if t.vector is not None), 1)
    rows = [t.vector if t.vector is not None else torch.zeros(width) for t in things]
    return torch.stack(rows) if rows else torch.zeros(0, width)
