"""Generation held to a form: at each step only the tokens that can still lead to it."""

import re
from collections.abc import Callable, Sequence
from typing import Any

# Thirty characters are never more than the 32 tokens that segmenters read, start and end included.
_OPEN = r'"(?:[^\W\d_][\w \'-]{0,29})?'
_ITEM = r'"[^\W\d_][\w \'-]{0,29}"'
_BEGUN = re.compile(rf"\[(?:{_ITEM}, ?)*(?:{_OPEN}|{_ITEM},?)?")
_WHOLE = re.compile(rf"\[(?:{_ITEM}(?:, ?{_ITEM})*)?\]")


def is_list(text: str) -> bool:
    """Whether a text is a JSON list of short strings."""
    return bool(_WHOLE.fullmatch(text))


def begins_list(text: str) -> bool:
    """Whether a text can be continued to one."""
    return text == "" or bool(_BEGUN.fullmatch(text)) or is_list(text)


def allowed_tokens(tokenizer: Any, start: int, only: str | Sequence[str]) -> Callable[[int, Any], list[int]]:
    """A ``prefix_allowed_tokens_fn`` for ``generate``.

    Every token of the vocabulary is tried at every step: half a second a token with a vocabulary of 150,000.

    Args:
        tokenizer: Whose tokens are chosen from.
        start: Length of the input, after which the answer begins.
        only: "list" for a JSON list of strings, or the texts of which the answer must be one.
    """
    special = set(tokenizer.all_special_ids)
    pieces = {i: tokenizer.decode([i]) for i in range(len(tokenizer)) if i not in special}
    pieces = {i: piece for i, piece in pieces.items() if piece and "\ufffd" not in piece}
    choices = None if only == "list" else tuple(only)

    def fits(text: str) -> bool:
        return begins_list(text) if choices is None else any(choice.startswith(text) for choice in choices)

    def whole(text: str) -> bool:
        return is_list(text) if choices is None else text in choices

    def allowed(batch: int, ids: Any) -> list[int]:
        text = tokenizer.decode(ids[start:], skip_special_tokens=True)
        kept = [i for i, piece in pieces.items() if fits(text + piece)]
        return [*kept, tokenizer.eos_token_id] if whole(text) or not kept else kept

    return allowed
