"""The picture of the README: ``python benchmarks/insert_picture.py docs/images/insert.png``."""

import sys

from lit_insert import InsertPipeline
from lit_insert.data.scenes import SceneDataset
from lit_insert.embedding_optimizer.evaluate import evaluate_insertion
from lit_insert.images import image_grid, save_image

CAPTIONS = ["scene", "reference", "result", "another reference", "its result", "the true target"]

if __name__ == "__main__":
    pipeline = InsertPipeline.from_pretrained("pocket")
    pipeline.set_progress_bar_config(disable=True)
    found = evaluate_insertion(pipeline, SceneDataset("test", 10), pictures=10, preserve_background=False)
    columns = [[row[i].resize((96, 96), 0) for row in found.rows] for i in range(len(CAPTIONS))]
    save_image(image_grid(columns), sys.argv[1] if len(sys.argv) > 1 else "insert.png")
