"""The procedural world: coloured, textured shapes standing on marked places over varied backgrounds.

Everything about sample ``i`` is a pure function of ``(seed, i)``: no state, no order, no worker matters.
Drawing is batched torch on signed distances, about half a millisecond an image at 32 px.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lit_insert.errors import InputError

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
TEXTURES = ("solid", "striped", "checked")
BACKGROUNDS = ("gradient", "waves", "tiles", "horizon")
_RGB = torch.tensor(
    [
        [0.90, 0.12, 0.14],
        [0.98, 0.55, 0.08],
        [0.97, 0.92, 0.15],
        [0.13, 0.70, 0.20],
        [0.12, 0.85, 0.90],
        [0.15, 0.25, 0.92],
        [0.66, 0.15, 0.80],
        [0.97, 0.97, 0.97],
    ]
)
CELLS = torch.tensor([[0.26, 0.26], [0.74, 0.26], [0.26, 0.74], [0.74, 0.74]])
ABSENT, VACANT, OCCUPIED = 0, 1, 2
_DRAWS = 80
_OBJECT_DRAWS = 8


def uniforms(seed: int, index: Tensor, count: int, stream: int = 0) -> Tensor:
    """Counter-based uniform numbers (SplitMix64), one row per index.

    Args:
        seed: Any integer; selects the world.
        index: Sample numbers, int64, shape (N,).
        count: Numbers per sample.
        stream: Selects independent numbers for the same sample.

    Returns:
        float32 in [0, 1), shape (N, count); bit-equal whatever else is in the batch.
    """
    with np.errstate(over="ignore"):
        row: np.ndarray = index.numpy().astype(np.uint64)[:, None]
        start = np.uint64((seed * 0x9E3779B97F4A7C15 + stream * 0xD1B54A32D192ED03) % 2**64)
        counter: np.ndarray = row * np.uint64(count) + np.arange(count, dtype=np.uint64)
        z: np.ndarray = counter * np.uint64(0x9E3779B97F4A7C15) + start
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return torch.from_numpy((z >> np.uint64(40)).astype(np.float32) / np.float32(2**24))


def combinations(split: str, held_out: float = 0.15, seed: int = 0) -> Tensor:
    """The (shape, colour, texture) triples that a split may insert.

    ``train`` and the held-out splits are disjoint; ``val`` and ``test`` are disjoint too. Scenes of any split may
    *contain* any object: what is held out is the thing to be inserted.

    Args:
        split: "train", "val" or "test".
        held_out: Fraction of the triples kept from training, shared by val and test; 0 lets every split insert
            everything.
        seed: Selects which triples are held out.

    Returns:
        int64 (M, 3), each row (shape, colour, texture).

    Raises:
        ValueError: If the split is unknown.
    """
    every = torch.cartesian_prod(torch.arange(len(SHAPES)), torch.arange(len(COLORS)), torch.arange(len(TEXTURES)))
    order = uniforms(seed, torch.arange(len(every)), 1, stream=7)[:, 0].argsort()
    away = round(held_out * len(every))
    bounds = {"val": (0, away // 2), "test": (away // 2, away), "train": (away, len(every))}
    if split not in bounds:
        raise ValueError(f"split is {split!r}; use one of train, val, test")
    if not 0 <= held_out <= 0.5 or away == 1:
        raise InputError(f"held_out is {held_out}; give 0, or enough for two kinds up to 0.5")
    if not away:
        return every
    return every[order[slice(*bounds[split])]]


def describe(label: Tensor) -> str:
    """Name of one (shape, colour, texture) triple, e.g. "a striped red circle"."""
    shape, color, texture = (int(v) for v in label)
    prefix = "" if texture == 0 else f"{TEXTURES[texture]} "
    words = f"{prefix}{COLORS[color]} {SHAPES[shape]}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@dataclass
class Objects:
    """A set of objects, K per scene: attributes (N,K,3) int64; geometry (N,K) float32 in units of the image side."""

    label: Tensor
    x: Tensor
    y: Tensor
    radius: Tensor
    angle: Tensor
    phase: Tensor


@dataclass
class Scenes:
    """N scenes before drawing.

    ``state`` (N,4) says of each place whether it is absent, vacant or occupied *in the target*; ``chosen`` (N,) is
    the place that the inserted object takes. ``background`` (N, 12) holds the draws behind the backdrop.
    """

    objects: Objects
    state: Tensor
    chosen: Tensor
    background: Tensor


def lay_out(index: Tensor, *, seed: int, triples: Tensor, jitter: float = 0.03, rotation: float = 0.3) -> Scenes:
    """Decide what stands where in scenes number ``index``.

    Args:
        index: Scene numbers, int64 (N,).
        seed: World seed.
        triples: (M,3) triples from which the inserted object is drawn; the others are drawn from all triples.
        jitter: Largest shift of a place from its grid position, in image sides.
        rotation: Largest rotation of an object, radians.

    Returns:
        The layout; each scene has one place to insert at, 0-3 other objects and 0-3 further vacant places.
    """
    u = uniforms(seed, index, _DRAWS)
    n = len(index)
    background, rest = u[:, :12], u[:, 12:]
    per_object = rest[:, : 4 * _OBJECT_DRAWS].reshape(n, 4, _OBJECT_DRAWS)
    state_draw, chosen_draw, triple_draw = rest[:, 32:36], rest[:, 36], rest[:, 37]
    sizes = torch.tensor([len(SHAPES), len(COLORS), len(TEXTURES)])
    label = (per_object[..., :3] * sizes).long()
    chosen = (chosen_draw * 4).long()
    rows = torch.arange(n)
    label[rows, chosen] = triples[(triple_draw * len(triples)).long()]
    state = torch.where(state_draw < 0.3, ABSENT, torch.where(state_draw < 0.52, VACANT, OCCUPIED))
    state[rows, chosen] = OCCUPIED
    shift = (per_object[..., 3:5] * 2 - 1) * jitter
    objects = Objects(
        label=label,
        x=CELLS[:, 0] + shift[..., 0],
        y=CELLS[:, 1] + shift[..., 1],
        radius=0.175 + 0.035 * per_object[..., 5],
        angle=(per_object[..., 6] * 2 - 1) * rotation,
        phase=per_object[..., 7] * 2 * math.pi,
    )
    return Scenes(objects=objects, state=state, chosen=chosen, background=background)


def _grid(size: int) -> tuple[Tensor, Tensor]:
    axis = (torch.arange(size) + 0.5) / size
    return axis[None, None, :], axis[None, :, None]


def _signed_distances(px: Tensor, py: Tensor) -> Tensor:
    """Distances to the six outlines in the object's own frame (unit radius, y down): (S,N,K,H,W)."""
    norm = torch.hypot(px, py)
    ax, ay = px.abs(), py.abs()
    circle = norm - 0.95
    square = torch.maximum(ax, ay) - 0.80
    triangle = torch.maximum(0.866 * ax - 0.5 * (py + 0.15), py + 0.15 - 0.08) - 0.52
    fold = torch.remainder(torch.atan2(px, -py) + math.pi / 5, 2 * math.pi / 5) - math.pi / 5
    inner, tip = 0.45, 1.08
    wx, wy = norm * torch.cos(fold), norm * torch.sin(fold).abs()
    ix, iy = inner * math.cos(math.pi / 5), inner * math.sin(math.pi / 5)
    length = math.hypot(tip - ix, iy)
    star = ((wx - tip) * iy + wy * (tip - ix)) / length
    cross = torch.minimum(torch.maximum(ax - 0.95, ay - 0.32), torch.maximum(ax - 0.32, ay - 0.95))
    ring = (norm - 0.68).abs() - 0.27
    return torch.stack([circle, square, triangle, star, cross, ring])


