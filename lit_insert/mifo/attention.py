"""Seeing a UNet's attention: layers by what their names say, and processors that keep the probabilities."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from lit_insert.errors import InputError
from lit_insert.mifo.attend import attend

Kind = Literal["cross", "self"]
Place = Literal["down", "mid", "up"]
_NAME = re.compile(r"(?:(down|up)_blocks\.(\d+)|(mid)_block)\.(.+)\.processor")
_SPOT = re.compile(r"(down|mid|up)?(?::(\d+))?")
# What may be replaced: they compute plain attention and differ in speed and memory only.
_PLAIN = ("AttnProcessor", "AttnProcessor2_0", "XFormersAttnProcessor", "SlicedAttnProcessor", "LayerProcessor")


@dataclass(frozen=True)
class LayerName:
    """Which attention layer of a UNet.

    Attributes:
        place: "down", "mid" or "up".
        block: Number of the block in its place, as the UNet counts them; 0 in the middle.
        index: Number of the layer among those of its kind in its block.
        kind: "cross" (pixels to tokens) or "self" (pixels to pixels).
        level: How often the latent has been halved where the layer works.
        resolution: Side of its maps at the UNet's own ``sample_size``.
        path: Its key in ``unet.attn_processors``.
    """

    place: Place
    block: int
    index: int
    kind: Kind
    level: int
    resolution: int
    path: str

    def __str__(self) -> str:
        return f"{self.place}{self.block}.{self.index}.{self.kind}@{self.resolution}"

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of its maps for latents of this size."""
        return _halved(height, self.level), _halved(width, self.level)


