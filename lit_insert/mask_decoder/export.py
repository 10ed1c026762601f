"""A mask network for other runtimes: ONNX and torch.export, each compared with the original before it is kept."""

import copy
import importlib.util
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lit_insert.artifacts.atomic import atomic_file
from lit_insert.errors import InputError
from lit_insert.mask_decoder.network import HieraFPN

TOLERANCE = 1e-4  # largest difference of a logit
SUFFIXES = (".onnx", ".pt2")
_NEEDED = ("onnx", "onnxruntime", "onnxscript")


class ExportedForm(nn.Module):
    """The network with its preprocessing: RGB in [0,1] at the network's size to plain tensors.

    Args:
        network: What is exported.
    """

    def __init__(self, network: HieraFPN) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mask logits (B,1,H,W) and presence logits (B,) of pictures (B,3,H,W) in [0,1]."""
        output = self.network(self.network.normalize(image * 2 - 1))
        return output.logits, output.presence_logits


def export_network(network: HieraFPN, path: str | Path) -> float:
    """Write a network as ``.onnx`` or as a torch.export program (``.pt2``), and check it.

    The file takes ``image``, float32 (B,3,H,W), RGB in [0,1], at the size the network was trained at and for any B,
    and returns ``logits`` (B,1,H,W) and ``presence_logits`` (B,). To use it on a photo, letterbox the photo with
    mid-grey (0.5) margins, cut the margins off the logits, scale these to the photo, and take the sigmoid.

    Args:
        network: On any device; float32.
        path: Target; its suffix says which form.

    Returns:
        The largest difference between a logit of the file and of the network, on random pictures in batches of 1
        and 3.

    Raises:
        InputError: If the suffix is another, the network is not in float32, a package for ONNX is missing, the
            network cannot be exported, or the difference is above 1e-4; nothing is then written.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: give a name that ends in {' or '.join(SUFFIXES)}")
    if network.dtype != torch.float32:
        raise InputError(f"export needs the network in float32, not {network.dtype}")
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if path.suffix == ".onnx" and missing:
        raise InputError(f"ONNX export needs {', '.join(missing)}: pip install 'lit-insert[onnx]'")
    model = ExportedForm(copy.deepcopy(network)).eval()
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.rand(n, 3, *network.img_size, generator=generator).to(network.device) for n in (3, 1)]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [model(picture) for picture in pictures]
        try:
            if path.suffix == ".onnx":
                _write_out_attention(model)
            program = torch.export.export(model, (pictures[0],), dynamic_shapes=({0: torch.export.Dim("batch")},))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise InputError(
                f"torch.export cannot follow this network: {str(error).strip().splitlines()[0]}"
            ) from error
        with atomic_file(path) as temporary:
            if path.suffix == ".onnx":
                found = _onnx(program, temporary, network, pictures)
            else:
                found = _program(program, temporary, pictures)
            differences = [
                float((a.cpu() - b.cpu()).abs().max())
                for one, other in zip(expected, found, strict=True)
                for a, b in zip(one, other, strict=True)
            ]
            worst = max(differences)
            if not worst <= TOLERANCE:
                raise InputError(f"{path}: differs from the network by {worst:.1e}, above {TOLERANCE:.0e}; not kept")
    return worst


def _write_out_attention(model: nn.Module) -> None:
    """Attention as products and softmax: ONNX's own operator takes no five-dimensional windows."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]


def _program(program: Any, path: Path, pictures: list[Tensor]) -> list[Any]:
    torch.export.save(program, path)
    module = torch.export.load(path).module()
    return [module(picture) for picture in pictures]


def _onnx(program: Any, path: Path, network: HieraFPN, pictures: list[Tensor]) -> list[Any]:
    import onnxruntime

    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        exported: Any = torch.onnx.export(
            program,
            (pictures[0],),
            input_names=["image"],
            output_names=["logits", "presence_logits"],
            dynamo=True,
            verbose=False,
            optimize=True,
        )
        exported.model.metadata_props.update(
            {"input": "RGB in [0,1], letterboxed with 0.5", "encoder": str(network.config["encoder"])}
        )
        exported.save(path, external_data=False)  # type: ignore[union-attr]
    except torch.onnx.OnnxExporterError as error:
        raise InputError(f"torch.onnx cannot convert this network: {str(error).strip().splitlines()[-1]}") from error
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    runs = [session.run(None, {"image": picture.cpu().numpy()}) for picture in pictures]
    return [[torch.from_numpy(np.asarray(value)) for value in run] for run in runs]
