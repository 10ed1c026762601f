"""Segmenters by name, and what is said where a model cannot be had."""

import pytest

from lit_insert.errors import InputError
from lit_insert.segmenters.loading import load_segmenter, model_folder


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match="sam3, clipseg, pocket, given"):
        load_segmenter("sam2")


def test_a_model_that_cannot_be_had_is_explained_in_one_line(tmp_path):
    with pytest.raises(InputError) as error:
        load_segmenter("sam3", cache_dir=tmp_path)
    text = str(error.value)
    assert "facebook/sam3" in text
    assert "https://huggingface.co/facebook/sam3" in text
    assert "clipseg or pocket" in text
    assert "\n" not in text


def test_a_checkpoint_must_be_exported_first(tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"x")
    with pytest.raises(InputError, match="export it first"):
        model_folder(tmp_path / "last.ckpt", default_pocket="segment", ungated=("a", "b"))
