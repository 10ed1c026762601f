import json
import sys

import numpy as np
import torch
from scripts import load
from tiny_grounding import ColourSegmenter

from lit_insert.data.phrase_scenes import PhraseSceneDataset
from lit_insert.segmenters.base import Instance, Instances


def test_entities_and_pairing_meet_their_marks(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "--model", "none", "--n", "32", "--json"])
    load("grounding_quality").main()
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])["scores"]
    assert scores["entities"]["scene captions"] >= 0.98
    assert scores["entities"]["real prompts"] >= 0.85
    assert scores["entities"]["prompts"] == 60
    assert scores["pairing"]["exact masks"] >= 0.95


def test_counting():
    module = load("grounding_quality")
    one, two = np.zeros((2, 10, 10), bool)
    one[:4, :4] = True
    two[6:, 6:] = True
    count = module.Count()
    count.add([one, one], [one, two])
    assert (count.hits, count.wrong, count.missed) == (1, 1, 1)
    assert count.scores()["f1"] == 0.5
    assert count.scores()["overlap"] == 1


class Knows(ColourSegmenter):
    """Answers every phrase of a data set exactly."""

    def __init__(self, data):
        super().__init__()
        self.samples = iter([data[i] for i in range(len(data))])

    def instances(self, image, prompts, **options):
        sample = next(self.samples)
        assert ";".join(prompts) == sample["phrases"]
        things = [Instance.from_mask(t.numpy() > 0.5, 0.9) if t.any() else None for t in sample["things"]]
        match = torch.tensor([[k is not None for k in things]]) & (
            (sample["kinds"][:, None] == -1) | (sample["kinds"][:, None] == sample["labels"][None])
        ).all(-1)
        return [
            Instances(p, 1.0, [t for t, named in zip(things, row, strict=True) if named])
            for p, row in zip(prompts, match, strict=True)
        ]


def test_a_perfect_segmenter_has_a_perfect_score_and_the_controls_have_not():
    data = PhraseSceneDataset("val", 16, phrases=5, least=2)
    scores = load("grounding_quality").instances(Knows(data), data, 16, {})
    assert scores["model"]["f1"] == 1
    assert scores["absent"] == 1
    assert scores["control: another phrase"]["f1"] < 0.7
    assert scores["control: all things"]["f1"] < 0.8
    assert 0 < scores["absent_phrases"] < scores["phrases"] == 80
