"""The file layouts that other projects use for the same weights: ``emb_opt.pt`` and IP-Adapter's."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lit_insert.artifacts.atomic import atomic_file
from lit_insert.artifacts.weights import read_torch, read_weights
from lit_insert.embedding_optimizer.ip_adapter import HEAD_DIM
from lit_insert.embedding_optimizer.network import EmbeddingOptimizer
from lit_insert.errors import InputError

NAMES = {"legacy": "emb_opt.pt", "ip": "ip_adapter.safetensors", "ip_plus": "ip_adapter.safetensors"}
_PARTS = ("image_proj", "ip_adapter")
# Names of the projection's layers: ours (diffusers') on the left, those of IP-Adapter's files on the right.
_RENAMED = (
    (r"^image_embeds\.", "proj."),
    (r"^layers\.(\d+)\.ln0\.", r"layers.\1.0.norm1."),
    (r"^layers\.(\d+)\.ln1\.", r"layers.\1.0.norm2."),
    (r"^layers\.(\d+)\.attn\.to_out\.0\.", r"layers.\1.0.to_out."),
    (r"^layers\.(\d+)\.attn\.", r"layers.\1.0."),
    (r"^layers\.(\d+)\.ff\.0\.", r"layers.\1.1.0."),
    (r"^layers\.(\d+)\.ff\.1\.net\.0\.proj\.", r"layers.\1.1.1."),
    (r"^layers\.(\d+)\.ff\.1\.net\.2\.", r"layers.\1.1.3."),
)


def _their_name(name: str) -> str:
    for pattern, replacement in _RENAMED:
        renamed, hits = re.subn(pattern, replacement, name)
        if hits:
            return renamed
    return name


def to_original(adapter: EmbeddingOptimizer) -> dict[str, Any]:
    """The weights under the names of the layout that goes with the adapter's mode.

    Returns:
        For "legacy" 14 tensors; for the ip modes ``{"image_proj": {…}, "ip_adapter": {"1.to_k_ip.weight": …}}``,
        where layers count 1, 3, 5 … in the order of the UNet's attention processors.

    Raises:
        ValueError: If the mode is "perceiver", which no other project has.
    """
    mode = adapter.config["mode"]
    if mode == "legacy":
        return {name: p.detach().clone() for name, p in adapter.legacy.named_parameters()}
    if mode not in NAMES:
        raise ValueError(f"mode {mode!r} has no original layout; export it as a folder instead")
    own = {name: p.detach().clone() for name, p in adapter.ip.image_proj.state_dict().items()}
    for name in [n for n in own if n.endswith(".attn.to_k.weight")]:
        value = name.replace("to_k", "to_v")
        own[name.replace("to_k", "to_kv")] = torch.cat([own.pop(name), own.pop(value)])
    layers = {
        f"{2 * i + 1}.{name}": p.detach().clone()
        for i, layer in enumerate(adapter.ip.layers)
        for name, p in layer.state_dict().items()
    }
    return {"image_proj": {_their_name(n): p for n, p in own.items()}, "ip_adapter": layers}


def save_original(adapter: EmbeddingOptimizer, path: str | Path) -> Path:
    """Write `to_original` to ``.safetensors`` (parts become name prefixes) or ``.bin``/``.pt``; returns the path.

    Raises:
        ValueError: If the mode has no such layout.
        InputError: If the suffix is another.
    """
    path, weights = Path(path), to_original(adapter)
    if path.suffix not in (".safetensors", ".bin", ".pt"):
        raise InputError(f"{path}: unknown suffix {path.suffix!r}; use .safetensors, .bin or .pt")
    with atomic_file(path) as temporary:
        if path.suffix == ".safetensors":
            save_file({k: v.contiguous() for k, v in _flat(weights).items()}, temporary)
        else:
            torch.save(weights, temporary)
    return path


def _flat(weights: dict[str, Any]) -> dict[str, Tensor]:
    if set(weights) != set(_PARTS):
        return weights
    return {f"{part}.{name}": value for part in _PARTS for name, value in weights[part].items()}


def read_original(path: str | Path) -> dict[str, Any]:
    """Read either layout, as `to_original` gives it; runs no code from the file.

    Raises:
        InputError: If the file is missing, truncated, holds code, or has neither layout.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        found: Any = read_weights(path)
        if any(name.startswith(f"{part}.") for part in _PARTS for name in found):
            split = {p: {k.removeprefix(f"{p}."): v for k, v in found.items() if k.startswith(f"{p}.")} for p in _PARTS}
            found = split
    else:
        found = read_torch(path)
    groups = [found[p] for p in _PARTS if p in found] if isinstance(found, dict) else [None]
    groups = groups or [found]
    if any(not isinstance(g, dict) or not all(isinstance(v, Tensor) for v in g.values()) for g in groups):
        raise InputError(f"{path}: neither a plain dictionary of tensors nor an IP-Adapter file")
    if len(groups) == 1 and groups[0] is not found:
        raise InputError(f"{path}: an IP-Adapter file needs both {' and '.join(_PARTS)}")
    return found