def draw_objects(objects: Objects, size: int) -> tuple[Tensor, Tensor]:
    """Colour and coverage of every object on its own canvas.

    Args:
        objects: N scenes of K objects.
        size: Canvas side in pixels.

    Returns:
        rgb (N,K,3,size,size) in [0,1] and coverage (N,K,1,size,size) in [0,1], anti-aliased over one pixel.
    """
    gx, gy = _grid(size)
    dx = gx[:, None] - objects.x[..., None, None]
    dy = gy[:, None] - objects.y[..., None, None]
    cos, sin = torch.cos(objects.angle)[..., None, None], torch.sin(objects.angle)[..., None, None]
    radius = objects.radius[..., None, None]
    px, py = (cos * dx + sin * dy) / radius, (cos * dy - sin * dx) / radius
    shape = objects.label[..., 0]
    distance = _signed_distances(px, py).gather(0, shape[None, ..., None, None].expand(1, *px.shape))[0]
    coverage = (0.5 - distance * radius * size).clamp(0, 1)
    phase = objects.phase[..., None, None]
    waves = torch.sin(2 * math.pi * px * 1.3 + phase)
    checks = torch.sin(2 * math.pi * px * 1.1 + phase) * torch.sin(2 * math.pi * py * 1.1 + phase)
    texture = objects.label[..., 2][..., None, None]
    pattern = torch.where(texture == 1, waves, checks * 2)
    ink = torch.where(texture == 0, 1.0, 0.76 + 0.24 * (pattern * 2.5).clamp(-1, 1))
    light = (1.0 - 0.10 * (px + py)).clamp(0.8, 1.15) * ink
    rgb = (_RGB[objects.label[..., 1]][..., None, None] * light[..., None, :, :]).clamp(0, 1)
    return rgb, coverage[..., None, :, :]


