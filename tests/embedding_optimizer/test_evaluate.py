"""The shipped pocket model does what its card says, at a small sample."""

import pytest

from lit_insert import InsertPipeline
from lit_insert.data.scenes import SceneDataset
from lit_insert.embedding_optimizer.evaluate import evaluate_insertion


@pytest.fixture(scope="module")
def found():
    pipeline = InsertPipeline.from_pretrained("pocket")
    pipeline.set_progress_bar_config(disable=True)
    return evaluate_insertion(pipeline, SceneDataset("val", 24), pictures=5, preserve_background=False)


def test_the_shipped_model_inserts_what_it_is_shown(found):
    scores = found.scores["insert"]
    assert scores["color"] >= 0.9
    assert scores["shape"] >= 0.75
    assert scores["clear"] >= 0.8
    assert scores["background_psnr"] >= 30


def test_another_reference_changes_the_result_accordingly(found):
    assert found.scores["shuffled reference"]["color"] >= 0.9
    original = found.scores["shuffled, original"]["color"]
    assert original <= found.coincidence["color"] + 0.1


def test_controls_frame_the_scores(found):
    assert found.scores["target"]["all"] >= 0.95
    assert found.scores["copy source"]["found"] == 0
    assert len(found.rows) == 5
    assert all(len(row) == 6 for row in found.rows)