def load_original(adapter: EmbeddingOptimizer, path: str | Path) -> None:
    """Copy a file of the adapter's own layout into it: every tensor, none left over.

    Raises:
        InputError: As `read_original`, or if names or shapes differ; names the file and the first of them.
    """
    theirs, own = _flat(read_original(path)), _flat(to_original(adapter))
    for what, names in (("lacks", own.keys() - theirs.keys()), ("has unknown", theirs.keys() - own.keys())):
        if names:
            first = ", ".join(sorted(names)[:3])
            raise InputError(f"{path} {what} {len(names)} weights for mode {adapter.config['mode']}: {first}")
    for name, value in theirs.items():
        if value.shape != own[name].shape:
            raise InputError(
                f"{path}: {name} has shape {tuple(value.shape)}, the adapter needs {tuple(own[name].shape)}"
            )
    state: dict[str, Tensor] = {}
    for name in adapter.state_dict():
        if name.startswith("legacy."):
            state[name] = theirs[name.removeprefix("legacy.")]
        elif name.startswith("ip.layers."):
            index, _, rest = name.removeprefix("ip.layers.").partition(".")
            state[name] = theirs[f"ip_adapter.{2 * int(index) + 1}.{rest}"]
        elif name.startswith("ip.image_proj."):
            inner = name.removeprefix("ip.image_proj.")
            joined = re.sub(r"\.attn\.to_[kv]\.", ".attn.to_kv.", inner)
            value = theirs[f"image_proj.{_their_name(joined)}"]
            if joined != inner:
                value = value.chunk(2)[".to_v." in inner]
            state[name] = value
    adapter.load_state_dict(state, strict=False)


def adapter_from_original(path: str | Path, **config: Any) -> EmbeddingOptimizer:
    """Make an adapter of the sizes that a file of either layout implies, and load it.

    Args:
        path: ``emb_opt.pt``, or an IP-Adapter file such as ``ip-adapter_sd15.bin``.
        **config: Further `EmbeddingOptimizer` arguments, such as ``null``, ``feature`` or ``text_tokens``.

    Raises:
        InputError: As `load_original`.
    """
    adapter = EmbeddingOptimizer(**{**original_config(path), **config})
    load_original(adapter, path)
    return adapter.eval()


def original_config(path: str | Path) -> dict[str, Any]:
    """`EmbeddingOptimizer` arguments that the tensors of a file imply.

    Raises:
        InputError: As `read_original`, or if the tensors are not those of a known adapter.
    """
    found = read_original(path)
    try:
        return _sizes(found)
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"{path}: not the weights of a known adapter ({error} is not as expected)") from error


def _sizes(found: dict[str, Any]) -> dict[str, Any]:
    if "image_proj" not in found:
        output_dim, input_dim = found["projection_layer.weight"].shape
        return {"mode": "legacy", "input_dim": input_dim, "output_dim": output_dim}
    image, layers = found["image_proj"], found["ip_adapter"]
    keys = sorted((k for k in layers if k.endswith("to_k_ip.weight")), key=lambda k: int(k.split(".")[0]))
    sizes: dict[str, Any] = {
        "layer_dims": [layers[k].shape[0] for k in keys],
        "output_dim": layers[keys[0]].shape[1],
    }
    if "proj.weight" in image:
        tokens = image["proj.weight"].shape[0] // sizes["output_dim"]
        return {**sizes, "mode": "ip", "input_dim": image["proj.weight"].shape[1], "num_tokens": tokens}
    _, tokens, hidden = image["latents"].shape
    return {
        **sizes,
        "mode": "ip_plus",
        "num_tokens": tokens,
        "hidden_dim": hidden,
        "input_dim": image["proj_in.weight"].shape[1],
        "depth": len({k.split(".")[1] for k in image if k.startswith("layers.")}),
        "heads": image["layers.0.0.to_q.weight"].shape[0] // HEAD_DIM,
        "ffn_ratio": image["layers.0.1.1.weight"].shape[0] / hidden,
    }
