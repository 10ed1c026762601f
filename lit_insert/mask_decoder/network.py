"""Hiera encoder, feature-pyramid decoder: a photo in, mask logits at its own size out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor
from torch.nn import functional as F

from lit_insert.errors import InputError
from lit_insert.mask_decoder.decoder import Bottleneck, FPNDecoder, PresenceHead
from lit_insert.mask_decoder.encoder import (
    STRIDE,
    as_size,
    feature_maps,
    is_dynamic,
    load_encoder,
    make_encoder,
    widths,
)
from lit_insert.mask_decoder.original import OriginalDecoder

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class MaskDecoderOutput(BaseOutput):
    """What `HieraFPN` returns.

    Attributes:
        logits: (B,1,H,W), at the input's size; their sigmoid is the probability of the class.
        presence_logits: (B,); their sigmoid is the probability that there is anything of the class at all.
    """

    logits: Tensor
    presence_logits: Tensor


class HieraFPN(ModelMixin, ConfigMixin):
    """Segment one class: Hiera (Ryali et al. 2023) with a feature pyramid and learned upsampling to full size.

    hieradet and sam2 encoders take any size: the picture is padded (mirrored) to multiples of 32 and the logits are
    cropped. The plain and abswin families have one size of position embedding: the picture is scaled, aspect kept,
    until it fits into ``img_size``, padded, and the logits are scaled back. Pictures that lack less than 32 pixels of
    it are padded only.

    Args:
        encoder: timm's name of the encoder.
        encoder_kwargs: Arguments of timm's class, for other sizes of network (embed_dim, num_heads, stages,
            drop_path_rate; for hieradet and sam2 also global_att_blocks and window_spec).
        img_size: Side, or height and width, in pixels that the network is trained at; multiples of 32.
        bottleneck_depth: Plain transformer blocks at the coarsest map.
        bottleneck_heads: Their attention heads; by default one for every 64 channels.
        decoder_type: "fpn", or "original" for the layout that came before (quarter-size logits, enlarged).
        decoder_channels: Width of the pyramid.
        fine_channels: Widths at half and at full size.
        presence: "head" has a head of its own; "max" takes the largest mask logit.
        encoder_classes: Outputs of an unused, frozen classifier left on the encoder, as the original had; 0 for none.
        encoder_origin: Where the encoder's weights came from; None for random ones.
        image_mean: Of each channel in [0,1], for `normalize`.
        image_std: The same.

    Raises:
        InputError: If the size is no multiple of 32, timm has no such encoder, or arguments contradict.
    """

    @register_to_config
    def __init__(
        self,
        encoder: str = "hiera_tiny_224",
        encoder_kwargs: dict[str, Any] | None = None,
        img_size: int | Sequence[int] = 256,
        bottleneck_depth: int = 0,
        bottleneck_heads: int | None = None,
        decoder_type: Literal["fpn", "original"] = "fpn",
        decoder_channels: int = 128,
        fine_channels: Sequence[int] = (32, 16),
        presence: Literal["head", "max"] = "head",
        encoder_classes: int = 0,
        encoder_origin: str | None = None,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.backbone = make_encoder(encoder, img_size, encoder_kwargs, encoder_classes)
        if encoder_classes:
            self.backbone.head.requires_grad_(False)
        channels = widths(self.backbone)
        self.bottleneck = None
        if bottleneck_depth:
            self.bottleneck = Bottleneck(channels[-1], bottleneck_depth, bottleneck_heads)
        if decoder_type not in ("fpn", "original"):
            raise InputError(f"decoder_type is {decoder_type!r}; use fpn or original")
        if presence not in ("head", "max"):
            raise InputError(f"presence is {presence!r}; use head or max")
        self.decoder: FPNDecoder | OriginalDecoder
        if decoder_type == "fpn":
            self.decoder = FPNDecoder(channels, decoder_channels, fine_channels)
        else:
            self.decoder = OriginalDecoder(channels)
        self.presence_head = PresenceHead(channels[-1]) if presence == "head" else None

    @property
    def img_size(self) -> tuple[int, int]:
        """Height and width that it is trained at."""
        return as_size(self.config["img_size"])

    def normalize(self, image: Tensor) -> Tensor:
        """Pictures (…,3,H,W) in [-1,1] as the pixel values that `forward` takes."""
        mean, std = (image.new_tensor(self.config[k])[:, None, None] for k in ("image_mean", "image_std"))
        return ((image + 1) / 2 - mean) / std

    def forward(self, pixel_values: Tensor) -> MaskDecoderOutput:
        """Logits of a batch (B,3,H,W) of any size, normalised by `normalize`."""
        height, width = pixel_values.shape[-2:]
        placed = self._place(pixel_values)
        inside = placed
        target = self._canvas(*placed.shape[-2:])
        placed = pad_to(placed, target)
        maps = feature_maps(self.backbone, placed)
        if self.bottleneck is not None:
            maps[-1] = self.bottleneck(maps[-1])
        logits = self.decoder(maps, placed)[..., : inside.shape[-2], : inside.shape[-1]]
        if logits.shape[-2:] != (height, width):
            logits = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
        presence = logits.flatten(1).amax(1) if self.presence_head is None else self.presence_head(maps[-1])
        return MaskDecoderOutput(logits=logits, presence_logits=presence)

    def _canvas(self, height: int, width: int) -> tuple[int, int]:
        """Size that the encoder sees for a picture of this size."""
        if not is_dynamic(self.backbone):
            return self.img_size
        return -(-height // STRIDE) * STRIDE, -(-width // STRIDE) * STRIDE

    def _place(self, x: Tensor) -> Tensor:
        """Scale a picture that an encoder of one size cannot take as it is."""
        if is_dynamic(self.backbone):
            return x
        sizes = list(zip(self.img_size, x.shape[-2:], strict=True))
        if all(0 <= canvas - side < STRIDE for canvas, side in sizes):
            return x
        scale = min(canvas / side for canvas, side in sizes)
        size = [min(canvas, max(1, round(side * scale))) for canvas, side in sizes]
        return F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)

    def load_encoder(self, source: str) -> None:
        """Give the encoder pretrained weights; see :func:`~lit_insert.mask_decoder.encoder.load_encoder`.

        Raises:
            InputError: If there are none such, or they are of another encoder.
        """
        origin = load_encoder(self.backbone, source, self.config["encoder"])
        self.register_to_config(encoder_origin=origin)

    def check_pretrained(self) -> None:
        """Refuse to go on with an encoder that has never been trained.

        Raises:
            InputError: If its weights are random.
        """
        if self.config["encoder_origin"] is None:
            raise InputError(
                "freeze_encoder: the encoder's weights are random, and would stay so; give encoder_weights "
                "(a file, an exported folder, or a timm tag), or train it"
            )


def pad_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Pad a batch (B,C,H,W) at the right and bottom, mirrored; beyond a whole mirror image, the edge is repeated."""
    for axis in (-2, -1):
        while (missing := size[axis] - x.shape[axis]) > 0:
            step = min(missing, x.shape[axis] - 1)
            amount = [0, 0, 0, step or missing] if axis == -2 else [0, step or missing, 0, 0]
            x = F.pad(x, amount, mode="reflect" if step else "replicate")
    return x


def build_network(config: Mapping[str, Any], encoder_weights: str | None = None) -> HieraFPN:
    """A network from plain values, with a pretrained encoder if there is one.

    Args:
        config: Arguments of `HieraFPN`.
        encoder_weights: See :func:`~lit_insert.mask_decoder.encoder.load_encoder`.

    Raises:
        InputError: If an argument is unknown or does not fit.
    """
    try:
        network = HieraFPN(**config)
    except InputError as error:
        raise InputError(f"network.{error}") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"network: {str(error).split('__init__() ')[-1]}") from error
    if encoder_weights is not None:
        network.load_encoder(encoder_weights)
    return network
