"""Run-length encoding of masks as COCO has it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lit_insert.errors import InputError


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """A mask in COCO's compressed form, as pycocotools writes and reads it.

    Args:
        mask: (H,W), true or nonzero inside.

    Returns:
        ``size`` [H, W], and ``counts``, a string: the lengths of runs down the columns, the first one outside the
        mask; from the fourth on as difference to the one before the last; in groups of five bits.
    """
    flat = np.asarray(mask, dtype=bool).ravel(order="F")
    starts = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], starts, [flat.size]])).tolist()
    if flat.size and flat[0]:
        runs.insert(0, 0)
    text = []
    for i, run in enumerate(runs):
        value = run - runs[i - 2] if i > 2 else run
        more = True
        while more:
            bits, value = value & 0x1F, value >> 5
            more = value != (-1 if bits & 0x10 else 0)  # the sign is that of the last group's highest bit
            text.append(chr(48 + bits + 0x20 * more))
    return {"size": [int(side) for side in mask.shape], "counts": "".join(text)}


def decode_rle(counts: str | bytes | Sequence[int], size: Sequence[int]) -> np.ndarray:
    """A mask from COCO's run lengths, compressed or not.

    Args:
        counts: A string as `encode_rle` makes, or the lengths themselves.
        size: (H, W).

    Returns:
        (H,W) bool.

    Raises:
        InputError: If the lengths are broken or do not fill the mask.
    """
    height, width = (int(side) for side in size)
    runs = _lengths(counts) if isinstance(counts, str | bytes) else [int(c) for c in counts]
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise InputError(f"run lengths add up to {sum(runs)} pixels, a mask of {height}x{width} has {height * width}")
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape((height, width), order="F")


def _lengths(counts: str | bytes) -> list[int]:
    data = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    runs: list[int] = []
    value = shift = 0
    for byte in data:
        bits = byte - 48
        if not 0 <= bits < 64:
            raise InputError(f"run lengths contain {chr(byte)!r}, which is none of COCO's characters")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise InputError("run lengths end in the middle of a number")
    return runs
