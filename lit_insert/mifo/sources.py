"""The parts of a text-to-image model, and the instances learned on it, from wherever they are kept."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, SchedulerMixin, UNet2DConditionModel
from diffusers import __version__ as diffusers_version
from transformers import CLIPTextModel, CLIPTokenizer

from lit_insert.artifacts.atomic import atomic_file
from lit_insert.artifacts.hub import pull_model
from lit_insert.artifacts.json_file import read_object
from lit_insert.artifacts.resolve import CONFIG, INDEX, Source
from lit_insert.artifacts.weights import cast, load_component
from lit_insert.diffusion.frozen import load_part, resolve_base
from lit_insert.errors import InputError
from lit_insert.mifo.artifact import KIND, MifoArtifact, read_config

POCKET = "text"
SETTINGS = "synthesis.json"
MODELS: dict[str, type] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
_HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download")


@dataclass
class TextParts:
    """A text-to-image model in the layout of Stable Diffusion.

    Attributes:
        unet: Denoises latents under a prompt.
        vae: Decodes them.
        text_encoder: CLIP's text model.
        tokenizer: Its tokenizer.
        scheduler: Noise schedule and prediction type.
        artifact: The instances that were put on it, if any.
        settings: How it likes to be sampled, by the names of `lit_insert.mifo.settings.SynthesisSettings`.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: SchedulerMixin
    artifact: MifoArtifact | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def load_parts(source: Source, dtype: torch.dtype = torch.float32, base: str | None = None, **hub: Any) -> TextParts:
    """Load a model for synthesis.

    Args:
        source: As `lit_insert.artifacts.resolve.resolve_model` found it: a text-to-image model, or learned instances.
        dtype: Of the weights.
        base: The model under learned instances, in place of the one that they name.
        **hub: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.

    Raises:
        InputError: If it is neither, or a part is missing, truncated or does not fit.
    """
    artifact = _artifact(source, hub)
    if artifact is None:
        if base is not None:
            raise InputError(f"{source.name}: is a text-to-image model itself; a base is for learned instances only")
        return load_base(source.location, dtype, **hub)
    try:
        parts = load_base(base or artifact.base, dtype)
    except InputError as error:
        raise InputError(f"{source.name}: its base cannot be loaded; name it anew with base ({error})") from error
    try:
        artifact.apply(parts.unet, parts.text_encoder, parts.tokenizer)
    except InputError as error:
        raise InputError(f"{source.name}: {error}") from error
    parts.artifact = artifact
    parts.settings = {**parts.settings, **artifact.synthesis}
    return parts


def _artifact(source: Source, hub: dict[str, Any]) -> MifoArtifact | None:
    if source.kind == "checkpoint":
        from lit_insert.mifo.checkpoint import checkpoint_artifact

        return checkpoint_artifact(source.path)
    if source.kind == "hub":
        folder = _hub_config(source.location, hub)
        if folder is None or read_config(folder).get("_class_name") != KIND:
            return None
        return MifoArtifact.load(pull_model(source.location, **hub))
    if (source.path / INDEX).is_file():
        return None
    return MifoArtifact.load(source.path)


def _hub_config(repo_id: str, hub: dict[str, Any]) -> Path | None:
    """Folder of a repository's own config.json; None where it has none, as pipelines do not."""
    import huggingface_hub
    from huggingface_hub import errors

    options = {key: value for key, value in hub.items() if key in _HUB}
    try:
        return Path(huggingface_hub.hf_hub_download(repo_id, CONFIG, **options)).parent
    except (errors.EntryNotFoundError, errors.HfHubHTTPError, errors.HFValidationError, OSError):
        return None  # what is really wrong shows when the parts are loaded


def load_base(base: str, dtype: torch.dtype = torch.float32, **hub: Any) -> TextParts:
    """Load a text-to-image model.

    Args:
        base: "pocket" or "pocket:<name>", a folder in the layout of ``StableDiffusionPipeline``, or a hub id.
        dtype: Of the weights.
        **hub: As for `load_parts`.

    Raises:
        InputError: If a part is missing, truncated or incomplete.
    """
    where = resolve_base(f"pocket:{POCKET}" if base == "pocket" else base)
    folder = Path(where)
    parts: dict[str, Any] = {}
    for name, cls in MODELS.items():
        if folder.is_dir():
            parts[name] = load_component(cls, folder, name, dtype=dtype)
        else:
            parts[name] = cast(load_part(cls, where, name, **hub).eval(), dtype)
    parts["tokenizer"] = load_part(CLIPTokenizer, where, "tokenizer", **hub)
    parts["scheduler"] = load_part(DDIMScheduler, where, "scheduler", **hub)
    settings: dict[str, Any] = {}
    if (folder / SETTINGS).is_file():
        settings = read_object(folder / SETTINGS)
    return TextParts(**parts, settings=settings)


def save_parts(parts: TextParts, folder: Path) -> None:
    """Write a whole model to an existing folder, as diffusers' ``StableDiffusionPipeline`` reads it."""
    for name in (*MODELS, "tokenizer", "scheduler"):
        getattr(parts, name).save_pretrained(folder / name)
    classes = {name: type(getattr(parts, name)).__name__ for name in (*MODELS, "tokenizer", "scheduler")}
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": diffusers_version}
    for name, own in classes.items():
        index[name] = ["transformers" if name in ("text_encoder", "tokenizer") else "diffusers", own]
    index |= {"feature_extractor": [None, None], "safety_checker": [None, None], "requires_safety_checker": False}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    if parts.settings:
        write_settings(folder, parts.settings)


def write_settings(folder: str | Path, settings: dict[str, Any]) -> None:
    """Write how a text-to-image model likes to be sampled into its folder."""
    with atomic_file(Path(folder) / SETTINGS) as temporary:
        temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
