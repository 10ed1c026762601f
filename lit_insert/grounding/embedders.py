"""A vector for each thing, by which it is known again in another picture."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from lit_insert.artifacts.weights import load_component
from lit_insert.errors import InputError
from lit_insert.images import Picture
from lit_insert.metrics.insertion import CROP, InsertionJudge
from lit_insert.segmenters.base import Instance, upright

_BATCH = 8  # crops that go through a network at once
_SMALLEST = 0.02  # share of a patch that counts where no patch lies mostly inside


class Embedder(Protocol):
    """Makes vectors of things."""

    name: str

    def to(self, device: "str | torch.device") -> "Embedder":
        """Move to a device; returns the embedder."""
        ...

    def vectors(self, image: Picture, things: Sequence[Instance]) -> Tensor:
        """Unit vectors (N,D), float32 on the CPU; zeros for a mask without a pixel."""
        ...


class PatchEmbedder:
    """Mean of a vision transformer's patch tokens inside the mask (DINOv2, DINOv3).

    The picture goes through the network once, whole and with its aspect. Things that cover too few patches are cut out
    with some surroundings and looked at on their own.

    Args:
        model: A transformers vision model whose last tokens are the patches.
        mean: Of the three channels in training.
        std: Their deviations.
        name: What to call it in results.
        image_size: Longer side that pictures are brought to, in pixels.
        crop_size: Side of the cut-outs.
        min_patches: A thing with fewer patches that lie mostly inside it is cut out.
    """

    def __init__(
        self,
        model: Any,
        mean: Sequence[float],
        std: Sequence[float],
        name: str = "dinov3",
        image_size: int = 512,
        crop_size: int = 224,
        min_patches: int = 4,
    ) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.name, self.min_patches = name, min_patches
        patch = model.config.patch_size
        self.patch = int(patch if isinstance(patch, int) else patch[0])
        self.extra = 1 + int(getattr(model.config, "num_register_tokens", 0))
        self.image_size, self.crop_size = image_size, self._whole(crop_size)
        self._mean, self._std = list(mean), list(std)

    def to(self, device: str | torch.device) -> Self:
        """Move to a device; returns the embedder."""
        self.model.to(device)
        return self

    def _whole(self, side: float) -> int:
        return max(1, round(side / self.patch)) * self.patch

    @torch.no_grad()
    def vectors(self, image: Picture, things: Sequence[Instance]) -> Tensor:
        """Mean patch tokens inside each mask; see the protocol."""
        picture = upright(image)
        found = torch.zeros(len(things), int(self.model.config.hidden_size))
        if not things:
            return found
        scale = self.image_size / max(picture.size)
        size = [self._whole(picture.height * scale), self._whole(picture.width * scale)]
        tokens = self._tokens([picture], size)[0]
        small = []
        for i, thing in enumerate(things):
            share = self._share(thing.mask, size)
            if int((share > 0.5).sum()) < self.min_patches:
                small.append(i)
            else:
                found[i] = tokens[share.flatten() > 0.5].mean(0)
        size = [self.crop_size, self.crop_size]
        for start in range(0, len(small), _BATCH):
            some = [i for i in small[start : start + _BATCH] if things[i].mask.any()]
            if not some:
                continue
            windows = [window(things[i]) for i in some]
            crops = self._tokens([picture.crop(w) for w in windows], size)
            for i, w, own in zip(some, windows, crops, strict=True):
                share = self._share(_cut(things[i].mask, w), size).flatten()
                inside = share > 0.5 if bool((share > 0.5).any()) else share >= min(_SMALLEST, float(share.max()))
                found[i] = own[inside].mean(0)
        return torch.nn.functional.normalize(found, dim=-1)

    def _tokens(self, pictures: Sequence[Image.Image], size: list[int]) -> Tensor:
        """Patch tokens (N,patches,D) of pictures brought to (H,W)."""
        pixels = torch.stack([_pixels(p, size, InterpolationMode.BICUBIC) for p in pictures])
        pixels = F.normalize(pixels.clamp(0, 1), self._mean, self._std)
        states = self.model(pixels.to(self.model.device, self.model.dtype)).last_hidden_state.float().cpu()
        count = (size[0] // self.patch) * (size[1] // self.patch)
        if states.shape[1] != count + self.extra:
            raise InputError(
                f"embedder {self.name}: {states.shape[1]} tokens for {count} patches; its config says {self.extra} more"
            )
        return states[:, self.extra :]

    def _share(self, mask: np.ndarray, size: list[int]) -> Tensor:
        """How much of each patch lies inside a mask, (h,w) in [0,1]."""
        inside = torch.from_numpy(np.ascontiguousarray(mask, np.float32))[None]
        grid = [size[0] // self.patch, size[1] // self.patch]
        return torch.nn.functional.interpolate(inside[None], size=grid, mode="area")[0, 0]


class CropEmbedder:
    """A CLIP vision tower's embedding of each thing, cut out and put on a plain ground.

    Args:
        model: A CLIPVisionModelWithProjection.
        mean: Of the three channels in training.
        std: Their deviations.
        name: What to call it in results.
        ground: Colour around the thing, 0..255.
    """

    def __init__(
        self,
        model: Any,
        mean: Sequence[float],
        std: Sequence[float],
        name: str = "clip",
        ground: int = 128,
    ) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.name, self.ground = name, ground
        self.side = int(model.config.image_size)
        self._mean, self._std = list(mean), list(std)

    def to(self, device: str | torch.device) -> Self:
        """Move to a device; returns the embedder."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def vectors(self, image: Picture, things: Sequence[Instance]) -> Tensor:
        """Embeddings of the cut-outs; see the protocol."""
        picture = upright(image)
        return _in_batches(things, lambda some: self._embed(torch.stack([self._crop(picture, t) for t in some])))

    def _embed(self, pixels: Tensor) -> Tensor:
        pixels = F.normalize(pixels, self._mean, self._std)
        return self.model(pixels.to(self.model.device, self.model.dtype)).image_embeds

    def _crop(self, picture: Image.Image, thing: Instance) -> Tensor:
        """One thing alone on plain ground, (3,S,S) in [0,1]."""
        w = window(thing, margin=0.08)
        size = [self.side, self.side]
        pixels = _pixels(picture.crop(w), size, InterpolationMode.BILINEAR)
        inside = torch.from_numpy(_cut(thing.mask, w).astype(np.float32))[None]
        inside = F.resize(inside, size, InterpolationMode.BILINEAR, antialias=True)
        return (pixels * inside + self.ground / 255 * (1 - inside)).clamp(0, 1)


