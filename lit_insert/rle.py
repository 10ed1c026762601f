"""Masks as run lengths, in the form of COCO annotations."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lit_insert.errors import InputError


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """Run lengths of a mask, as pycocotools and COCO results files write them.

    Args:
        mask: (H,W); what is not zero is set.

    Returns:
        ``{"size": [H, W], "counts": str}``.
    """
    flat = (np.asarray(mask) != 0).ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate([[0], edges, [flat.size]]) if flat.size else np.zeros(1, np.int64)
    counts: list[int] = np.diff(bounds).tolist()
    if flat.size and flat[0]:
        counts.insert(0, 0)  # the first run is always of zeros
    return {"size": [int(n) for n in np.shape(mask)], "counts": _pack(counts)}


def decode_rle(rle: Mapping[str, Any]) -> np.ndarray:
    """The mask that ``{"size": [H, W], "counts": …}`` stands for, uint8 (H,W) in {0,1}.

    ``counts`` is a list of run lengths, columns first and zeros first, or the same packed into a string.

    Raises:
        InputError: If the runs do not fill the size, or are none.
    """
    try:
        height, width = (int(n) for n in rle["size"])
        counts = rle["counts"]
        runs = np.asarray(counts if isinstance(counts, list) else _unpack(counts), dtype=np.int64)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError("not run lengths: give size [height, width] and counts") from error
    if runs.ndim != 1 or runs.min(initial=0) < 0 or runs.sum() != height * width:
        raise InputError(f"the run lengths do not fill {height}x{width} pixels")
    values = np.arange(len(runs), dtype=np.uint8) % 2
    return np.repeat(values, runs).reshape((height, width), order="F")


def _pack(counts: list[int]) -> str:
    """Five bits a character, the lowest first; from the fourth on, differences from the number two before."""
    text = []
    for i, count in enumerate(counts):
        rest = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            bits, rest = rest & 31, rest >> 5
            more = rest != (-1 if bits & 16 else 0)
            text.append(chr(48 + bits + 32 * more))
    return "".join(text)


def _unpack(text: str | bytes) -> list[int]:
    counts: list[int] = []
    value = shift = 0
    for code in text.encode("ascii") if isinstance(text, str) else text:
        bits = code - 48
        if not 0 <= bits < 64:
            raise ValueError(f"character {code} in packed counts")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("packed counts end in the middle of a number")
    return counts
