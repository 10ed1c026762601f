"""The things that a language model's reply lists, whatever form it gave the list."""

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

from lit_insert.errors import InputError

MAX_TOKENS = 32  # of the segmenters' text towers, start and end included
_KEYS = ("label", "name", "entity", "object", "text", "phrase", "item", "class", "category")
_REFUSAL = re.compile(
    r"\b(i('m| am) (sorry|unable|not able)|sorry|i (cannot|can't|can not|could not|couldn't|do not|don't)|unable to|"
    r"as an ai|cannot (find|identify|help)|can't help)\b",
    re.IGNORECASE,
)
_NOTHING = re.compile(
    r"(none|null|n/?a|nothing|empty|(there are )?no (physical |visible |concrete )?(objects?|entities|things|items))"
    r"( (found|mentioned|in the prompt))?\.?",
    re.IGNORECASE,
)
_ITEM = re.compile(r"^\s*(?:[-*\u2022\u2013+]|\(?\d{1,3}[.):])\s+(.*\S)\s*$", re.MULTILINE)
_THINKING = re.compile(r"<(think|thinking|reasoning)>.*?</\1>", re.DOTALL | re.IGNORECASE)
_OPEN_THINKING = re.compile(r"<(think|thinking|reasoning)>", re.IGNORECASE)
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_KEYED = re.compile(rf'"(?:{"|".join(_KEYS)})"\s*:\s*"((?:[^"\\]|\\.)*)"')


class ExtractionError(InputError):
    """The language model gave no list of things."""


def parse_reply(reply: str, max_tokens: int = MAX_TOKENS) -> list[str]:
    """The labels of a reply.

    In this order: JSON lists or objects anywhere in the text, fenced or not; Python lists; a JSON list that was cut
    off, without its last, broken item; bullets or numbers; a short line with commas.

    Args:
        reply: What the model wrote.
        max_tokens: Labels that may be longer than this (`token_estimate`) are left out.

    Returns:
        Labels in order, tidied; an empty list where the model says that there is nothing.

    Raises:
        ExtractionError: If the model refuses, or the reply holds no list.
    """
    text = _THINKING.sub(" ", reply)
    # Some chat templates open the thought themselves, so that only its end is written.
    text = re.split(r"</(?:think|thinking|reasoning)>", text, flags=re.IGNORECASE)[-1]
    opened = _OPEN_THINKING.search(text)
    text = (text[: opened.start()] if opened else text).strip()
    if not text:
        why = "it was cut off while thinking; allow more tokens" if opened else "the reply is empty"
        raise ExtractionError(f"no list of things: {why}")
    found = _structured(text)
    if found is None:
        found = _plain(text)
    labels = [label for label in map(_tidy, found) if label]
    kept = [label for label in labels if token_estimate(label) <= max_tokens]
    if labels and not kept:
        raise ExtractionError(f"no list of things: every label is too long, such as {labels[0][:50]!r}")
    return kept


def token_estimate(label: str) -> int:
    """How many tokens a label takes at most with CLIP's vocabulary, as a rule: a word's every four bytes, and two."""
    words = re.findall(r"\w+|[^\w\s]", label)
    return 2 + sum(-(-len(word.encode()) // 4) for word in words)


def _structured(text: str) -> list[str] | None:
    """Labels of JSON, Python lists, or a list that was cut off."""
    loose: list[str] = []
    seen_empty = False
    for value in _values(text):
        labels = list(_labels(value))
        if isinstance(value, list) and labels:
            return labels
        seen_empty |= value == [] or (isinstance(value, dict) and list(value.values()) == [[]])
        loose += labels
    if loose:
        return loose
    if seen_empty:
        return []
    start = text.find("[")
    if start < 0 or "]" in text[start:]:
        return None
    cut = text[start:]
    return (_KEYED if "{" in cut else _STRING).findall(cut) or None


def _values(text: str) -> Iterator[Any]:
    """Every JSON or Python list or object in a text that is not part of another."""
    decoder = json.JSONDecoder()
    position = 0
    while match := re.compile(r"[\[{]").search(text, position):
        start = match.start()
        try:
            value, position = decoder.raw_decode(text, start)
        except ValueError:
            closing = _closing(text, start)
            position = start + 1
            if closing is None:
                continue
            try:
                value = ast.literal_eval(text[start:closing])
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
            position = closing
        yield value


def _closing(text: str, start: int) -> int | None:
    """Where the bracket that opens at ``start`` ends."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] in "[{") - (text[position] in "]}")
        if depth == 0:
            return position + 1
    return None


def _labels(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _labels(item)
    elif isinstance(value, dict):
        named = next((value[key] for key in _KEYS if isinstance(value.get(key), str)), None)
        if named is not None:
            yield named
        else:
            for item in value.values():
                if isinstance(item, list | dict):
                    yield from _labels(item)


def _plain(text: str) -> list[str]:
    """Labels of bullets, numbered lines, or a line with commas."""
    bare = text.strip("`\"' \n")
    if _NOTHING.fullmatch(bare):
        return []
    if _REFUSAL.search(text):
        raise ExtractionError(f"no list of things: the model refused ({' '.join(text.split())[:60]!r})")
    items = _ITEM.findall(text)
    if items:
        return [re.split(r"\s*(?::|\s[-\u2013\u2014]\s|\()", item)[0] for item in items]
    lines = [line for line in bare.splitlines() if line.strip(" `")]
    pieces = [piece.strip() for line in lines for piece in line.rstrip(".").split(",")]
    pieces = [re.sub(r"^(and|or)\s+", "", piece) for piece in pieces if piece]
    sentence = any(len(piece.split()) > 5 or re.search(r"[.!?:]", piece) for piece in pieces)
    if not pieces or sentence:
        raise ExtractionError(f"no list of things in the reply {' '.join(text.split())[:60]!r}")
    return pieces


def _tidy(label: str) -> str:
    """A label without quotes, bullets and marks around it; empty if no word is left."""
    label = " ".join(label.replace("*", " ").replace("_", " ").split())
    label = re.sub(r"^\(?\d{1,3}[.)]\s+", "", label).strip("\"'`.,;:!?-\u2013\u2022[]{}() ")
    if not re.search(r"[^\W\d_]", label) or _NOTHING.fullmatch(label):
        return ""
    return label
