"""Samples of one picture with a mask for each of its instances: what learning new words reads."""

import logging
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from lit_insert.data.instance_folder import class_pictures, read_instances, square
from lit_insert.data.loading import (
    ResumableLoader,
    processed_batches,
    resumable_loader,
    sample_generator,
)
from lit_insert.errors import InputError
from lit_insert.images import load_image, to_tensor

log = logging.getLogger(__name__)
_CUT = 0.1
_NONE = -1


class InstanceDataset:
    """Endless samples of one picture: a random set of its instances, named in random order; half of them mirrored.

    A sample holds ``image`` (3,S,S) in [-1,1]; ``instances`` (K,) int64, the numbers of those in the caption in its
    order, then -1; ``masks`` (K,1,S,S) in {0,1} in that order, then zeros; ``caption``; ``id``, which is the same only
    for the same pixels; and with class pictures ``prior_image`` (3,S,S), ``prior_caption`` and ``prior_id``. It depends
    on (seed, epoch, index) alone.

    Args:
        image: (3,S,S) in [-1,1].
        masks: (K,1,S,S) in {0,1}.
        name: Beginning of the ids.
        length: Samples in an epoch.
        template: Caption with ``{}`` for the tokens.
        placeholder: Token with ``{}`` for the number of the instance.
        union_sampling: Name one to K instances, each number equally likely; else one.
        flip: Probability of mirroring.
        shift: Largest shift of the picture, in its sides; the instances named stay inside.
        seed: Seed of the choices.
        training: If not, a sample names all instances, every second one in reverse order, and is the picture itself.
        prior: Class pictures, and captions that they have in turn.
        class_dropout: Probability that a class picture comes without its caption.
    """

    def __init__(
        self,
        image: Tensor,
        masks: Tensor,
        name: str,
        length: int,
        *,
        template: str = "a photo of {}",
        placeholder: str = "<asset{}>",
        union_sampling: bool = True,
        flip: float = 0.5,
        shift: float = 0.0,
        seed: int = 0,
        training: bool = True,
        prior: tuple[list[Path], list[str]] | None = None,
        class_dropout: float = 0.0,
    ) -> None:
        self.image, self.masks, self.name, self.length = image, masks, name, length
        self.template, self.placeholder = template, placeholder
        self.union_sampling, self.flip, self.shift = union_sampling, flip, shift
        self.seed, self.training, self.prior, self.class_dropout = seed, training, prior, class_dropout

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.sample(index, 0)

    def sample(self, index: int, epoch: int) -> dict[str, Any]:
        """Sample number ``index`` of an epoch."""
        count = len(self.masks)
        generator = sample_generator(self.seed, epoch, index)
        if self.training:
            number = 1 + int(torch.randint(count, (), generator=generator)) if self.union_sampling else 1
            order = torch.randperm(count, generator=generator)[:number]
            mirrored = bool(torch.rand((), generator=generator) < self.flip)
        else:
            order, mirrored = torch.arange(count), False
            order = order.flip(0) if index % 2 else order
        masks = torch.zeros_like(self.masks)
        masks[: len(order)] = self.masks[order]
        image = self.image
        if mirrored:
            image, masks = image.flip(-1), masks.flip(-1)
        moved = ""
        if self.training and self.shift:
            image, masks, moved = shifted(image, masks, self.shift, generator)
        sample = {
            "image": image,
            "masks": masks,
            "instances": torch.nn.functional.pad(order, (0, count - len(order)), value=_NONE),
            "caption": caption_of(order.tolist(), self.template, self.placeholder),
            "id": f"{self.name}{'-mirrored' if mirrored else ''}{moved}",
        }
        if self.prior is not None:
            files, captions = self.prior
            number = int(torch.randint(len(files), (), generator=generator))
            file, caption = files[number], captions[number % len(captions)]
            if self.class_dropout and torch.rand((), generator=generator) < self.class_dropout:
                caption = ""
            size = self.image.shape[-1]
            picture, _ = square(to_tensor(load_image(file)), torch.zeros(0, 1, 1), size, "pad")
            sample |= {"prior_image": picture, "prior_caption": caption, "prior_id": f"prior-{file.name}"}
        return sample