def _halved(side: int, times: int) -> int:
    return -(-side // 2**times)  # a stride of two with padding one rounds up


def layers_of(unet: UNet2DConditionModel, kind: Kind | None = None) -> list[LayerName]:
    """The attention layers of a UNet, in the order of computation: down, middle, up.

    Args:
        unet: Any UNet with the usual down, middle and up blocks.
        kind: Only those of one kind.

    Raises:
        InputError: If a layer has a name from which its place cannot be told.
    """
    side = unet.config["sample_size"] or 64
    side = min(side) if isinstance(side, list | tuple) else side
    down = [0]
    for block in unet.down_blocks:
        down.append(down[-1] + (getattr(block, "downsamplers", None) is not None))
    up = [down[-1]]
    for block in unet.up_blocks:
        up.append(up[-1] - (getattr(block, "upsamplers", None) is not None))
    found: list[LayerName] = []
    counts: dict[tuple[str, int, str], int] = {}
    for path in unet.attn_processors:
        match = _NAME.fullmatch(path)
        if not match:
            raise InputError(f"attention layer {path!r} stands in no down, middle or up block of the UNet")
        place: Any = match[1] or match[3]
        block_number = int(match[2] or 0)
        own: Kind = "cross" if match[4].endswith(".attn2") else "self"
        level = {"down": down[:-1], "mid": down[-1:], "up": up[:-1]}[place][block_number]
        index = counts.get((place, block_number, own), 0)
        counts[place, block_number, own] = index + 1
        found.append(LayerName(place, block_number, index, own, level, _halved(side, level), path))
    order = {"down": 0, "mid": 1, "up": 2}
    found.sort(key=lambda layer: order[layer.place])  # the UNet's dictionary has the middle last; stable otherwise
    return [layer for layer in found if kind in (None, layer.kind)]


def select_layers(unet: UNet2DConditionModel, spots: Sequence[str], kind: Kind = "cross") -> list[LayerName]:
    """Layers by place and resolution.

    Args:
        unet: The UNet.
        spots: Such as "up" (every layer in it), "up:16" (those whose maps are 16 on a side at the UNet's own
            ``sample_size``), ":16" (those of any place) or "all".
        kind: "cross" or "self".

    Returns:
        The layers, in the order of computation, each once.

    Raises:
        InputError: If a spot is not written like this, or the UNet has no such layer; says which it has.
    """
    have = layers_of(unet, kind)
    chosen: set[LayerName] = set()
    for spot in spots:
        match = _SPOT.fullmatch("" if spot == "all" else spot)
        if not match or (not spot):
            raise InputError(
                f"attention layers {spot!r}: write a place, a resolution or both, such as up, :16 or up:16"
            )
        place, resolution = match[1], match[2] and int(match[2])
        hits = [x for x in have if place in (None, x.place) and resolution in (None, x.resolution)]
        if not hits:
            known = dict.fromkeys(f"{x.place}:{x.resolution}" for x in have)
            raise InputError(f"the UNet has no {kind}-attention at {spot!r}; it has {', '.join(known) or 'none'}")
        chosen.update(hits)
    return [layer for layer in have if layer in chosen]


def heads_of(unet: UNet2DConditionModel, layer: LayerName) -> int:
    """Number of attention heads of a layer."""
    return int(unet.get_submodule(layer.path.removesuffix(".processor")).heads)  # type: ignore[arg-type]


class LayerProcessor:
    """Attention processor of one layer that reports to a recorder."""

    def __init__(self, recorder: "AttentionRecorder", layer: LayerName) -> None:
        self.recorder, self.layer = recorder, layer

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Compute the layer."""
        watch, layer = self.recorder, self.layer
        queries = hidden_states.shape[1] if hidden_states.ndim == 3 else hidden_states[0, 0].numel()
        keys = queries if encoder_hidden_states is None else encoder_hidden_states.shape[1]
        return attend(
            attn,
            hidden_states,
            encoder_hidden_states,
            attention_mask,
            temb,
            allowed=watch.allowed(layer, watch.size_of(layer, queries), keys),
            record=watch.keeper(layer),
        )


class AttentionRecorder:
    """Keeps the attention probabilities of chosen layers during each forward of a UNet.

    Example::

        recorder = AttentionRecorder(select_layers(unet, ["up:16", "up:32"]))
        with recorder.attached(unet):
            unet(latents, t, embeddings)
            recorder.maps[layer]  # (B, h*w, tokens), with its gradient

    The UNet's output is that of its default processors, whatever else is attached to its layers (LoRA, say). Records
    are dropped when the next forward begins.

    Args:
        layers: The layers to record.

    Attributes:
        maps: Layer to its probabilities averaged over heads, (B,h·w,keys), in the layer's precision.
        sizes: Layer to (h,w) of these.
        rows: Batch size of the latest forward.
    """

    def __init__(self, layers: Sequence[LayerName]) -> None:
        self.layers = tuple(layers)
        self.maps: dict[LayerName, Tensor] = {}
        self.sizes: dict[LayerName, tuple[int, int]] = {}
        self.rows = 0
        self._latent: tuple[int, int] = (0, 0)
        self._undo: Callable[[], None] | None = None

    def attach(self, unet: UNet2DConditionModel) -> None:
        """Take the place of the layers' processors.

        Raises:
            RuntimeError: If it is attached already.
            InputError: If a layer is missing, or its processor computes more than plain attention.
        """
        if self._undo is not None:
            raise RuntimeError("the recorder is attached already; detach it first")
        processors = dict(unet.attn_processors)
        before = dict(processors)
        for layer in self.processed(unet):
            if layer.path not in processors:
                raise InputError(f"the UNet has no attention layer {layer.path!r}")
            previous = type(processors[layer.path]).__name__
            if previous not in _PLAIN:
                raise InputError(f"attention layer {layer}: {previous} cannot be recorded; unload what brought it")
            processors[layer.path] = LayerProcessor(self, layer)
        hook = unet.register_forward_pre_hook(self._begin, with_kwargs=True)
        unet.set_attn_processor(processors)

        def undo() -> None:
            hook.remove()
            unet.set_attn_processor(before)

        self._undo = undo

    def detach(self) -> None:
        """Give the layers their previous processors back; what is recorded stays."""
        if self._undo is not None:
            self._undo()
            self._undo = None

    @contextmanager
    def attached(self, unet: UNet2DConditionModel) -> Iterator["AttentionRecorder"]:
        """Attached for the length of a ``with`` block."""
        self.attach(unet)
        try:
            yield self
        finally:
            self.detach()

    def clear(self) -> None:
        """Drop what is recorded."""
        self.maps.clear()
        self.sizes.clear()

    def grid(self, layer: LayerName) -> Tensor:
        """A layer's maps as pictures (B,keys,h,w)."""
        return self.maps[layer].transpose(1, 2).unflatten(-1, self.sizes[layer])

    def processed(self, unet: UNet2DConditionModel) -> Sequence[LayerName]:
        """The layers that get a processor of ours."""
        return self.layers

    def allowed(self, layer: LayerName, size: tuple[int, int], keys: int) -> Tensor | None:
        """Which keys a query may see, boolean (B or 1, h·w, keys); everything by default."""
        return None

    def keeper(self, layer: LayerName) -> Callable[[Tensor], None] | None:
        """What takes a layer's probabilities, if they are wanted."""

        def keep(probabilities: Tensor) -> None:
            # Gradient checkpointing computes a layer twice: the first is the one that the loss has.
            self.maps.setdefault(layer, probabilities)

        return keep if layer in self.layers else None

    def size_of(self, layer: LayerName, queries: int) -> tuple[int, int]:
        """(h,w) of a layer in this forward.

        Raises:
            ValueError: If the number of queries does not fit the latent at any level.
        """
        for level in (layer.level, *range(12)):
            height, width = (_halved(side, level) for side in self._latent)
            if height * width == queries:
                self.sizes[layer] = height, width
                return height, width
        raise ValueError(f"attention layer {layer} has {queries} queries, which fit no level of latents {self._latent}")

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sample: Tensor = args[0] if args else kwargs["sample"]
        self.rows, self._latent = len(sample), (sample.shape[-2], sample.shape[-1])
        self.clear()
