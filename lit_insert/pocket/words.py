"""A CLIP tokenizer for a small world, made on the spot: known words are one token each, others are spelt."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from transformers import CLIPTokenizer

from lit_insert.data import world

_AROUND = """
a an the some one two three four thing things shape shapes object objects and or with on in of at to next left right
above below top bottom upper lower middle corner side there is are scene picture photo background backdrop no nothing
empty behind front beside near between add put place replace remove by like this that every each all any small large
big plain
"""
# Names of what the world is made of, and the words that captions and phrases put around them.
WORDS = (
    *world.SHAPES,
    *(f"{shape}{'es' if shape.endswith('s') else 's'}" for shape in world.SHAPES),
    *world.COLORS,
    *world.TEXTURES,
    *world.BACKGROUNDS,
    *_AROUND.split(),
)
_START, _END = "<|startoftext|>", "<|endoftext|>"


def word_tokenizer(words: Sequence[str] = WORDS, max_length: int = 32) -> CLIPTokenizer:
    """A CLIPTokenizer in which each of ``words`` is one token; needs no files.

    Its byte-pair merges are learnt from the list itself, the most common pair first, until no word is in pieces.

    Args:
        words: Lower-case words.
        max_length: Longest text in tokens, with start and end.
    """
    pieces = [[*word[:-1], f"{word[-1]}</w>"] for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while any(len(parts) > 1 for parts in pieces):
        pairs = Counter(pair for parts in pieces for pair in pairwise(parts))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = [_merge(parts, best) for parts in pieces]
    letters = list(byte_letters())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), _START, _END]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def byte_letters() -> list[str]:
    """The 256 letters that byte-level tokenizers write bytes as: printable ones as themselves, others from 256 on."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in shown else chr(next(spare)) for byte in range(256)]
