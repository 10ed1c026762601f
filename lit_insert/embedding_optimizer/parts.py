"""The networks of an insertion model, put together from a base and a few choices; training and inference share it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from lit_insert.artifacts.weights import load_onto, read_weights
from lit_insert.diffusion.frozen import empty_prompt_states, has_part, image_processor, load_part, resolve_base
from lit_insert.diffusion.unet import add_lora, select_parameters, widen_conv_in
from lit_insert.embedding_optimizer.ip_adapter import cross_attention_layers
from lit_insert.embedding_optimizer.network import DEFAULTS, EmbeddingOptimizer
from lit_insert.embedding_optimizer.original import NAMES, load_original
from lit_insert.errors import InputError

_FILE = "diffusion_pytorch_model.safetensors"


@dataclass
class UnetTuning:
    """What of the UNet trains beside the adapter.

    Args:
        target: "attn2" (cross-attention), "attn2.kv" (its key and value projections), "lora" (low-rank updates of
            cross-attention), "all" or "none".
        blocks: UNet blocks it applies to, such as "mid_block"; empty means every block that has any.
        lr_scale: Learning rate of these parameters in multiples of the adapter's.
        rank: Rank of the LoRA updates.
        alpha: Scale of the LoRA updates; they are multiplied by alpha/rank.
    """

    target: Literal["attn2", "attn2.kv", "lora", "all", "none"] = "attn2"
    blocks: list[str] = field(default_factory=list)
    lr_scale: float = 0.1
    rank: int = 8
    alpha: float = 8.0


@dataclass
class Sampling:
    """How pictures are drawn: while training, by ``predict``, and by the exported model unless told otherwise.

    Args:
        num_inference_steps: Denoising steps.
        guidance_scale: Weight of the reference.
        image_guidance_scale: Weight of the scene.
    """

    num_inference_steps: int = 50
    guidance_scale: float = 7.0
    image_guidance_scale: float = 1.5


@dataclass
class InsertParts:
    """Components of an insertion model, under the names that the pipeline has for them.

    ``tuned`` names the UNet parameters that the tuning chose; nothing here requires a gradient yet.
    ``processing_resolution`` is the side in pixels that it was trained on, where that is known.
    """

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: DDPMScheduler
    image_encoder: CLIPVisionModelWithProjection
    feature_extractor: CLIPImageProcessor
    embedding_optimizer: EmbeddingOptimizer
    tuned: list[str]
    sampling: Sampling = field(default_factory=Sampling)
    processing_resolution: int | None = None


def load_parts(
    base: str,
    image_encoder: str | None = None,
    adapter: Mapping[str, Any] | None = None,
    adapter_weights: str | None = None,
    unet: UnetTuning | Mapping[str, Any] | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> InsertParts:
    """Load a base, widen its UNet if it takes no scene yet, and make or load the adapter.

    Args:
        base: InstructPix2Pix-layout folder or hub id, or "pocket".
        image_encoder: CLIP vision folder or hub id; by default the base's own.
        adapter: `EmbeddingOptimizer` arguments, sizes optional; None loads the base's own adapter.
        adapter_weights: File or folder with weights for the adapter; see `load_adapter_weights`.
        unet: What of the UNet trains; nothing by default.
        sampling: `Sampling` arguments.

    Raises:
        InputError: If a part is missing, sizes do not fit, or the UNet tuning matches nothing.
    """
    base = resolve_base(base)
    encoder_from = resolve_base(image_encoder) if image_encoder else None
    vision = load_part(CLIPVisionModelWithProjection, encoder_from or base, None if encoder_from else "image_encoder")
    model = load_part(UNet2DConditionModel, base, "unet")
    widened = model.config["in_channels"] == model.config["out_channels"]
    widen_conv_in(model)
    if adapter is None:
        optimizer = load_part(EmbeddingOptimizer, base, "embedding_optimizer")
    else:
        optimizer = make_adapter(adapter, base, model, vision)
    if adapter_weights is not None:
        load_adapter_weights(optimizer, adapter_weights)
    try:
        optimizer.attach(model)
    except ValueError as error:
        raise InputError(f"{base}: {error}") from error
    parts = InsertParts(
        vae=load_part(AutoencoderKL, base, "vae"),
        unet=model,
        scheduler=load_part(DDPMScheduler, base, "scheduler"),
        image_encoder=vision,
        feature_extractor=image_processor(base, encoder_from, vision.config.image_size),
        embedding_optimizer=optimizer,
        tuned=_tune(model, UnetTuning(**unet) if isinstance(unet, Mapping) else unet, widened),
        sampling=Sampling(**(sampling or {})),
    )
    for part in (parts.vae, model, vision, optimizer):
        part.eval().requires_grad_(False)
    return parts


def _tune(unet: UNet2DConditionModel, tuning: UnetTuning | None, widened: bool) -> list[str]:
    """Names of the UNet parameters that train; new input channels must, since they start at zero."""
    if tuning is None:
        return []
    if tuning.target == "none":
        names = []
    elif tuning.target == "lora":
        names = add_lora(unet, tuning.blocks, tuning.rank, tuning.alpha)
    else:
        names = select_parameters(unet, tuning.blocks, tuning.target)
    entry = [f"conv_in.{name}" for name, _ in unet.conv_in.named_parameters()] if widened else []
    return [*entry, *(name for name in names if name not in entry)]


def make_adapter(
    config: Mapping[str, Any], base: str, unet: UNet2DConditionModel, image_encoder: nn.Module
) -> EmbeddingOptimizer:
    """A new adapter whose sizes follow the UNet and the image encoder where ``config`` leaves them out.

    An IP-Adapter starts with the UNet's own key and value projections. A "text_empty" null embedding comes from
    the base's text encoder or, where it has none, from the adapter that the base was trained with.

    Raises:
        InputError: If an argument is unknown or does not fit, or no empty-prompt states are to be had.
    """
    mode = str(config.get("mode", "perceiver"))
    if mode not in DEFAULTS:
        raise InputError(f"adapter.mode is {mode!r}; use one of {', '.join(DEFAULTS)}")
    vision: Any = image_encoder.config
    feature = config.get("feature") or DEFAULTS[mode].feature
    sizes: dict[str, Any] = {
        "input_dim": vision.projection_dim if feature == "pooled" else vision.hidden_size,
        "output_dim": unet.config["cross_attention_dim"],
    }
    states = _null_states(base) if (config.get("null_kind") or DEFAULTS[mode].null_kind) == "text_empty" else None
    if mode in ("ip", "ip_plus"):
        sizes["layer_dims"] = [layer.to_k.out_features for layer in cross_attention_layers(unet)]
        sizes["text_tokens"] = 77 if states is None else states.shape[1]
        sizes["input_tokens"] = (vision.image_size // vision.patch_size) ** 2 + 1
    elif states is not None:
        sizes["num_tokens"] = states.shape[1]
    try:
        adapter = EmbeddingOptimizer(**{**sizes, **config})
        if states is not None:
            adapter.set_null(states)
    except (ValueError, TypeError) as error:
        reason = str(error).split("__init__() ")[-1]
        raise InputError(f"adapter: {reason}") from error
    if adapter.is_ip_adapter:
        adapter.ip.copy_text_projections(unet)
        if mode == "ip_plus":
            side = vision.image_size
            with torch.no_grad():
                adapter.null_features.copy_(adapter.encode_image(image_encoder, torch.zeros(1, 3, side, side)))
    return adapter


def _null_states(base: str) -> Tensor:
    if has_part(base, "text_encoder"):
        return empty_prompt_states(base)
    if has_part(base, "embedding_optimizer"):
        own = load_part(EmbeddingOptimizer, base, "embedding_optimizer")
        return own.null_embedding.detach()
    raise InputError(
        f"{base} has neither text_encoder/ nor embedding_optimizer/, so there are no states of the empty prompt; "
        "give a base that has one of them, or (perceiver and legacy) set adapter.null_kind to learned or zeros"
    )


def load_adapter_weights(adapter: EmbeddingOptimizer, source: str) -> None:
    """Load weights into an adapter, strictly.

    Args:
        adapter: Of the same sizes.
        source: For "legacy" an ``emb_opt.pt``; for the ip modes an IP-Adapter file (``.bin`` or ``.safetensors``);
            or an exported adapter's folder or ``.safetensors``. A file on the hub is written
            ``owner/model/path/file``.

    Raises:
        InputError: If the file is missing, broken, or of another adapter.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        path = path / "embedding_optimizer" if (path / "embedding_optimizer").is_dir() else path
        path = path / _FILE
    elif not path.exists() and source.count("/") >= 2 and not source.startswith((".", "/", "~")):
        path = _from_hub(source)
    if path.name == _FILE or adapter.config["mode"] not in NAMES:
        weights = read_weights(path)
        load_onto(adapter, weights, str(path), need=set(adapter.state_dict()))
    else:
        load_original(adapter, path)


def _from_hub(source: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    owner, model, file = source.split("/", 2)
    try:
        return Path(hf_hub_download(f"{owner}/{model}", file))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"adapter_weights {source!r}: no such file here or on the hub ({reason})") from error
