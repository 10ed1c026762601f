"""What learning leaves behind, in megabytes: token rows, LoRA or changed weights, and the name of their base."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_insert.artifacts.folder import replace_model_folder
from lit_insert.artifacts.json_file import read_object
from lit_insert.artifacts.resolve import CONFIG
from lit_insert.artifacts.weights import read_weights
from lit_insert.errors import InputError

KIND = "MifoModel"
TOKENS, LORA, CHANGED = "tokens", "pytorch_lora_weights.safetensors", "changed_weights.safetensors"
_FACTOR = re.compile(r"(unet|text_encoder)\.(.+)\.lora(?:_linear_layer)?\.(down|up)\.weight")


@dataclass
class MifoArtifact:
    """Learned instances, to be put on the base that they were learned on.

    A folder of it has ``config.json``; ``tokens/asset0.safetensors`` and so on, one file a token, each as diffusers'
    ``load_textual_inversion`` reads it; and, after the second phase, ``pytorch_lora_weights.safetensors`` as
    ``load_lora_weights`` reads it, or ``changed_weights.safetensors``.

    Attributes:
        base: Folder, hub id or pocket name of the text-to-image model.
        tokens: Token to its row of the text encoder's embedding, (width,).
        lora: Low-rank factors by diffusers' names, ``unet.….lora.{down,up}.weight`` and ``text_encoder.…``; any
            alpha/rank is multiplied into ``up``.
        changed: New values of weights, ``unet.<name>`` and ``text_encoder.<name>``.
        words: Token to a word for its kind, where one is known.
        synthesis: Settings that `lit_insert.mifo.pipeline.SynthesisPipeline` starts from.
        facts: Anything else worth keeping: mode, steps, seed.
    """

    base: str
    tokens: dict[str, Tensor]
    lora: dict[str, Tensor] = field(default_factory=dict)
    changed: dict[str, Tensor] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    synthesis: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: str | Path) -> None:
        """Write the folder, whole or not at all.

        Raises:
            InputError: If ``folder`` holds something that is no exported model, or two tokens have one file name.
        """
        names = {_file_name(token): token for token in self.tokens}
        if len(names) < len(self.tokens):
            raise InputError(f"tokens {', '.join(self.tokens)}: two of them have the same file name")
        config = {
            "_class_name": KIND,
            "base": self.base,
            "tokens": {token: f"{TOKENS}/{name}" for name, token in names.items()},
            "words": self.words,
            "synthesis": self.synthesis,
            "facts": self.facts,
        }
        with replace_model_folder(folder) as temporary:
            (temporary / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
            (temporary / TOKENS).mkdir()
            for name, token in names.items():
                save_file({token: _plain(self.tokens[token])}, temporary / TOKENS / name)
            for file, weights in ((LORA, self.lora), (CHANGED, self.changed)):
                if weights:
                    tensors = {key: _plain(value) for key, value in weights.items()}
                    save_file(tensors, temporary / file, metadata={"format": "pt"})

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a folder.

        Raises:
            InputError: If it is no such folder, or a file of it is missing, truncated or of another kind.
        """
        folder = Path(folder)
        config = read_config(folder)
        if config.get("_class_name") != KIND or not isinstance(config.get("base"), str):
            raise InputError(f"{folder / CONFIG}: not a model of learned instances ({KIND})")
        tokens: dict[str, Tensor] = {}
        for token, name in dict(config.get("tokens") or {}).items():
            found = read_weights(folder / name)
            if list(found) != [token] or found[token].ndim != 1:
                raise InputError(f"{folder / name}: holds {', '.join(found) or 'nothing'}, expected the row of {token}")
            tokens[token] = found[token]
        lora, changed = (read_weights(folder / f) if (folder / f).is_file() else {} for f in (LORA, CHANGED))
        rest = {key: dict(config.get(key) or {}) for key in ("words", "synthesis", "facts")}
        return cls(config["base"], tokens, lora, changed, **rest)

    def apply(self, unet: nn.Module, text_encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Put the instances on their base, in place; low-rank updates are merged.

        Raises:
            InputError: If a token is known to the tokenizer already, or weights do not fit the base.
        """
        add_tokens(tokenizer, text_encoder, self.tokens)
        parts = {"unet": unet, "text_encoder": text_encoder}
        with torch.no_grad():
            for name, value in self.changed.items():
                part, _, own = name.partition(".")
                parameter = dict(parts[part].named_parameters()).get(own) if part in parts else None
                if parameter is None or parameter.shape != value.shape:
                    raise InputError(
                        f"the learned weight {name} {tuple(value.shape)} does not fit the base {self.base}"
                    )
                parameter.copy_(value)
        _merge(parts, self.lora, self.base)


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's ``config.json``.

    Raises:
        InputError: If it is missing, broken, or no JSON object.
    """
    return read_object(folder / CONFIG)


def add_tokens(
    tokenizer: PreTrainedTokenizerBase, text_encoder: PreTrainedModel, tokens: Mapping[str, Tensor]
) -> list[int]:
    """Teach a tokenizer and a text encoder new tokens, in place; returns their ids.

    Args:
        tokenizer: Gets the tokens.
        text_encoder: Gets a row for each.
        tokens: Token to its row, (width,).

    Raises:
        InputError: If a token is known already, or its row has another width than the encoder's.
    """
    width = text_encoder.get_input_embeddings().embedding_dim
    for token, row in tokens.items():
        if len(row) != width:
            raise InputError(f"token {token}: its row has {len(row)} numbers, the text encoder takes {width}")
        if token in tokenizer.get_vocab():
            raise InputError(f"token {token}: the tokenizer of the base has it already; give it another name")
    if not tokens:
        return []
    tokenizer.add_tokens(list(tokens))
    ids = [int(i) for i in tokenizer.convert_tokens_to_ids(list(tokens))]
    rows = max(*ids, len(tokenizer) - 1) + 1
    if rows > text_encoder.get_input_embeddings().num_embeddings:
        text_encoder.resize_token_embeddings(rows, mean_resizing=False)
    weight = text_encoder.get_input_embeddings().weight
    with torch.no_grad():
        weight[ids] = torch.stack(list(tokens.values())).to(weight)
    return ids


@torch.no_grad()
def _merge(parts: Mapping[str, nn.Module], lora: Mapping[str, Tensor], base: str) -> None:
    """W + up·down for every pair of factors."""
    modules = {part: dict(model.named_modules()) for part, model in parts.items()}
    for name, down in lora.items():
        match = _FACTOR.fullmatch(name)
        if not match:
            raise InputError(f"the LoRA weight {name} has a name that is not diffusers'")
        if match[3] == "up":
            continue
        up = lora.get(name[: match.start(3)] + "up.weight")
        path = match[2]  # CLIP's text model had an outer shell once, and files still say so
        module = next((m for p in (path, path.removeprefix("text_model.")) if (m := modules[match[1]].get(p))), None)
        update = None if up is None else (up.flatten(1).double() @ down.flatten(1).double()).to(down.dtype)
        weight = getattr(module, "weight", None)
        if update is None or weight is None or weight.numel() != update.numel():
            raise InputError(f"the LoRA weight {name} does not fit the base {base}")
        weight.add_(update.view_as(weight).to(weight))


def _plain(value: Tensor) -> Tensor:
    return value.detach().to("cpu").contiguous().clone()


def _file_name(token: str) -> str:
    """``asset0.safetensors`` for ``<asset0>``; other characters that file names may lack become "_"."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', token.strip('<>')).lstrip('.') or '_'}.safetensors"