class NamingEmbedder:
    """What a thing of the procedural world is: the pocket judge's logarithms of shape, colour and texture, centred.

    Args:
        judge: The judge of insertions.
    """

    name = "pocket"

    def __init__(self, judge: InsertionJudge) -> None:
        self.judge: Any = judge.eval().requires_grad_(False)

    def to(self, device: str | torch.device) -> Self:
        """Move to a device; returns the embedder."""
        self.judge.to(device)
        return self

    @torch.no_grad()
    def vectors(self, image: Picture, things: Sequence[Instance]) -> Tensor:
        """Centred log-probabilities (N,17) of each cut-out with its surroundings; see the protocol."""
        picture = upright(image)
        return _in_batches(things, lambda some: self._embed(torch.stack([self._crop(picture, t) for t in some])))

    def _crop(self, picture: Image.Image, thing: Instance) -> Tensor:
        return _pixels(picture.crop(window(thing, margin=0.16)), [CROP, CROP], InterpolationMode.BILINEAR)

    def _embed(self, pixels: Tensor) -> Tensor:
        logits = self.judge((pixels * 2 - 1).to(self.judge.device, self.judge.dtype))
        logs = [part.float().log_softmax(-1).clamp(min=-8) for part in logits]
        return torch.cat([log - log.mean(-1, keepdim=True) for log in logs], 1)


