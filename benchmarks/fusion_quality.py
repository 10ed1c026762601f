"""Do objects land where words say, on free space, keep what they are, and leave the rest of the scene alone?

Held-out scenes of the procedural world with a place in words ("right of the blue ring", "bottom left"), judged by
ground truth and by a classifier trained on it; a table over noise levels; what the autoencoder loses; and pictures of
the transformer alone beside a Gaussian fitted to the features. What cannot be measured for want of weights is listed.

``python benchmarks/fusion_quality.py --json``                          the pocket
``python benchmarks/fusion_quality.py --model runs/dit_pocket --segmenter oracle --json``
``python benchmarks/fusion_quality.py --autoencoder runs/rae_pocket --segmenter oracle --n 64``
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from lit_insert import pocket
from lit_insert.data import world
from lit_insert.data.image_scenes import SceneImages
from lit_insert.data.phrase_scenes import PhraseSceneDataset, phrase
from lit_insert.errors import InputError
from lit_insert.fusion.finishing import into_scene
from lit_insert.fusion.latents import LatentSpace, load_autoencoder
from lit_insert.fusion.loading import load_transformer
from lit_insert.fusion.network import DiTDH
from lit_insert.fusion.objective import guided, shift_of
from lit_insert.fusion.objects import FusionObject, FusionSettings
from lit_insert.fusion.pipeline import FusionPipeline
from lit_insert.fusion.sampling import noise_levels, refine
from lit_insert.images import image_grid, save_image, to_pil, to_tensor
from lit_insert.metrics.distribution import GenerationQuality
from lit_insert.metrics.fidelity import PictureFidelity
from lit_insert.metrics.insertion import InsertionJudge, crop_around
from lit_insert.segmenters.base import Features, upright
from lit_insert.segmenters.loading import load_segmenter

SIZE, SIDE = 64, 0.38  # pixels of a scene; an object's diameter there, as in the world's own scenes
STRENGTHS = (0.2, 0.3, 0.4, 0.6, 0.8, 0.95)
STEPS_OF = {"right of": (0, 1), "left of": (0, -1), "above": (-1, 0), "below": (1, 0)}
CORNERS = {"bottom left": (1, 0), "bottom right": (1, 1), "top left": (0, 0), "top right": (0, 1)}
PLACES = ((0, 0), (0, 1), (1, 0), (1, 1))  # row and column of the world's four places
GATES = {"in_region": 0.95, "on_free_space": 0.95, "segmenter_iou": 0.85, "identity": 0.85, "seam": 1.5, "psnr": 28.0}


@dataclass
class Case:
    """A scene, a place in words, and an object."""

    scene: Image.Image
    things: np.ndarray
    labels: np.ndarray
    place: str
    anchor: int | None
    step: tuple[int, int]
    portrait: Image.Image
    mask: np.ndarray
    label: Tensor

    @property
    def words(self) -> str:
        """The object in words."""
        return world.describe(self.label)


class Truth:
    """A segmenter that knows: the ground truth behind the segmenters' protocol."""

    name = "oracle"

    def __init__(self) -> None:
        self.case: Case | None = None

    def to(self, device: Any) -> "Truth":
        """Nothing to move."""
        return self

    def encode(self, image: Any, name: str | None = None) -> Features:
        """Only the size matters."""
        picture = upright(image)
        return Features((picture.height, picture.width), None)

    def heatmaps(self, image: Any, prompts: list[str]) -> Tensor:
        """Exact masks of what a phrase names in the scene, or of the object in its portrait."""
        case = self.case
        assert case is not None
        maps = []
        for prompt in prompts:
            if prompt == case.words:
                maps.append(case.mask)
            elif prompt == "thing":
                maps.append(case.things.max(0))
            else:
                same = [i for i in range(4) if case.labels[i, 0] >= 0 and name_of(case.labels[i]) in prompt]
                maps.append(case.things[same].max(0) if same else np.zeros_like(case.things[0]))
        return torch.from_numpy(np.stack(maps)).float()