def shifted(image: Tensor, masks: Tensor, most: float, generator: torch.Generator) -> tuple[Tensor, Tensor, str]:
    """Move a picture and its masks by whole pixels, at random but with all that the masks cover still inside.

    What comes in at the borders repeats them; the masked loss does not see it.

    Args:
        image: (3,S,S).
        masks: (K,1,S,S) in {0,1}.
        most: Largest shift, in sides.
        generator: Source of the shift.

    Returns:
        Picture and masks, and the shift as text, such as "+3-7" (right, down).
    """
    size = image.shape[-1]
    limit = round(most * size)
    offsets = []
    for axis in (-1, -2):
        covered = masks.amax((0, 1)).amax(-2 if axis == -1 else -1).nonzero()[:, 0]
        low = max(-limit, -int(covered.min())) if len(covered) else 0
        high = min(limit, size - 1 - int(covered.max())) if len(covered) else 0
        offsets.append(low + int(torch.randint(high - low + 1, (), generator=generator)))
    right, down = offsets
    pad = [max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)]  # left, right, top, bottom
    window = (..., slice(pad[3], pad[3] + size), slice(pad[1], pad[1] + size))
    moved = torch.nn.functional.pad(image, pad, mode="replicate")[window]
    return moved, torch.nn.functional.pad(masks, pad)[window], f"{right:+d}{down:+d}"


def caption_of(instances: list[int], template: str = "a photo of {}", placeholder: str = "<asset{}>") -> str:
    """Sentence that names instances in the order given, joined by "and"."""
    return template.format(" and ".join(placeholder.format(i) for i in instances))


