"""Pictures to feature maps and back by a representation autoencoder, and the statistics that normalise the maps."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderRAE
from torch import Tensor, nn
from torchmetrics import Metric
from transformers import Dinov2WithRegistersModel, ViTMAEModel

from lit_insert.artifacts.hub import pull_model
from lit_insert.artifacts.resolve import CONFIG, INDEX, resolve_model
from lit_insert.artifacts.weights import load_component, load_onto
from lit_insert.errors import InputError

POCKET = "fusion"
PART = "autoencoder"
_ENCODERS = {"dinov2": Dinov2WithRegistersModel, "mae": ViTMAEModel}


class LatentSpace(nn.Module):
    """A frozen `diffusers.AutoencoderRAE` as two functions, with the sizes checked that it would quietly change.

    Args:
        autoencoder: diffusers' model.

    Raises:
        InputError: If its encoder is of a kind that does not work.
    """

    def __init__(self, autoencoder: AutoencoderRAE) -> None:
        super().__init__()
        check_encoder(autoencoder.config["encoder_type"])
        self.autoencoder = autoencoder.eval().requires_grad_(False)

    @property
    def grid(self) -> int:
        """Side of the feature maps in cells."""
        return int(self.autoencoder.num_patches**0.5)

    @property
    def channels(self) -> int:
        """Channels of the feature maps."""
        return int(self.autoencoder.config["encoder_hidden_size"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a feature map."""
        return self.channels, self.grid, self.grid

    @property
    def input_size(self) -> int:
        """Side of the pictures that the encoder sees."""
        return int(self.autoencoder.encoder_input_size)

    @property
    def output_size(self) -> int:
        """Side of the pictures that the decoder makes."""
        return int(self.autoencoder.decoder_image_size)

    @property
    def name(self) -> str:
        """What tells feature maps of different autoencoders apart: the encoder's kind and sizes."""
        config = self.autoencoder.config
        layers = config["encoder_num_hidden_layers"]
        return f"{config['encoder_type']}-{self.channels}x{layers}-{self.input_size}px-{self.grid}x{self.grid}"

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Normalised features (N,C,G,G), float32.

        Args:
            pictures: (N,3,S,S) in [0,1], S the ``input_size``.

        Raises:
            InputError: If the pictures are of another size, which would be resized with their aspect lost.
        """
        size = self.input_size
        if pictures.shape[1:] != (3, size, size):
            raise InputError(f"pictures are {_sizes(pictures)}; the encoder takes 3x{size}x{size}")
        return self.autoencoder.encode(pictures.to(self.autoencoder.dtype)).latent.float()

    @torch.no_grad()
    def decode(self, features: Tensor) -> Tensor:
        """Pictures (N,3,P,P) of features (N,C,G,G), float32, not clipped: P is the ``output_size``.

        Raises:
            InputError: If the grid is not the decoder's, which would be resized.
        """
        if features.shape[1:] != self.shape:
            wanted = "x".join(map(str, self.shape))
            raise InputError(f"features are {_sizes(features)}; the decoder takes {wanted}")
        return self.autoencoder.decode(features.to(self.autoencoder.dtype)).sample.float()


def _sizes(batch: Tensor) -> str:
    return "x".join(map(str, batch.shape[1:]))


def check_encoder(kind: str) -> None:
    """Refuse what diffusers has but cannot run.

    Raises:
        InputError: For "siglip2", whose model has changed in transformers; use dinov2 or mae.
    """
    if kind not in ("dinov2", "mae"):
        raise InputError(f"encoder_type {kind!r}: not supported by the installed libraries; use dinov2 or mae")


def load_autoencoder(source: str | Path, dtype: torch.dtype = torch.float32) -> AutoencoderRAE:
    """The autoencoder that a name stands for.

    Args:
        source: "pocket"; a folder of an AutoencoderRAE, or one with it as ``autoencoder/``; a run folder; or a hub id
            such as ``nyu-visionx/RAE-dinov2-wReg-base-ViTXL-n08``.
        dtype: Of the weights.

    Raises:
        InputError: If there is none, it is broken, or its encoder is of a kind that does not work.
    """
    found = resolve_model(source, POCKET)
    if found.kind == "checkpoint":
        raise InputError(f"{source}: a checkpoint; export the run, or give its folder once it has an export/")
    folder = pull_model(found.location) if found.kind == "hub" else found.path
    inside = (folder / INDEX).is_file()
    home, part = (folder, PART) if inside else (folder.resolve().parent, folder.resolve().name)
    kind = "dinov2"
    with contextlib.suppress(OSError, ValueError, KeyError):  # the loader says what is missing
        kind = json.loads((home / part / CONFIG).read_text(encoding="utf-8"))["encoder_type"]
    check_encoder(kind)
    return load_component(AutoencoderRAE, home, part, dtype=dtype)


def start_autoencoder(given: Mapping[str, Any] | None, init: str | None, encoder: str | None) -> AutoencoderRAE:
    """The autoencoder that a training starts from.

    Args:
        given: diffusers' arguments; None takes those of ``init``.
        init: Where its weights are, see `load_autoencoder`; None for random ones.
        encoder: Folder or hub id of a pretrained encoder that takes the place of its own.

    Raises:
        InputError: If there are both or neither of ``given`` and ``init``, or something does not fit.
    """
    if (given is None) == (init is None):
        raise InputError("give autoencoder (arguments) or init (weights), one of them")
    if init is not None:
        model = load_autoencoder(init)
    else:
        check_encoder(str((given or {}).get("encoder_type", "dinov2")))
        channels = int((given or {}).get("encoder_hidden_size", 768))
        column = {"latents_mean": [[[0.0]]] * channels, "latents_std": [[[1.0]]] * channels}
        try:
            model = AutoencoderRAE(**{**column, **(given or {})})
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise InputError(f"autoencoder: {error}") from error
    if encoder is not None:
        found = resolve_model(encoder)
        folder = pull_model(found.location) if found.kind == "hub" else found.path.resolve()
        pretrained = load_component(_ENCODERS[model.config["encoder_type"]], folder.parent, folder.name)
        # The last norm's scale and shift are left out, as in all autoencoders of this kind.
        weights = {k: v for k, v in pretrained.state_dict().items() if not k.startswith("layernorm.")}
        load_onto(model.encoder, weights, encoder, need=set(model.encoder.state_dict()))
    return model


def thaw(encoder: nn.Module) -> None:
    """Let an encoder learn, but for what its forward pass does not use and for fixed tables."""
    for name, parameter in encoder.named_parameters():
        fixed = name.endswith("mask_token") or (isinstance(encoder, ViTMAEModel) and "position_embeddings" in name)
        parameter.requires_grad_(not fixed)


class LatentStatistics(Metric):
    """Mean and standard deviation of every channel, over all pictures and places.

    Batches are merged by the parallel form of Welford's method (Chan et al. 1983) in float64, so that neither their
    size nor their order matters; the parts of several processes are merged in the same way.

    Args:
        channels: C.
        **kwargs: Passed to :class:`torchmetrics.Metric`.
    """

    full_state_update = False
    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, channels: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # No reduction: the states of all processes are stacked, and merged in `compute`.
        self.add_state("count", torch.zeros(1, dtype=torch.float64), dist_reduce_fx=None)
        self.add_state("mean", torch.zeros(channels, dtype=torch.float64), dist_reduce_fx=None)
        self.add_state("squares", torch.zeros(channels, dtype=torch.float64), dist_reduce_fx=None)

    def update(self, features: Tensor) -> None:
        """Add features (N,C,H,W)."""
        values = features.detach().double().transpose(0, 1).flatten(1)
        mean = values.mean(1)
        squares = (values - mean[:, None]).square().sum(1)
        new = (torch.full_like(self.count, values.shape[1]), mean, squares)
        self.count, self.mean, self.squares = _merge((self.count, self.mean, self.squares), new)

    def compute(self) -> dict[str, Tensor]:
        """Return "mean" and "std", (C,) float64.

        Raises:
            InputError: If nothing was added.
        """
        parts = zip(
            self.count.reshape(-1, 1),
            self.mean.reshape(-1, self.mean.shape[-1]),
            self.squares.reshape(-1, self.squares.shape[-1]),
            strict=True,
        )
        total = next(parts)
        for part in parts:
            total = _merge(total, part)
        count, mean, squares = total
        if not count.item():
            raise InputError("no features to take statistics of")
        return {"mean": mean, "std": (squares / count).sqrt()}


def _merge(a: tuple[Tensor, Tensor, Tensor], b: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and sum of squared differences of two sets together."""
    count = a[0] + b[0]
    share = torch.where(count > 0, b[0] / count.clamp(min=1), 0.0)
    away = b[1] - a[1]
    return count, a[1] + away * share, a[2] + b[2] + away.square() * a[0] * share


def set_statistics(autoencoder: AutoencoderRAE, mean: Tensor, std: Tensor) -> None:
    """Let an autoencoder normalise by mean and standard deviation (C,), one each a channel.

    Published autoencoders keep them for every place too, which makes a config of tens of megabytes.
    """
    columns = {"latents_mean": mean, "latents_std": std}
    for name, values in columns.items():
        column = values.detach().float().cpu().reshape(-1, 1, 1)
        setattr(autoencoder, f"_{name}", column.to(autoencoder.get_buffer(f"_{name}").device))
        autoencoder.register_to_config(**{name: column.tolist()})