def name_of(label: np.ndarray) -> str:
    """Colour and shape of a thing."""
    return phrase((int(label[0]), int(label[1]), -1))


def draw_cases(count: int, split: str) -> list[Case]:
    """The first scenes of a split in which some place can be said in words."""
    data, cases, index = PhraseSceneDataset(split, 1 << 20, size=SIZE, phrases=1, least=1, most=3), [], 0
    while len(cases) < count:
        batch = data.batch(range(index, index + 64))
        numbers = torch.arange(index, index + 64) + SceneImages._FIRST[split]
        portraits, masks, kinds = draw_objects(numbers)
        for i in range(64):
            found = _case(batch, i, portraits[i], masks[i], kinds[i], index + i)
            if found is not None and len(cases) < count:
                cases.append(found)
        index += 64
    return cases


def draw_objects(numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Portraits (N,3,SIZE,SIZE) in [0,1], masks (N,SIZE,SIZE) and labels (N,3) of things for these scenes."""
    scenes = world.lay_out(numbers, seed=5, triples=world.combinations("test", 0.15))
    portrait = world.reference_of(scenes, numbers, seed=5, size=SIZE)
    rows = torch.arange(len(numbers))
    u = world.uniforms(5, numbers, 8, stream=1)
    thing = world.Objects(**{k: v[rows, scenes.chosen][:, None] for k, v in vars(scenes.objects).items()})
    thing.x, thing.y = 0.5 + (u[:, 0:1] - 0.5) * 0.06, 0.5 + (u[:, 1:2] - 0.5) * 0.06
    thing.radius = 0.38 + 0.05 * u[:, 2:3]
    return portrait, world.draw_objects(thing, SIZE)[1][:, 0, 0], scenes.objects.label[rows, scenes.chosen]


def _case(batch: dict[str, Any], i: int, portrait: Tensor, mask: Tensor, label: Tensor, number: int) -> Case | None:
    labels, things = batch["labels"][i].numpy(), batch["things"][i].numpy()
    present = [k for k in range(4) if labels[k, 0] >= 0]
    sayable: list[tuple[str, int | None, tuple[int, int]]] = []
    for words, place in CORNERS.items():
        if PLACES.index(place) not in present:
            sayable.append((words, None, place))
    for k in present:
        twins = [j for j in present if name_of(labels[j]) == name_of(labels[k])]
        for words, (dy, dx) in STEPS_OF.items():
            row, column = PLACES[k][0] + dy, PLACES[k][1] + dx
            free = 0 <= row <= 1 and 0 <= column <= 1 and PLACES.index((row, column)) not in present
            if free and len(twins) == 1:
                sayable.append((f"{words} the {name_of(labels[k])}", k, (dy, dx)))
    if not sayable:
        return None
    words, anchor, step = sayable[number % len(sayable)]
    scene = to_pil(batch["image"][i])
    return Case(scene, things, labels, words, anchor, step, to_pil(portrait * 2 - 1), mask.numpy(), label)


def in_region(case: Case, box: tuple[float, float, float, float]) -> bool:
    """Whether a box (top, left, bottom, right) in pixels lies where the words say."""
    y, x = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    if case.anchor is None:
        return (y >= SIZE / 2) == bool(case.step[0]) and (x >= SIZE / 2) == bool(case.step[1])
    rows, columns = np.nonzero(case.things[case.anchor])
    away = np.array([y - rows.mean(), x - columns.mean()])
    along, across = away @ np.array(case.step), abs(away @ np.array(case.step[::-1]))
    return bool(along > 0 and across <= along)


def measure_fusion(
    pipe: FusionPipeline, cases: list[Case], truth: Truth | None, strengths: list[float], steps: int
) -> tuple[dict[str, float], list[dict[str, float]], list[list[Any]]]:
    """Placement, then a row of figures for each noise level, and pictures of some cases."""
    judge = InsertionJudge.from_pretrained(pocket.path("judge"))
    how = FusionSettings(global_scale=1.0, avoid=("thing",))
    landed, free, shown, unseen = [], [], [], 0
    every = [0.0, *strengths]  # 0: the fused features as they are, before any flow
    rows: dict[float, list[dict[str, float]]] = {t: [] for t in every}
    results: dict[float, list[Tensor]] = {t: [] for t in every}
    for number, case in enumerate(track(cases, "fusing", console=Console(stderr=True))):
        if truth is not None:
            truth.case = case
        thing = FusionObject(case.portrait, case.words, location_prompt=case.place, base_scale=SIDE)
        try:
            artifact = pipe.place(case.scene, [thing], seed=number, settings=how)
        except InputError:  # the segmenter saw no such object in its own picture; counts as placed nowhere
            landed.append(False)
            free.append(False)
            unseen += 1
            continue
        own = artifact.objects.numpy() > 0.5 if artifact.objects is not None else np.zeros((1, 1), bool)
        pixels = np.asarray(Image.fromarray(own).resize((SIZE, SIZE), Image.Resampling.NEAREST))
        ys, xs = np.nonzero(pixels)
        box = (ys.min(), xs.min(), ys.max() + 1, xs.max() + 1) if len(ys) else (0, 0, 1, 1)
        landed.append(in_region(case, box))
        free.append(bool((pixels & (case.things.max(0) > 0)).sum() <= 0.05 * max(pixels.sum(), 1)))
        assert artifact.base is not None
        made = into_scene(pipe._space(pipe.device), artifact, artifact.base, case.scene, [artifact.fused])
        if pipe._transformer is not None:
            out = pipe.refine([artifact], base_images=[case.scene], strengths=strengths, num_inference_steps=steps)[0]
            made += list(zip(out.images, out.reports, strict=True))
        centre = torch.tensor([[(box[1] + box[3]) / 2, (box[0] + box[2]) / 2]])
        for strength, (picture, report) in zip(every, made, strict=False):
            result = to_tensor(picture)[None]
            results[strength].append(result)
            named = torch.stack([head.argmax(-1) for head in judge(crop_around(result, centre))], 1)[0]
            rows[strength].append(
                {
                    "shape": float(named[0] == case.label[0]),
                    "colour": float(named[1] == case.label[1]),
                    "identity": float(bool((named[:2] == case.label[:2]).all())),
                    "cosine_to_object": report.cosine_to_object,
                    "cosine_to_scene": report.cosine_to_scene,
                    "seam": report.seam_gradient_ratio if report.seam_gradient_ratio is not None else 1.0,
                    "background_max_abs_diff": float(report.background_max_abs_diff),
                }
            )
        if number < 8:
            shown.append([case.scene, case.portrait, *(picture for picture, _ in made)])
    placed = {"in_region": float(np.mean(landed)), "on_free_space": float(np.mean(free)), "not_found": float(unseen)}
    table = []
    real = torch.cat([to_tensor(c.scene)[None] for c in cases])
    for strength in every:
        if not rows[strength]:
            continue
        mean = {k: float(np.mean([r[k] for r in rows[strength]])) for k in rows[strength][0]}
        for key in ("shape", "colour", "identity"):
            mean[key] *= len(rows[strength]) / len(cases)  # objects placed nowhere are wrong
        mean["background_max_abs_diff"] = max(r["background_max_abs_diff"] for r in rows[strength])
        quality = GenerationQuality()
        quality.update(real, real=True)
        quality.update(torch.cat(results[strength]), real=False)
        table.append({"strength": strength, **mean, "naturalness_fid": quality.compute()["fid"]})
    return placed, table, shown


def measure_segmenter(segmenter: Any, cases: list[Case]) -> dict[str, float]:
    """IoU of objects found in their portraits by their words, and by another object's."""
    right, wrong = [], []
    for case, other in zip(cases, cases[1:] + cases[:1], strict=True):
        if isinstance(segmenter, Truth):
            segmenter.case = case
        heats = segmenter.heatmaps(segmenter.encode(case.portrait), [case.words, other.words]).numpy() > 0.5
        truth = case.mask > 0.5
        found = [float((h & truth).sum() / max((h | truth).sum(), 1)) for h in heats]
        right.append(found[0])
        if not torch.equal(case.label[:2], other.label[:2]):
            wrong.append(found[1])
    return {"segmenter_iou": float(np.mean(right)), "segmenter_iou_wrong_word": float(np.mean(wrong))}


def measure_autoencoder(space: LatentSpace, count: int, split: str) -> dict[str, float]:
    """What an autoencoder keeps of held-out scenes."""
    pixels, _ = SceneImages(split, count=count).draw(range(count), space.output_size)
    pictures, fidelity = pixels.float() / 255, PictureFidelity()
    for part in pictures.split(64):
        made = space.decode(space.encode(part)).clamp(0, 1)
        fidelity.update(made * 2 - 1, part * 2 - 1)
    return {k: float(v) for k, v in fidelity.compute().items() if k != "l1"}


def measure_transformer(space: LatentSpace, net: DiTDH, count: int, split: str, steps: int, scale: float) -> dict:
    """Class-conditional pictures beside a Gaussian fitted to the features: distances, and whether the class is seen."""
    judge = InsertionJudge.from_pretrained(pocket.path("judge"))
    pixels, labels = SceneImages(split, count=count, labels="shape").draw(range(count), space.output_size)
    real, label = pixels.float() / 255, torch.tensor(labels)
    features = torch.cat([space.encode(part) for part in real.split(64)])
    generator = torch.Generator().manual_seed(0)
    flat = features.flatten(1)
    mean, noise = flat.mean(0), torch.randn(count, count, generator=generator)
    gaussian = (mean + noise @ (flat - mean) / (count - 1) ** 0.5).view_as(features)
    plain = lambda x, t, c: net(x, t, c).sample  # noqa: E731
    velocity = guided(plain, plain, scale, lambda c: torch.full_like(c, net.null_class)) if net.null_class else plain
    levels, made = noise_levels(1.0, steps, shift_of(space.shape)), []
    asked = label if net.null_class else None
    with torch.no_grad():
        for start in range(0, count, 64):
            e = torch.randn(len(label[start : start + 64]), *space.shape, generator=generator)
            told = None if asked is None else asked[start : start + 64]
            made.append(refine(velocity, e, e, levels, label=told))
    found: dict[str, float] = {}
    for name, z in (("samples", torch.cat(made)), ("gaussian", gaussian), ("real", features)):
        pictures = torch.cat([space.decode(part).clamp(0, 1) for part in z.split(64)]) * 2 - 1
        quality = GenerationQuality()
        quality.update(real * 2 - 1, real=True)
        quality.update(pictures, real=False)
        found[f"fid_{name}"] = quality.compute()["fid"]
        seen = shapes_seen(judge, pictures)
        found[f"class_seen_{name}"] = float(seen[torch.arange(count), label].float().mean())
        found[f"other_class_seen_{name}"] = float(seen[torch.arange(count), (label + 3) % 6].float().mean())
    return found


def shapes_seen(judge: InsertionJudge, pictures: Tensor) -> Tensor:
    """Which of the six shapes the judge is sure of at any of the world's four places, (N,6) bool."""
    side = pictures.shape[-1]
    sure = torch.zeros(len(pictures), 6)
    for y, x in PLACES:
        centre = torch.tensor([[0.26 + 0.48 * x, 0.26 + 0.48 * y]]).expand(len(pictures), -1) * side
        with torch.no_grad():
            sure = torch.maximum(sure, judge(crop_around(pictures, centre))[0].softmax(-1))
    return sure > 0.6


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="pocket", help="pocket, or a folder with autoencoder and transformer")
    parser.add_argument("--autoencoder", help="instead of the model's")
    parser.add_argument("--transformer", help="instead of the model's")
    parser.add_argument("--segmenter", default="pocket", help="pocket, clipseg, sam3, or oracle: ground truth")
    parser.add_argument("--n", type=int, default=256, help="scenes")
    parser.add_argument("--split", default="test", choices=["val", "test"], help="val for choosing settings")
    parser.add_argument("--steps", type=int, default=30, help="from pure noise")
    parser.add_argument("--strengths", type=float, nargs="+", default=list(STRENGTHS))
    parser.add_argument("--guidance_scale", type=float, default=3.0, help="of the transformer's own pictures")
    parser.add_argument("--grid", type=Path, help="also write a picture of some cases")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    try:
        run(args)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error


