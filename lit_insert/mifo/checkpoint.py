"""Learned instances from the weights of a training run."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_insert.artifacts.weights import read_torch
from lit_insert.errors import InputError
from lit_insert.mifo.artifact import MifoArtifact

PLACEHOLDER = "<asset{}>"
_ROWS = re.compile(r"text_encoder\.(?:.+\.)?token_embedding\.(rows|used|table\.weight)")
_FACTORS = {"lora_A": "down", "lora_B": "up"}


def artifact_of(state: Mapping[str, Tensor], hparams: Mapping[str, Any]) -> MifoArtifact:
    """The artifact of a module's weights.

    Args:
        state: Weights by the module's names; of base weights only those that have changed.
        hparams: The module's arguments, as plain values.

    Raises:
        InputError: If no word has been learned.
    """
    found = {match[1]: value for name, value in state.items() if (match := _ROWS.fullmatch(name))}
    used = int(found["used"]) if "used" in found else 0
    if not used:
        raise InputError("no word has been learned: train at least one step")
    tuning = hparams["finetuning"]
    scale = tuning["alpha"] / tuning["rank"]
    dtype = getattr(torch, hparams["export_dtype"])
    lora: dict[str, Tensor] = {}
    changed: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.partition(".")[0] not in ("unet", "text_encoder") or _ROWS.fullmatch(name):
            continue
        layer, kind, _ = re.split(r"\.(lora_[AB])\.", name) if ".lora_" in name else (name, "", "")
        if kind:
            factor = _FACTORS[kind]
            middle = "lora_linear_layer" if layer.startswith("text_encoder.") else "lora"
            lora[f"{layer}.{middle}.{factor}.weight"] = (value * (scale if factor == "up" else 1.0)).to(dtype)
        else:
            changed[name] = value.to(dtype)
    tokens = [PLACEHOLDER.format(i) for i in range(used)]
    return MifoArtifact(
        base=hparams["base"],
        tokens={token: found["rows"][i].float() for i, token in enumerate(tokens)},
        lora=lora,
        changed=changed,
        words=dict(zip(tokens, hparams["initializer_words"] or (), strict=False)),
        synthesis=_synthesis(hparams),
        facts={
            "mode": hparams["attention"]["mode"],
            "token_steps": hparams["token_steps"],
            "noise_seed": hparams["noise_seed"],
        },
    )


def _synthesis(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """How the result is best drawn: as pictures were drawn while training, unless the module was told otherwise."""
    settings = {name: hparams["sketching"][name] for name in ("num_inference_steps", "guidance_scale")}
    if hparams.get("end_tokens") == "nowhere":  # what was hidden while learning has nothing to say
        settings["end_tokens"] = "nowhere"
    return settings | dict(hparams.get("synthesis") or {})


def checkpoint_artifact(path: str | Path) -> MifoArtifact:
    """Learned instances from a training checkpoint, without what trained them.

    Raises:
        InputError: If it cannot be read, or is of another model.
    """
    checkpoint = read_torch(path)
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    hparams = checkpoint.get("hyper_parameters", {}) if isinstance(checkpoint, dict) else {}
    if not isinstance(state, dict) or not {"base", "finetuning", "sketching", "attention"} <= set(hparams):
        raise InputError(f"{path}: not a checkpoint of learned instances")
    try:
        return artifact_of(state, hparams)
    except (KeyError, AttributeError) as error:
        raise InputError(f"{path}: a checkpoint of another version ({error} is missing)") from error