def _in_batches(things: Sequence[Instance], embed: Callable[[Sequence[Instance]], Tensor]) -> Tensor:
    """Unit vectors (N,D) on the CPU, some things at a time; zeros for a mask without a pixel."""
    found: list[Tensor] = []
    for start in range(0, len(things), _BATCH):
        some = things[start : start + _BATCH]
        own = torch.nn.functional.normalize(embed(some).float().cpu(), dim=-1)
        own[[not thing.mask.any() for thing in some]] = 0
        found.append(own)
    return torch.cat(found) if found else torch.zeros(0, 1)


def window(thing: Instance, margin: float = 0.25) -> tuple[int, int, int, int]:
    """A square around a thing, left, top, right, bottom; it may leave the picture.

    Args:
        thing: The thing.
        margin: Room on each side, of the box's longer side.
    """
    x, y, width, height = thing.box
    side = max(1, round(max(width, height) * (1 + 2 * margin)))
    left, top = round(x + width / 2 - side / 2), round(y + height / 2 - side / 2)
    return left, top, left + side, top + side


def _cut(mask: np.ndarray, w: tuple[int, int, int, int]) -> np.ndarray:
    """A window of a mask; nothing beyond the picture."""
    left, top, right, bottom = w
    cut = np.zeros((bottom - top, right - left), bool)
    height, width = mask.shape
    inner = mask[max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
    y, x = max(-top, 0), max(-left, 0)
    cut[y : y + inner.shape[0], x : x + inner.shape[1]] = inner
    return cut


def _pixels(picture: Image.Image, size: list[int], mode: InterpolationMode) -> Tensor:
    """(3,H,W) in [0,1], resized."""
    return F.resize(F.pil_to_tensor(picture), size, mode, antialias=True).float() / 255


def load_embedder(backend: str, folder: str | Path, dtype: torch.dtype = torch.float32, **options: Any) -> Embedder:
    """Load an embedder from a model folder.

    Args:
        backend: "dinov3", "dinov2", "clip" or "pocket".
        folder: The folder; for "pocket" that of the judge.
        dtype: Of the weights.
        **options: Further arguments of the class.

    Raises:
        InputError: If the backend is unknown, or a part is missing, broken or of another kind.
    """
    import transformers

    folder = Path(folder)
    if backend == "pocket":
        return NamingEmbedder(load_component(InsertionJudge, folder, ".", dtype=dtype))
    if backend == "clip":
        model = load_component(transformers.CLIPVisionModelWithProjection, folder, ".", dtype=dtype)
        return CropEmbedder(model, *_statistics(folder), name=backend, **options)
    if backend not in ("dinov2", "dinov3"):
        raise InputError(f"embedder {backend!r}: unknown; give dinov3, dinov2, clip or pocket")
    kinds = {
        "dinov3_vit": transformers.DINOv3ViTModel,
        "dinov2": transformers.Dinov2Model,
        "dinov2_with_registers": transformers.Dinov2WithRegistersModel,
    }
    try:
        kind = transformers.AutoConfig.from_pretrained(folder).model_type
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: no model of transformers ({str(error).strip().splitlines()[0][:150]})") from error
    if kind not in kinds:
        raise InputError(f"{folder}: a {kind}, not one of {', '.join(kinds)}")
    mean, std = _statistics(folder)
    return PatchEmbedder(load_component(kinds[kind], folder, ".", dtype=dtype), mean, std, backend, **options)


def _statistics(folder: Path) -> tuple[list[float], list[float]]:
    """Channel means and deviations of a processor's config."""
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(folder)
        return list(processor.image_mean), list(processor.image_std)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{folder}: no image processor in it ({str(error).strip().splitlines()[0][:150]})") from error