def load(args: argparse.Namespace) -> tuple[LatentSpace | None, DiTDH | None, Any, list[str]]:
    """What there is of autoencoder, transformer and segmenter, and why the others are not."""
    missing, found = [], []
    for name, given, loader in (
        ("autoencoder", args.autoencoder or args.model, load_autoencoder),
        ("transformer", args.transformer or (None if args.autoencoder else args.model), load_transformer),
    ):
        try:
            if given is None:
                raise InputError("give --transformer")
            found.append(loader(given))
        except InputError as error:
            found.append(None)
            missing.append(f"{name}: {error}")
    segmenter: Any = Truth()
    if args.segmenter != "oracle":
        try:
            segmenter = load_segmenter(args.segmenter)
        except InputError as error:
            missing.append(f"segmenter: {error}; ground truth is used for placing")
    return (LatentSpace(found[0]) if found[0] is not None else None), found[1], segmenter, missing


def run(args: argparse.Namespace) -> None:
    """Measure what can be, and print."""
    began = time.perf_counter()
    space, net, segmenter, missing = load(args)
    cases = draw_cases(args.n, args.split)
    scores: dict[str, Any] = {}
    table: list[dict[str, float]] = []
    if not isinstance(segmenter, Truth):
        scores |= measure_segmenter(segmenter, cases)
    if space is not None:
        scores |= measure_autoencoder(space, args.n, args.split)
        pipe = FusionPipeline(space, net, segmenter=segmenter)
        truth = segmenter if isinstance(segmenter, Truth) else None
        placed, table, shown = measure_fusion(pipe, cases, truth, args.strengths, args.steps)
        scores |= placed
        if args.grid and shown:
            heading = ["scene", "object", "before the flow", *(f"t {t:g}" for t in args.strengths)]
            save_image(image_grid(shown, captions=heading, cell=96), args.grid)
        if net is not None:
            scores |= measure_transformer(space, net, args.n, args.split, args.steps, args.guidance_scale)
    near = next((row for row in table if abs(row["strength"] - 0.3) < 1e-9), None)
    judged = scores | ({k: near[k] for k in ("identity", "seam")} if near else {})
    passes = {k: bool(judged[k] <= g if k == "seam" else judged[k] >= g) for k, g in GATES.items() if k in judged}
    show(scores, table, missing, passes)
    if args.json:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        about = {"benchmark": "fusion_quality", "settings": settings, "seconds": round(time.perf_counter() - began, 1)}
        print(json.dumps({**about, "scores": scores, "strengths": table, "passes": passes, "missing": missing}))


def show(scores: dict[str, Any], table: list[dict[str, float]], missing: list[str], passes: dict[str, bool]) -> None:
    """Print what was measured, and what was not."""
    console = Console()
    figures = Table(title="fusion", show_header=False)
    for name, value in scores.items():
        figures.add_row(name, f"{value:.4g}", {True: "passes", False: "FAILS"}.get(passes.get(name), ""))  # type: ignore[arg-type]
    console.print(figures)
    if table:
        rows = Table(*table[0])
        for row in table:
            rows.add_row(*(f"{v:.4g}" for v in row.values()))
        console.print(rows)
    for line in missing:
        console.print(f"not measured: {line}", markup=False)


if __name__ == "__main__":
    main()
