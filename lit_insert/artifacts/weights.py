"""Reading weights strictly: whole files only, no code, no tensor left at random."""

import pickle
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from lit_insert.errors import InputError

Part = TypeVar("Part", bound=nn.Module)
_WEIGHTS = ("diffusion_pytorch_model", "model", "pytorch_model")


def read_torch(path: str | Path) -> Any:
    """Read a ``.ckpt``, ``.pt`` or ``.bin`` without running anything it contains.

    Raises:
        InputError: If it is missing, truncated, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = " ".join(str(error).split())
        if "Unsupported" in text or "GLOBAL" in text or "Weights only" in text:
            raise InputError(
                f"{path}: holds pickled Python objects besides tensors; refused, since loading them runs code"
            ) from error
        raise InputError(f"{path}: not a readable checkpoint ({text[:120]})") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: truncated or not a checkpoint ({text[:120]})") from error


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read named tensors from ``.safetensors``, or a plain dictionary of tensors from ``.pt``/``.bin``.

    Raises:
        InputError: If it is missing, truncated, holds code, or is no dictionary of tensors.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        found = read_torch(path)
        if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
            raise InputError(f"{path}: not a plain dictionary of tensors")
        return found
    check_safetensors(path)
    return load_file(path)


def check_safetensors(path: str | Path) -> None:
    """Check that a file's header is sound and its length is what the header says; reads no tensor.

    Raises:
        InputError: If it is missing, truncated or not safetensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt"):
            return
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: truncated or not safetensors ({reason}); copy or export it again") from error


def load_component(
    cls: type[Part],
    folder: str | Path,
    name: str,
    *,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
) -> Part:
    """Load one part of an exported folder, or fail; never with a tensor that the file does not have.

    Args:
        cls: A diffusers or transformers model class.
        folder: The exported folder.
        name: Its subfolder, such as "unet".
        dtype: Of the loaded weights; float32 by default.
        variant: Such as "fp16": read ``….fp16.safetensors`` where there is one.

    Raises:
        InputError: If the subfolder, its config or its weights are missing, truncated or incomplete.
    """
    part = Path(folder) / name
    if not part.is_dir():
        raise InputError(f"{folder}: no {name}/ folder in it; a {cls.__name__} is expected there")
    if not (part / "config.json").is_file():
        raise InputError(f"{part}: no config.json in it")
    files = sorted(part.glob("*.safetensors"))
    for file in files:
        check_safetensors(file)
    if not files and not any(part.glob("*.bin")):
        names = " or ".join(f"{stem}.safetensors" for stem in _WEIGHTS[:2])
        raise InputError(f"{part}: no weights in it (looked for {names})")
    has_variant = variant is not None and any(f".{variant}." in f.name for f in part.iterdir())
    options: dict[str, Any] = {"variant": variant} if has_variant else {}
    try:
        model, info = cls.from_pretrained(part, output_loading_info=True, **options)  # type: ignore[attr-defined]
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, pickle.UnpicklingError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"{part}: cannot load {cls.__name__} ({reason.strip()[:200]})") from error
    lacking = sorted(info["missing_keys"])
    wrong = sorted(str(key[0] if isinstance(key, tuple | list) else key) for key in info["mismatched_keys"])
    if lacking or wrong:
        what, keys = ("lack", lacking) if lacking else ("have the wrong shape for", wrong)
        raise InputError(f"{part}: the weights {what} {len(keys)} tensors of the model (first: {keys[0]})")
    return cast(model, dtype or torch.float32).eval()


def load_processor(cls: Any, folder: str | Path, what: str) -> Any:
    """Load what prepares a model's input: a processor, an image processor or a tokenizer of transformers.

    Args:
        cls: Its class.
        folder: The exported folder.
        what: What to call it if it is not there, such as "SAM 3 processor".

    Raises:
        InputError: If it is missing or broken.
    """
    try:
        return cls.from_pretrained(folder)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"{folder}: no {what} in it ({reason[:200]})") from error


def cast(model: Part, dtype: torch.dtype) -> Part:
    """Convert a model's weights in place; returns it.

    Not by ``from_pretrained``, whose argument for it differs between diffusers and transformers, nor by diffusers'
    own ``to``, which warns about lists that are empty for these models.
    """
    return nn.Module.to(model, dtype)


def load_onto(model: nn.Module, weights: dict[str, Tensor], origin: str, *, need: set[str] | None = None) -> None:
    """Copy named tensors into a model, all of them or none.

    Args:
        model: The model.
        weights: Name to tensor; a subset of the model's is fine.
        origin: Where they come from, for the message.
        need: Names that must be among them.

    Raises:
        InputError: If a name is unknown to the model, a shape differs, or one of ``need`` is missing.
    """
    own = dict(model.state_dict())
    unknown = sorted(set(weights) - set(own))
    if unknown:
        raise InputError(f"{origin}: {len(unknown)} tensors fit nothing in the model (first: {unknown[0]})")
    lacking = sorted((need or set()) - set(weights))
    if lacking:
        raise InputError(f"{origin}: {len(lacking)} tensors are missing (first: {lacking[0]})")
    for name, value in weights.items():
        if value.shape != own[name].shape:
            raise InputError(
                f"{origin}: {name} has shape {tuple(value.shape)}, the model needs {tuple(own[name].shape)}"
            )
    model.load_state_dict(weights, strict=False)


def trained_weights(checkpoint: dict[str, Any], origin: str) -> dict[str, Tensor]:
    """What a training checkpoint holds, the moving average in place of the raw weights where it has one.

    Args:
        checkpoint: As `read_torch` returns it.
        origin: Its path, for the message.

    Raises:
        InputError: If it is no training checkpoint.
    """
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not state:
        raise InputError(f"{origin}: not a training checkpoint (it has no state_dict)")
    for key, kept in checkpoint.get("callbacks", {}).items():
        if key.split("{")[0] == "EMA" and kept.get("updates"):
            return {**state, **kept["shadow"]}
    return dict(state)
