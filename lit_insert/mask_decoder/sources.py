"""The network of a mask model from wherever it is kept, checked to be complete."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lit_insert.artifacts.hub import pull_model
from lit_insert.artifacts.resolve import CONFIG, Source
from lit_insert.artifacts.weights import cast, load_component, load_onto, read_torch, trained_weights
from lit_insert.errors import InputError
from lit_insert.mask_decoder.network import HieraFPN, build_network


def load_network(source: Source, dtype: torch.dtype = torch.float32, **hub: Any) -> HieraFPN:
    """Load a network for inference.

    Args:
        source: As `lit_insert.artifacts.resolve.resolve_model` found it.
        dtype: Of the weights.
        **hub: `lit_insert.artifacts.hub.pull_model`'s options, for a hub id.

    Raises:
        InputError: If it is no mask decoder, or a tensor of it is missing, unreadable or of another shape.
    """
    if source.kind == "checkpoint":
        return cast(_from_checkpoint(source.path), dtype).eval()
    folder = pull_model(source.location, **hub) if source.kind == "hub" else source.path
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind = config["_class_name"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{source.name}: not a mask decoder ({folder / CONFIG} is missing or broken)") from error
    if kind != HieraFPN.__name__:
        raise InputError(f"{source.name}: is a {kind}, not a mask decoder ({HieraFPN.__name__})")
    return load_component(HieraFPN, folder, ".", dtype=dtype)


def _from_checkpoint(path: Path) -> HieraFPN:
    """The network of a training checkpoint, with the moving average where it has one."""
    checkpoint = read_torch(path)
    weights = trained_weights(checkpoint, str(path))
    own = {k.removeprefix("network."): v for k, v in weights.items() if k.startswith("network.")}
    hyper = checkpoint.get("hyper_parameters") or {}
    config, encoder_weights = hyper.get("network"), hyper.get("encoder_weights")
    if not isinstance(config, Mapping) or not own:
        raise InputError(f"{path}: not a checkpoint of a mask decoder (no network in it)")
    network = build_network(config)
    # What was frozen was not saved: the encoder, if so, a presence head without a loss, an unused classifier.
    unsaved = ["backbone.head."]
    if encoder_weights and not any(k.startswith("backbone.") for k in own):
        network.load_encoder(encoder_weights)
        unsaved = ["backbone."]
    if not (hyper.get("loss") or {}).get("presence", 1):
        unsaved.append("presence_head.")
    load_onto(network, own, str(path), need={k for k in network.state_dict() if not k.startswith(tuple(unsaved))})
    return network
