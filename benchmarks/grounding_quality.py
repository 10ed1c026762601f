"""Does the pipeline find what a phrase names, see what is absent, and know which thing became which?

Held-out scenes of two to four things with exact masks. "instances": every phrase asked of its scene; a true thing is
found where a mask overlaps it by more than half, F1 over all phrases, beside the same masks judged against another
phrase of the scene, and all things given for any phrase. "absent": phrases that name nothing in the scene and get
nothing. "pairing": a scene and its version with places, sizes, angles, patterns and backdrop drawn anew; once with
exact masks, once with those that were found. "entities": noun phrases of scene captions and of the hand-labelled
prompts beside this file.

``python benchmarks/grounding_quality.py --json``
"""

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lit_insert.artifacts.resolve import resolve_model
from lit_insert.data import world
from lit_insert.data.caption_scenes import CaptionSceneDataset
from lit_insert.data.phrase_scenes import Layout, PhraseSceneDataset, draw, named, rearrange
from lit_insert.data.scenes import SceneDataset
from lit_insert.grounding.embedders import Embedder, load_embedder
from lit_insert.grounding.filter import filter_labels, normal
from lit_insert.grounding.nouns import noun_phrases
from lit_insert.grounding.pairing import pair
from lit_insert.images import to_pil
from lit_insert.segmenters.base import Instance, Instances, Segmenter
from lit_insert.segmenters.loading import load_segmenter

PROMPTS = Path(__file__).with_name("grounding_prompts.json")


@dataclass
class Count:
    """Hits, false alarms and misses of instances."""

    hits: int = 0
    wrong: int = 0
    missed: int = 0
    overlaps: list[float] = field(default_factory=list)

    def add(self, found: list[np.ndarray], truth: list[np.ndarray]) -> None:
        """Match masks, surest first, to true ones that they overlap by more than half."""
        free = list(range(len(truth)))
        for mask in found:
            overlap = {k: (mask & truth[k]).sum() / max(1, (mask | truth[k]).sum()) for k in free}
            best = max(overlap, key=lambda k: overlap[k], default=None)
            if best is not None and overlap[best] > 0.5:
                free.remove(best)
                self.hits += 1
                self.overlaps.append(float(overlap[best]))
            else:
                self.wrong += 1
        self.missed += len(free)

    def scores(self) -> dict[str, float]:
        """F1, precision, recall, and mean overlap of the hits."""
        return {
            "f1": 2 * self.hits / max(1, 2 * self.hits + self.wrong + self.missed),
            "precision": self.hits / max(1, self.hits + self.wrong),
            "recall": self.hits / max(1, self.hits + self.missed),
            "overlap": float(np.mean(self.overlaps)) if self.overlaps else 0.0,
        }


class Cleaned:
    """A segmenter whose smallest specks are left out, as the pipeline does.

    Args:
        segmenter: The segmenter.
        least: Smallest area, of the picture.
    """

    def __init__(self, segmenter: Segmenter, least: float) -> None:
        self.segmenter, self.least = segmenter, least

    def instances(self, image: Any, prompts: list[str], **options: Any) -> list[Instances]:
        """What is found, without specks."""
        least = self.least * image.width * image.height
        answers = self.segmenter.instances(image, prompts, **options)
        return [Instances(a.prompt, a.presence, [t for t in a if t.area >= least]) for a in answers]


def full_name(label: torch.Tensor) -> str:
    """What a caption calls a thing, without its article."""
    return world.describe(label).split(" ", 1)[1]


def instances(segmenter: Cleaned, data: PhraseSceneDataset, n: int, options: dict[str, float]) -> dict[str, Any]:
    """Scores of phrases, of the controls, and of absence."""
    model, other, everything = Count(), Count(), Count()
    absent, quiet = 0, 0
    for i in track(range(n), "phrases", transient=True):
        sample = data[i]
        things = [t.numpy() > 0.5 for t in sample["things"]]
        present = sample["labels"][:, 0] >= 0
        match = named(sample["kinds"][None], sample["labels"][None], present[None])[0]
        answers = segmenter.instances(to_pil(sample["image"]), sample["phrases"].split(";"), **options)
        truths = [[things[k] for k in range(4) if row[k]] for row in match]
        for p, (answer, truth) in enumerate(zip(answers, truths, strict=True)):
            found = [thing.mask for thing in answer]
            model.add(found, truth)
            other.add(found, truths[(p + 1) % len(truths)])
            everything.add([things[k] for k in range(4) if present[k]], truth)
            if not truth:
                absent += 1
                quiet += not found
    return {
        "model": model.scores(),
        "control: another phrase": other.scores(),
        "control: all things": everything.scores(),
        "absent": quiet / max(1, absent),
        "phrases": n * data.phrases,
        "absent_phrases": absent,
    }


def exact(things: torch.Tensor, present: torch.Tensor) -> list[Instance]:
    """Instances of true masks (4,H,W)."""
    made = [Instance.from_mask(t.numpy() > 0.5, 1.0) for t, p in zip(things, present, strict=True) if p]
    return [m for m in made if m is not None]


