"""Where in a prompt the things are: token positions, found by the tokenizer and never counted by hand."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_insert.diffusion.text import prompt_ids
from lit_insert.errors import InputError
from lit_insert.mifo.boxes import PLACEHOLDER, placeholders

# Words of the closed classes: they name nothing, but a text encoder lets them carry what stands before them.
_CLOSED = """
a an the this that these those some any each every no both all and or but nor so yet of in on at by to from with into
onto over under above below near beside behind between before after through across along around against among for as is
are was were be been being has have had do does did can could may might must shall should will would i you he she it we
they me him her us them my your his its our their who whom whose which what there here than then not left right top
bottom
"""
FUNCTION_WORDS = frozenset(_CLOSED.split())


@dataclass(frozen=True, eq=False)
class PromptTokens:
    """A prompt by positions, counted from 0 at the start token.

    Attributes:
        ids: Token ids (1,T), padded.
        subjects: Positions of each subject's tokens.
        filler: Positions of function words that belong to no subject.
        end: Position of the end token; padding follows it.
    """

    ids: Tensor
    subjects: tuple[tuple[int, ...], ...]
    filler: tuple[int, ...]
    end: int


def check_placeholders(prompt: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a prompt with a token that the model has not learned.

    Raises:
        InputError: If it has one; says which there are.
    """
    known = [token for token in tokenizer.get_added_vocab() if PLACEHOLDER.fullmatch(token)]
    for token in placeholders(prompt):
        if token not in known:
            has = f"it knows {', '.join(sorted(known))}" if known else "it has learned none"
            raise InputError(f"the prompt has {token}, which the model does not know; {has}")


def find_tokens(
    prompt: str,
    subjects: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    positions: Sequence[Sequence[int]] | None = None,
) -> PromptTokens:
    """Locate the subjects of a prompt.

    Args:
        prompt: What is to be drawn.
        subjects: Words of the prompt, such as "<asset0>" or "red circle". A subject that is named twice is looked
            for twice, from left to right.
        tokenizer: The model's.
        positions: Token positions to take instead, one list a subject, 0 being the start token.

    Raises:
        InputError: If the prompt is too long, has an unknown placeholder, or lacks a subject.
    """
    check_placeholders(prompt, tokenizer)
    ids = prompt_ids(tokenizer, [prompt])
    row: list[int] = ids[0].tolist()
    length = len(tokenizer(prompt).input_ids)  # with start and end
    if positions is None:
        words = row[1 : length - 1]
        found = _spans(prompt, subjects, words, tokenizer)
    else:
        found = [tuple(int(p) for p in own) for own in positions]
        for own in found:
            if not own or min(own) < 1 or max(own) >= length - 1:
                raise InputError(
                    f"token positions {list(own)}: the prompt has positions 1 to {length - 2} (the first word is 1)"
                )
    taken = {p for own in found for p in own}
    pieces = tokenizer.convert_ids_to_tokens(row[:length])
    bpe = any(piece.endswith("</w>") for piece in pieces)
    filler = []
    for p in range(1, length - 1):
        whole = not bpe or (pieces[p].endswith("</w>") and (p == 1 or not _is_open(pieces[p - 1])))
        if whole and p not in taken and pieces[p].removesuffix("</w>").lower() in FUNCTION_WORDS:
            filler.append(p)
    return PromptTokens(ids, tuple(found), tuple(filler), length - 1)


@torch.no_grad()
def separate_states(text_encoder: PreTrainedModel, tokens: PromptTokens) -> Tensor:
    """States (1,T,X) of a prompt in which no subject's words have seen another's.

    A text encoder lets each word see those before it. The prompt is read once as it is, and once for each subject with
    the words of the others hidden, at unchanged positions; a subject's words are taken from its own reading.

    Args:
        text_encoder: CLIP's text model.
        tokens: The prompt.
    """
    ids = tokens.ids.to(text_encoder.device)
    seen = torch.ones(1 + len(tokens.subjects), ids.shape[-1], dtype=torch.long, device=ids.device)
    for index in range(len(tokens.subjects)):
        for other, own in enumerate(tokens.subjects):
            if other != index:
                seen[1 + index, list(own)] = 0
    readings = text_encoder(ids.expand(len(seen), -1), attention_mask=seen).last_hidden_state
    states = readings[:1].clone()
    for index, own in enumerate(tokens.subjects):
        states[0, list(own)] = readings[1 + index, list(own)]
    return states


def _spans(
    prompt: str, subjects: Sequence[str], words: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[int, ...]]:
    taken: set[int] = set()
    found: list[tuple[int, ...]] = []
    # Longer ones first: "circle" must not take the word that "red circle" needs.
    for index in sorted(range(len(subjects)), key=lambda i: -len(subjects[i])):
        own = tokenizer(subjects[index], add_special_tokens=False).input_ids
        starts = [
            start
            for start in range(len(words) - len(own) + 1)
            if list(words[start : start + len(own)]) == own and not taken & set(range(start, start + len(own)))
        ]
        if not own or not starts:
            again = " once more" if subjects[index] in [s for i, s in enumerate(subjects) if i != index] else ""
            raise InputError(f"{subjects[index]!r} has a box but is not in the prompt {prompt!r}{again}")
        span = range(starts[0], starts[0] + len(own))
        taken.update(span)
        found.append((index, *(p + 1 for p in span)))
    return [tuple(own[1:]) for own in sorted(found)]


def _is_open(piece: str) -> bool:
    """Whether a word goes on after this byte-pair piece; added tokens stand alone without the mark."""
    return not piece.endswith("</w>") and not (piece.startswith("<") and piece.endswith(">"))
