"""What a prompt names: by a language model, by rules, or as given."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from lit_insert.errors import InputError
from lit_insert.grounding.nouns import noun_phrases
from lit_insert.grounding.parse import parse_reply

if TYPE_CHECKING:
    import torch

QWEN = "Qwen/Qwen3-VL-8B-Instruct"
INSTRUCTION = (
    "List the physical things that the prompt for a picture names: people, animals, plants, food, clothes, furniture, "
    "vehicles, buildings, parts of the landscape. Keep words that tell a thing apart, such as its colour or material. "
    "Leave out light, mood, style, camera and quality. Answer with a JSON list of strings and nothing else.\n"
    "The prompt, as a JSON string: "
)


@dataclass(frozen=True)
class Entity:
    """A thing that the prompt names.

    Attributes:
        text: Its label.
        source: Which backend named it.
    """

    text: str
    source: str


class EntityBackend(Protocol):
    """Names the things of a prompt; labels as found, not yet filtered."""

    name: str

    def extract(self, prompt: str) -> list[str]:
        """Labels in order."""
        ...


class GivenEntities:
    """The labels that the user gave.

    Args:
        labels: One string with ``;`` between labels, or a list.

    Raises:
        InputError: If there is none.
    """

    name = "given"

    def __init__(self, labels: str | Sequence[str]) -> None:
        parts = labels.split(";") if isinstance(labels, str) else labels
        self.labels = [" ".join(part.split()) for part in parts if part.strip()]
        if not self.labels:
            raise InputError("labels: none given; write them with ; between, such as 'dog;red sofa'")

    def extract(self, prompt: str) -> list[str]:
        """The given labels, whatever the prompt."""
        return list(self.labels)


class NounPhraseEntities:
    """The noun phrases of the prompt, by rules (`lit_insert.grounding.nouns`)."""

    name = "noun-phrases"

    def extract(self, prompt: str) -> list[str]:
        """Noun phrases in order."""
        return noun_phrases(prompt)


class QwenEntities:
    """Qwen3-VL (Bai et al. 2025, arXiv 2511.21631) asked for a JSON list; greedy, so that a prompt has one answer.

    Args:
        model: A Qwen3VLForConditionalGeneration.
        processor: Its processor, with a chat template.
        max_new_tokens: Longest answer.
        constrain: Let the model write nothing but a JSON list of strings.
    """

    name = "qwen3-vl"

    def __init__(self, model: Any, processor: Any, max_new_tokens: int = 512, constrain: bool = False) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.processor, self.max_new_tokens, self.constrain = processor, max_new_tokens, constrain

    @classmethod
    def from_folder(cls, folder: str | Path, *, dtype: "torch.dtype", **options: Any) -> Self:
        """Load an exported model with its processor.

        Raises:
            InputError: If a part is missing or broken.
        """
        from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

        from lit_insert.artifacts.weights import load_component, load_processor

        model = load_component(Qwen3VLForConditionalGeneration, folder, ".", dtype=dtype)
        return cls(model, load_processor(Qwen3VLProcessor, folder, "Qwen3-VL processor"), **options)

    def to(self, device: "str | torch.device") -> Self:
        """Move to a device; returns the backend."""
        self.model.to(device)
        return self

    def extract(self, prompt: str) -> list[str]:
        """The labels of the model's answer.

        Raises:
            ExtractionError: If the answer is no list.
        """
        question = INSTRUCTION + json.dumps(prompt, ensure_ascii=False)
        return parse_reply(self.ask([{"type": "text", "text": question}], "list" if self.constrain else None))

    def ask(self, content: list[dict[str, Any]], only: str | Sequence[str] | None = None) -> str:
        """The model's answer to one turn.

        Args:
            content: Texts, and pictures as ``{"type": "image", "image": PIL}``.
            only: "list" for a JSON list of strings, or the texts of which the answer must be one.
        """
        import torch

        messages = [{"role": "user", "content": content}]
        inputs = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device)
        length = inputs["input_ids"].shape[1]
        options: dict[str, Any] = {}
        if only is not None:
            from lit_insert.grounding.grammar import allowed_tokens

            options["prefix_allowed_tokens_fn"] = allowed_tokens(self.processor.tokenizer, length, only)
        with torch.no_grad():
            written = self.model.generate(**inputs, do_sample=False, max_new_tokens=self.max_new_tokens, **options)
        return str(self.processor.tokenizer.decode(written[0, length:], skip_special_tokens=True))


LOADERS: dict[str, Callable[..., EntityBackend]] = {
    "qwen3-vl": QwenEntities.from_folder,
    "noun-phrases": NounPhraseEntities,
    "given": GivenEntities,
}