class MaskedInstanceDataModule(pl.LightningDataModule):
    """One folder: ``img.jpg``, ``mask0.png``, ``mask1.png``, …; every step shows it anew.

    Class pictures for prior preservation (Ruiz et al. 2023) lie in ``class_folder``; while there are too few, the
    module that trains draws the rest with its base, once.

    Args:
        folder: The picture and its masks.
        size: Side that the model is trained at, pixels.
        fit: Make the picture square by cutting where the instances lose least ("crop") or by margins ("pad").
        batch_size: Samples per step and rank.
        num_workers: Loader processes; 0 is fine, the picture is read once.
        template: Caption, with ``{}`` where the tokens go.
        placeholder: Token, with ``{}`` where the instance's number goes.
        union_sampling: Name a random number of instances in random order; else a single one.
        flip: Probability of mirroring picture and masks.
        shift: Largest random shift of picture and masks, in their sides; the instances named stay inside. It keeps
            the network from learning where an instance is in place of what it is.
        class_prompt: Caption of the class pictures, such as "a photo of a chair", or several that they have in turn,
            sorted by name; null for no prior preservation.
        class_folder: Where the class pictures are or will be; by default class/ in ``folder``.
        class_images: How many there should be.
        class_dropout: Probability that a class picture comes without its caption. Guidance subtracts what the network
            predicts for an empty prompt; where nothing keeps that, every prompt changes with it.
        train_length: Samples in a training epoch.
        seed: Seed of all choices.
    """

    def __init__(
        self,
        folder: str,
        size: int = 512,
        fit: Literal["crop", "pad"] = "crop",
        batch_size: int = 1,
        num_workers: int = 0,
        template: str = "a photo of {}",
        placeholder: str = "<asset{}>",
        union_sampling: bool = True,
        flip: float = 0.5,
        shift: float = 0.0,
        class_prompt: str | list[str] | None = None,
        class_folder: str | None = None,
        class_images: int = 100,
        class_dropout: float = 0.0,
        train_length: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        if template.count("{}") != 1 or placeholder.count("{}") != 1:
            raise InputError(f"template {template!r} and placeholder {placeholder!r} need one {{}} each")
        if not 0 <= flip <= 1:
            raise InputError(f"flip is {flip}; give a probability, 0 to 1")
        if not 0 <= shift <= 1:
            raise InputError(f"shift is {shift}; give a part of the side, 0 to 1")
        if not 0 <= class_dropout < 1:
            raise InputError(f"class_dropout is {class_dropout}; give a probability, 0 or more and less than 1")
        self.folder, self.size, self.fit = Path(folder), size, fit
        self.batch_size, self.num_workers, self.seed, self.length = batch_size, num_workers, seed, train_length
        self.template, self.placeholder = template, placeholder
        self.options: dict[str, Any] = {"union_sampling": union_sampling, "flip": flip, "shift": shift, "seed": seed}
        self.options["class_dropout"] = class_dropout
        self.class_prompts = [class_prompt] if isinstance(class_prompt, str) else list(class_prompt or [])
        self.class_images = class_images
        self.class_folder = Path(class_folder).expanduser() if class_folder else self.folder.expanduser() / "class"
        self._read: tuple[Tensor, Tensor] | None = None

    def setup(self, stage: str) -> None:
        """Read and check the folder.

        Raises:
            InputError: As `read_instances`, or if cutting the picture square loses an instance.
        """
        if self._read is not None:
            return
        found = read_instances(self.folder)
        for warning in found.warnings:
            log.warning("%s", warning)
        whole = torch.from_numpy(found.masks)
        image, masks = square(to_tensor(found.image), whole, self.size, self.fit)
        if self.fit == "crop":
            scale = (self.size / min(found.image.size)) ** 2
            for i, (before, after) in enumerate(zip(whole.flatten(1).sum(1), masks.flatten(1).sum(1), strict=True)):
                lost = 1 - float(after) / (float(before) * scale)
                if lost > _CUT or not after:
                    log.warning("%s: cutting the picture square loses %.0f%% of mask%d.png; fit: pad keeps all of it",
                                self.folder, 100 * min(max(lost, 0), 1), i)  # fmt: skip
        gone = next((i for i, m in enumerate(masks) if not m.any()), None)
        if gone is not None:
            raise InputError(f"{self.folder}: nothing of mask{gone}.png is left at {self.size} pixels; use fit: pad")
        self._read = image, masks

    @property
    def num_instances(self) -> int:
        """How many masks there are; after `setup`."""
        return len(self._pixels[1])

    @property
    def tokens(self) -> list[str]:
        """The instances' tokens, in the order of their numbers; after `setup`."""
        return [self.placeholder.format(i) for i in range(self.num_instances)]

    @property
    def _pixels(self) -> tuple[Tensor, Tensor]:
        self.setup("fit")
        assert self._read is not None
        return self._read

    def dataset(self, training: bool, length: int) -> InstanceDataset:
        """The samples for training, or the fixed ones for looking at.

        Raises:
            InputError: If class pictures are asked for and there are none.
        """
        image, masks = self._pixels
        prior = None
        if training and self.class_prompts:
            files = class_pictures(self.class_folder)
            if not files:
                raise InputError(f"{self.class_folder}: has no class pictures, and class_prompt asks for them")
            prior = files, self.class_prompts
        return InstanceDataset(
            image, masks, self.folder.name or "picture", length, template=self.template, placeholder=self.placeholder,
            training=training, prior=prior, **self.options,
        )  # fmt: skip

    def train_dataloader(self) -> ResumableLoader[dict[str, Any]]:
        """Random sets of instances, in an order that resumes."""
        return resumable_loader(
            self.dataset(True, self.length),
            self.batch_size,
            self.num_workers,
            self.seed,
            processed=partial(processed_batches, self),
        )

    def val_dataloader(self) -> ResumableLoader[dict[str, Any]]:
        """The picture with all of its instances, in both orders."""
        return resumable_loader(self.dataset(False, 2), 2, 0, self.seed, shuffle=False)

    def test_dataloader(self) -> ResumableLoader[dict[str, Any]]:
        """The same."""
        return self.val_dataloader()

    def predict_dataloader(self) -> ResumableLoader[dict[str, Any]]:
        """The same."""
        return self.val_dataloader()
