"""A picture of two things with their masks, as files."""

import numpy as np
from PIL import Image


def write_instances(folder, size=(40, 32), masks=((2, 2, 14, 14), (20, 12, 36, 28))):
    """A picture with a bright rectangle for each mask (x0, y0, x1, y1)."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    picture = generator.integers(60, 90, (size[1], size[0], 3), dtype=np.uint8)
    for i, (x0, y0, x1, y1) in enumerate(masks):
        picture[y0:y1, x0:x1, i % 3] = 240
        mask = np.zeros((size[1], size[0]), np.uint8)
        mask[y0:y1, x0:x1] = 255
        Image.fromarray(mask).save(folder / f"mask{i}.png")
    Image.fromarray(picture).save(folder / "img.png")
    return folder
