"""Make a model folder of a published DiT^DH checkpoint (bytetriper/RAE's tensor names).

``python -m lit_insert.fusion.convert stage2_model.pt --out models/ditdh_xl`` writes a folder for ``infer.py fuse
--transformer``. Sizes are read off the tensors.
"""

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_insert.artifacts.folder import replace_model_folder
from lit_insert.artifacts.weights import load_onto, read_torch, read_weights
from lit_insert.errors import InputError
from lit_insert.fusion.network import DiTDH

_ENDS = {
    "x_embedder.proj": "x_embedder",
    "s_embedder.proj": "s_embedder",
    "s_projector": "s_projector",
    "t_embedder.mlp.0": "time_embedding.linear_1",
    "t_embedder.mlp.2": "time_embedding.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "modulation_out",
}
_SINGLE = {
    "t_embedder.W": "time_proj.weight",
    "y_embedder.embedding_table.weight": "class_embedding.weight",
    "final_layer.norm_final.weight": "norm_out.weight",
}
_BLOCK = {
    "norm1.weight": "norm1.weight",
    "norm2.weight": "norm2.weight",
    **{f"{p}.{k}": f"{p}.{k}" for p in ("attn.qkv", "attn.proj", "mlp.w12", "mlp.w3") for k in ("weight", "bias")},
    **{f"adaLN_modulation.1.{k}": f"modulation.{k}" for k in ("weight", "bias")},
}
# Fixed tables, which our network computes.
_TABLES = re.compile(r"pos_embed|x_pos_embed|(enc|dec)_feat_rope\.freqs_(cos|sin)")


def read_config(state: Mapping[str, Tensor], origin: str) -> dict[str, Any]:
    """Arguments of `DiTDH` that fit a state dictionary with the published names.

    Raises:
        InputError: If the names or shapes are not those of a DiT^DH.
    """
    try:
        head_width, channels = state["x_embedder.proj.weight"].shape[:2]
        width = len(state["s_embedder.proj.weight"])
        grid = round(state["pos_embed"].shape[-2] ** 0.5)
        head_dims = [state[f"{part}_feat_rope.freqs_cos"].shape[-1] for part in ("enc", "dec")]
        classes = len(state["y_embedder.embedding_table.weight"]) - 1
        numbers = {int(k.split(".")[1]) for k in state if k.startswith("blocks.")}
        widths = [len(state[f"blocks.{i}.norm1.weight"]) for i in range(len(numbers))]
        hidden = state["blocks.0.mlp.w3.weight"].shape[1]
    except KeyError as error:
        raise InputError(f"{origin}: no tensor {error.args[0]}; not a published DiT^DH") from error
    layers = next((i for i, w in enumerate(widths) if w != width), 0) if width != head_width else 0
    if not layers or widths != [width] * layers + [head_width] * (len(widths) - layers):
        raise InputError(f"{origin}: blocks of widths {sorted(set(widths))} are no encoder of {width} and then a head")
    ratio = next((r for r in (4.0, 2.0, 3.0, 8.0) if int(2 / 3 * int(width * r)) == hidden), None)
    if ratio is None:
        raise InputError(f"{origin}: a feed-forward of {hidden} for {width} channels is of no known ratio")
    return {
        "sample_size": grid,
        "in_channels": channels,
        "num_classes": classes,
        "encoder_width": width,
        "encoder_layers": layers,
        "encoder_heads": width // head_dims[0],
        "head_width": head_width,
        "head_layers": len(widths) - layers,
        "head_heads": head_width // head_dims[1],
        "mlp_ratio": ratio,
    }


def convert_state(state: Mapping[str, Tensor], encoder_layers: int, origin: str) -> dict[str, Tensor]:
    """The same tensors under `DiTDH`'s names, float32.

    Args:
        state: Published names to tensors.
        encoder_layers: Blocks before the head.
        origin: Where it comes from, for messages.

    Raises:
        InputError: If a tensor has no place in the network.
    """
    names = dict(_SINGLE) | {f"{o}.{k}": f"{n}.{k}" for o, n in _ENDS.items() for k in ("weight", "bias")}
    made, unknown = dict[str, Tensor](), list[str]()
    for key, value in state.items():
        if _TABLES.fullmatch(key):
            continue
        found = re.fullmatch(r"blocks\.(\d+)\.(.+)", key)
        if found and found[2] in _BLOCK:
            index = int(found[1])
            inside = index < encoder_layers
            part = f"encoder_blocks.{index}" if inside else f"head_blocks.{index - encoder_layers}"
            made[f"{part}.{_BLOCK[found[2]]}"] = value.float()
        elif key in names:
            made[names[key]] = value.float()
        else:
            unknown.append(key)
    if unknown:
        raise InputError(f"{origin}: {len(unknown)} tensors have no place in the network (first: {min(unknown)})")
    return made


def load_published(path: str | Path) -> DiTDH:
    """A network with the weights of a published checkpoint; its average where it holds one.

    Args:
        path: ``.pt`` or ``.safetensors`` with the published names, bare or under "ema" or "model". Nothing in it is
            run.

    Raises:
        InputError: If the file is no such checkpoint, or does not fit to the last tensor.
    """
    origin = str(path)
    state: Any = read_weights(path) if Path(path).suffix == ".safetensors" else read_torch(path)
    for key in ("ema", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"{origin}: not a dictionary of tensors")
    for prefix in ("module.", "model."):
        if state and all(k.startswith(prefix) for k in state):
            state = {k.removeprefix(prefix): v for k, v in state.items()}
    config = read_config(state, origin)
    with torch.device("meta"):
        network = DiTDH(**config)
    # Fixed tables cannot be made on the meta device.
    tables = dict(DiTDH(**{**config, "encoder_layers": 0, "head_layers": 0}).named_buffers())
    network = network.to_empty(device="cpu")
    load_onto(network, convert_state(state, config["encoder_layers"], origin), origin, need=set(network.state_dict()))
    for name, table in tables.items():
        network.get_buffer(name).copy_(table)
    return network.eval()


def main(args: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="a published stage-2 checkpoint, .pt or .safetensors")
    parser.add_argument("--out", required=True, help="folder to write")
    options = parser.parse_args(args)
    try:
        network = load_published(options.weights)
        with replace_model_folder(options.out) as temporary:
            network.save_pretrained(temporary)
        print(options.out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
