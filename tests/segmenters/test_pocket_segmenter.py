"""The segmenter that ships with the package finds what phrases name on scenes."""

import json

import pytest
import torch

from lit_insert.cli.infer import main
from lit_insert.data.phrase_scenes import Layout, PhraseSceneDataset, draw, rearrange
from lit_insert.images import to_pil
from lit_insert.segmenters.loading import load_segmenter


def test_the_right_phrase_beats_the_wrong_one():
    data = PhraseSceneDataset("test", 24, phrases=4, least=2)
    segmenter = load_segmenter("pocket")
    right, wrong = [], []
    for i in range(24):
        sample = data[i]
        maps = segmenter.heatmaps(to_pil(sample["image"]), sample["phrases"].split(";")) > 0.5
        for p, mask in enumerate(sample["masks"] > 0.5):
            other = sample["masks"][(p + 1) % 4] > 0.5
            if mask.any() and other.any() and not (mask & other).any():
                right.append(float((maps[p] & mask).sum() / (maps[p] | mask).sum()))
                wrong.append(float((maps[p] & other).sum() / (maps[p] | other).sum()))
    assert sum(right) / len(right) > 0.6
    assert sum(wrong) < 0.5 * sum(right)


def test_the_command_with_nothing_but_the_package(tmp_path, capsys):
    data = PhraseSceneDataset("test", 8, least=2, most=2)
    index = torch.arange(8) + (1 << 41)
    before: Layout = data.lay_out(index)
    after, _ = rearrange(before, index)
    for name, layout in (("a", before), ("b", after)):
        to_pil(draw(layout, 64)[0][0]).save(tmp_path / f"{name}.png")
    prompt = "a photo of a blue thing and a red square"
    with pytest.raises(SystemExit) as end:
        main(
            [
                *("segment", "--model", "pocket", "-p", prompt, "-c", str(tmp_path / "a.png"), "--device", "cpu"),
                *("-g", str(tmp_path / "b.png"), "-o", str(tmp_path / "out"), "-q"),
            ]
        )
    assert end.value.code == 0, capsys.readouterr().err
    record = json.loads((tmp_path / "out/segmentation.json").read_text())
    assert [e["text"] for e in record["entities"]] == ["blue thing", "red square"]
    assert {i["status"] for i in record["images"]} == {"ok"}
