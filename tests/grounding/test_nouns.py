"""Noun phrases by rules."""

import pytest

from lit_insert.data import world
from lit_insert.grounding.filter import filter_labels
from lit_insert.grounding.nouns import noun_phrases

CASES = {
    "A dog sitting on a red sofa": ["dog", "red sofa"],
    "a photo of a striped red circle and a blue ring": ["striped red circle", "blue ring"],
    "A black and white cat sleeping on a stack of old books": ["black and white cat", "old books"],
    "A group of tourists near the Eiffel Tower": ["tourists", "Eiffel Tower"],
    "a bowl of fruit": ["bowl", "fruit"],
    "a bus crossing Westminster Bridge": ["bus", "Westminster Bridge"],
    "a woman watches the boats": ["woman", "boats"],
    "running horses and a sleeping baby": ["running horses", "sleeping baby"],
    "two dogs": ["dogs"],
    "an orange on a glass": ["orange", "glass"],
    "a wooden table next to a lamp": ["wooden table", "lamp"],
    "a castle, oil painting by Claude Monet": ["castle"],
    "a ship in the style of Turner": ["ship"],
    "a robot, shallow depth of field": ["robot"],
    "": [],
    "quickly and quietly": [],
    "!!! ...": [],
}


@pytest.mark.parametrize("prompt", CASES)
def test_phrases(prompt):
    assert noun_phrases(prompt) == CASES[prompt]


def test_every_name_of_the_world_is_found_whole():
    every = [(s, c, t) for s in range(len(world.SHAPES)) for c in range(len(world.COLORS)) for t in range(3)]
    for kind in every:
        name = world.describe(kind).split(" ", 1)[1]
        assert name in filter_labels(noun_phrases(f"a photo of {world.describe(kind)} and a red square on tiles"))