def draw_background(draws: Tensor, size: int) -> Tensor:
    """Backdrops (N,3,size,size) in [0,1] from (N,12) uniform draws: four kinds of muted two-colour patterns."""
    gx, gy = _grid(size)
    kind = (draws[:, 0] * len(BACKGROUNDS)).long()[:, None, None]
    grey = 0.28 + 0.44 * draws[:, 1:3]
    tint = (draws[:, 3:9].reshape(-1, 2, 3) - 0.5) * 0.22
    colors = (grey[..., None] + tint)[..., None, None]
    angle = (draws[:, 9] * 2 * math.pi)[:, None, None]
    along = (gx - 0.5) * torch.cos(angle) + (gy - 0.5) * torch.sin(angle)
    across = (gy - 0.5) * torch.cos(angle) - (gx - 0.5) * torch.sin(angle)
    frequency = (1.0 + 2.0 * draws[:, 10])[:, None, None]
    gradient = along * 0.7 + 0.5
    waves = 0.5 + 0.5 * torch.sin(2 * math.pi * frequency * along)
    tiles = 0.5 + 0.5 * (8 * torch.sin(math.pi * frequency * along) * torch.sin(math.pi * frequency * across)).tanh()
    horizon = ((gy - 0.3 - 0.4 * draws[:, 11][:, None, None]) * size / 2).clamp(-0.5, 0.5) + 0.5
    horizon = horizon.expand(len(draws), size, size)
    mix = torch.where(kind == 0, gradient, torch.where(kind == 1, waves, torch.where(kind == 2, tiles, horizon)))
    mix = mix[:, None]
    return (colors[:, 0] * (1 - mix) + colors[:, 1] * mix).clamp(0, 1)


def draw_places(image: Tensor, scenes: Scenes) -> Tensor:
    """Darken the soft discs on which things stand or may stand; (N,3,H,W) in, the same out."""
    size = image.shape[-1]
    gx, gy = _grid(size)
    dx = gx[:, None] - scenes.objects.x[..., None, None]
    dy = gy[:, None] - scenes.objects.y[..., None, None]
    disc = (0.5 - (torch.hypot(dx, dy) - 0.19) * size * 0.5).clamp(0, 1)
    shade = (disc * (scenes.state != ABSENT)[..., None, None]).amax(1, keepdim=True)
    return image * (1 - 0.38 * shade)


def compose(image: Tensor, rgb: Tensor, coverage: Tensor, present: Tensor) -> Tensor:
    """Paint the present objects (N,K bool) over the image, in order of place."""
    for k in range(rgb.shape[1]):
        alpha = coverage[:, k] * present[:, k, None, None, None]
        image = image * (1 - alpha) + rgb[:, k] * alpha
    return image


def reference_of(scenes: Scenes, index: Tensor, *, seed: int, size: int, rotation: float = 0.0) -> Tensor:
    """A portrait of each scene's inserted object on a plain backdrop, (N,3,size,size) in [0,1].

    Scale and position differ from those in the scene, so pixels cannot be copied.

    Args:
        scenes: The layouts.
        index: Their numbers, int64 (N,).
        seed: World seed.
        size: Side in pixels.
        rotation: Largest extra rotation against the scene, radians.
    """
    rows = torch.arange(len(index))
    u = uniforms(seed, index, 8, stream=1)
    chosen = Objects(**{name: value[rows, scenes.chosen][:, None] for name, value in vars(scenes.objects).items()})
    chosen.x, chosen.y = 0.5 + (u[:, 0:1] - 0.5) * 0.06, 0.5 + (u[:, 1:2] - 0.5) * 0.06
    chosen.radius = 0.38 + 0.05 * u[:, 2:3]
    chosen.angle = chosen.angle + (u[:, 3:4] * 2 - 1) * rotation
    rgb, coverage = draw_objects(chosen, size)
    backdrop = (0.42 + 0.16 * u[:, 4])[:, None, None, None].expand(-1, 3, size, size)
    return compose(backdrop, rgb, coverage, torch.ones(len(index), 1, dtype=torch.bool))
