"""Random numbers that depend on nothing but (seed, rank, step)."""

import hashlib

import torch


def step_generator(seed: int, rank: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one training step on one rank.

    The same triple gives the same stream whether the run was interrupted or not; other ranks and steps give
    unrelated streams.

    Args:
        seed: Run seed.
        rank: Global rank of the process.
        step: Number of the batch within the run, counted over all epochs.
        device: Where the numbers are drawn.
    """
    digest = hashlib.blake2b(f"{seed}/{rank}/{step}".encode(), digest_size=8).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest, "little") >> 1)
