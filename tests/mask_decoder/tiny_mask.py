"""Networks of a few thousand weights, one of each family, and batches for them."""

from typing import Any

import torch

PLAIN: dict[str, Any] = {
    "encoder": "hiera_tiny_224",
    "encoder_kwargs": {"embed_dim": 8, "stages": [1, 1, 1, 1]},
    "img_size": 64,
    "decoder_channels": 16,
    "fine_channels": [8, 4],
}
ABSWIN = PLAIN | {
    "encoder": "hiera_small_abswin_256",
    "encoder_kwargs": {"embed_dim": 8, "stages": [1, 1, 1, 1], "init_values": None},
}
DET = PLAIN | {
    "encoder": "hieradet_small",
    "encoder_kwargs": {"embed_dim": 8, "stages": [1, 1, 2, 1], "global_att_blocks": [3], "init_values": None},
}
SAM2 = DET | {"encoder": "sam2_hiera_tiny"}
FAMILIES = {"plain": PLAIN, "abswin": ABSWIN, "hieradet": DET, "sam2": SAM2}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 4, size: int = 64, seed: int = 0) -> dict[str, Any]:
    """Grey noise with a bright square somewhere; the last picture has none, and a strip that is ignored."""
    generator = seeded(seed)
    image = torch.rand(count, 3, size, size, generator=generator) - 1
    mask = torch.zeros(count, 1, size, size)
    for i in range(count - 1):
        top, left = torch.randint(0, size // 2, (2,), generator=generator).tolist()
        mask[i, :, top : top + size // 2, left : left + size // 2] = 1
    image = torch.where(mask == 1, image + 1, image)
    mask[-1, :, :4] = 255
    return {"image": image, "mask": mask, "id": [f"s{i}" for i in range(count)]}