def found_things(segmenter: Cleaned, image: Any, labels: list[str], options: dict[str, float]) -> list[Instance]:
    """What is found for labels; a thing that two of them name counts once."""
    from lit_insert.grounding.nms import Labelled, suppress

    answers: list[Instances] = segmenter.instances(image, labels, **options)
    kept = suppress([Labelled(a.prompt, thing) for a in answers for thing in a])
    return [k.instance for k in kept]


def which(thing: Instance, truth: list[Instance]) -> int | None:
    """The true thing that a mask overlaps by more than half."""
    for i, own in enumerate(truth):
        if (thing.mask & own.mask).sum() > 0.5 * (thing.mask | own.mask).sum():
            return i
    return None


def pairing(
    segmenter: Cleaned | None, embedder: Embedder, data: PhraseSceneDataset, n: int, options: dict[str, float]
) -> dict[str, float]:
    """Share of the rearranged scene's things that are led back to a thing of the same kind in the scene."""
    index = torch.arange(n) + SceneDataset._FIRST[data.split]
    right = {"exact": 0, "found": 0}
    total = 0
    for i in track(range(n), "pairing", transient=True):
        before: Layout = data.lay_out(index[i : i + 1])
        after, _ = rearrange(before, index[i : i + 1], seed=data.seed)
        pictures, truths, kinds = [], [], []
        for layout in (before, after):
            image, things = draw(layout, data.size)
            pictures.append(to_pil(image[0]))
            truths.append(exact(things[0], layout.present[0]))
            kinds.append([tuple(k.tolist()) for k in layout.scenes.objects.label[0][layout.present[0]]])
        total += len(truths[1])
        names = list(dict.fromkeys(full_name(torch.tensor(k)) for k in kinds[0]))
        masks = {"exact": truths}
        if segmenter is not None:
            masks["found"] = [found_things(segmenter, p, names, options) for p in pictures]
        for name, own in masks.items():
            vectors = [embedder.vectors(p, m) for p, m in zip(pictures, own, strict=True)]
            texts = [["thing"] * len(m) for m in own]
            matches = pair(vectors[1], vectors[0], texts[1], texts[0], threshold=0.5, labels="any")
            done = set()
            for thing, match in zip(own[1], matches, strict=True):
                there = which(thing, truths[1])
                here = None if match.context is None else which(own[0][match.context], truths[0])
                if there is not None and here is not None and there not in done and kinds[1][there] == kinds[0][here]:
                    done.add(there)
            right[name] += len(done)
    scores = {"exact masks": right["exact"] / total}
    return scores if segmenter is None else scores | {"found masks": right["found"] / total}


def recall(prompts: list[tuple[str, list[str]]]) -> float:
    """Share of the things that the noun phrases name word for word, articles and case aside."""
    hits = total = 0
    for prompt, things in prompts:
        found = {normal(label) for label in filter_labels(noun_phrases(prompt))}
        hits += sum(normal(thing) in found for thing in things)
        total += len(things)
    return hits / total


def entities(split: str, n: int) -> dict[str, float]:
    """Recall on scene captions and on the hand-labelled prompts."""
    batch = CaptionSceneDataset(split, n).batch(range(n))
    captions = [
        (caption, [full_name(label) for label in labels if label[0] >= 0])
        for caption, labels in zip(batch["caption"], batch["labels"], strict=True)
    ]
    prompts = [(row["prompt"], row["things"]) for row in json.loads(PROMPTS.read_text(encoding="utf-8"))]
    return {"scene captions": recall(captions), "real prompts": recall(prompts), "prompts": len(prompts)}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--model", default="pocket", help="segmenter: pocket, a run or an exported folder; none for none"
    )
    parser.add_argument("--n", type=int, default=256, help="number of scenes")
    parser.add_argument("--split", choices=["val", "test"], default="test")
    parser.add_argument("--size", type=int, default=64, help="of the scenes, pixels")
    parser.add_argument("--phrases", type=int, default=6, help="a scene")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--mask_threshold", type=float, default=0.5)
    parser.add_argument(
        "--min_area", type=float, default=0.005, help="of a scene; smaller specks go, as in pocket.yaml"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()

    began = time.perf_counter()
    options = {"threshold": args.threshold, "mask_threshold": args.mask_threshold}
    segmenter = None if args.model == "none" else Cleaned(load_segmenter("pocket", args.model), args.min_area)
    embedder = load_embedder("pocket", resolve_model("pocket", default_pocket="judge").path)
    data = PhraseSceneDataset(args.split, args.n, size=args.size, phrases=args.phrases, least=2)
    scores: dict[str, Any] = {"entities": entities(args.split, args.n)}
    scores["pairing"] = pairing(segmenter, embedder, data, args.n, options)
    if segmenter is not None:
        scores["instances"] = instances(segmenter, data, args.n, options)
    table = Table(title=f"{args.model}: {args.n} {args.split} scenes of {args.size} px")
    table.add_column("")
    table.add_column("", justify="right")
    for part, values in scores.items():
        for name, value in values.items():
            shown = ", ".join(f"{k} {v:.3f}" for k, v in value.items()) if isinstance(value, dict) else f"{value:.4g}"
            table.add_row(f"{part}: {name}", shown)
    Console(width=120).print(table)
    if args.json:
        record = {"benchmark": "grounding_quality", "settings": vars(args), "scores": scores}
        seconds = round(time.perf_counter() - began, 1)
        print(json.dumps({**record, "seconds": seconds, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
