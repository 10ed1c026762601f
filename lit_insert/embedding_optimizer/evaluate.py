"""Score an insertion pipeline on held-out scenes of the procedural world, against controls."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lit_insert import pocket
from lit_insert.data.scenes import SceneDataset
from lit_insert.embedding_optimizer.pipeline import InsertPipeline
from lit_insert.images import to_pil, to_tensor
from lit_insert.metrics.insertion import InsertionJudge, InsertionScore


@dataclass
class Evaluation:
    """Scores by row name, and pictures of the first scenes.

    ``scores`` has a row for "target" (the oracle's own ceiling), "copy source", "insert" and "shuffled reference"
    (scored against the given object), and "shuffled, original" (the same pictures scored against the object that
    was not shown). ``coincidence`` says how often the shown and the other label agree: what a model that follows the
    reference perfectly scores in the last row. ``rows`` holds source, reference, result, other reference, its result,
    target.
    """

    scores: dict[str, dict[str, float]]
    rows: list[list[Image.Image]] = field(default_factory=list)
    coincidence: dict[str, float] = field(default_factory=dict)


def references(dataset: SceneDataset, batch: dict[str, Any]) -> list[Image.Image]:
    """The reference pictures of a batch as images, undoing the CLIP normalisation."""
    mean = torch.tensor(dataset.processor.image_mean).view(3, 1, 1)
    std = torch.tensor(dataset.processor.image_std).view(3, 1, 1)
    return [to_pil((picture * std + mean) * 2 - 1) for picture in batch["object"]]


def evaluate_insertion(
    pipeline: InsertPipeline,
    dataset: SceneDataset,
    *,
    seed: int = 0,
    batch_size: int = 64,
    pictures: int = 12,
    progress: Callable[[int], None] | None = None,
    **settings: Any,
) -> Evaluation:
    """Insert every reference of a dataset into its scene, and the neighbour's reference too.

    Args:
        pipeline: The model.
        dataset: Held-out scenes.
        seed: Sample ``i`` starts from noise seeded with ``seed + i``.
        batch_size: Pairs at a time.
        pictures: Rows of pictures kept.
        progress: Called with the number of pairs done.
        **settings: Passed to the pipeline, such as ``guidance_scale``.
    """
    judge = InsertionJudge.from_pretrained(pocket.path("judge"))
    names = ("target", "copy source", "insert", "shuffled reference", "shuffled, original")
    scores = {name: InsertionScore(judge) for name in names}
    rows: list[list[Image.Image]] = []
    agree = torch.zeros(4)
    for start in range(0, len(dataset), batch_size):
        indices = list(range(start, min(start + batch_size, len(dataset))))
        batch = dataset.batch(indices)
        # The shuffled reference is the next scene's; the last batch wraps to its own first.
        other = {k: v.roll(-1, 0) for k, v in batch.items() if isinstance(v, Tensor)}
        scenes = [to_pil(image) for image in batch["source"]]
        shown, swapped = references(dataset, batch), references(dataset, other)

        def insert(objects: list[Image.Image]) -> Tensor:
            generator = [torch.Generator().manual_seed(seed + i) for i in indices]  # noqa: B023
            out = pipeline(image=scenes, object_image=objects, generator=generator, **settings)  # noqa: B023
            return torch.stack([to_tensor(image) for image in out.images])

        same = batch["label"] == other["label"]
        agree += torch.cat([same, same.all(1, keepdim=True)], dim=1).sum(0)
        result = insert(shown)
        changed = insert(swapped)
        for name, picture, label in (
            ("target", batch["target"], batch["label"]),
            ("copy source", batch["source"], batch["label"]),
            ("insert", result, batch["label"]),
            ("shuffled reference", changed, other["label"]),
            ("shuffled, original", changed, batch["label"]),
        ):
            scores[name].update(batch["source"], picture, label, batch["others"])
        for i in range(len(indices)):
            if len(rows) < pictures:
                pair = [to_pil(x) for x in (result[i], changed[i], batch["target"][i])]
                rows.append([scenes[i], shown[i], pair[0], swapped[i], pair[1], pair[2]])
        if progress:
            progress(len(indices))
    shares = (agree / len(dataset)).tolist()
    return Evaluation(
        {name: score.compute() for name, score in scores.items()},
        rows,
        dict(zip(InsertionScore.NAMES[:4], shares, strict=True)),
    )
