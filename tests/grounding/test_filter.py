"""Which labels are things."""

import pytest

from lit_insert.grounding.filter import filter_labels, is_thing, normal

KEPT = """shadow puppet;angle grinder;mood board;background dancer;reflection pool;composition notebook;light bulb;
traffic light;style guide;picture frame;photo album;color wheel;texture brush;wall;sky;floor;night stand;
light brown cabinet
""".replace("\n", "").split(";")
DROPPED = """lighting;soft lighting;golden hour light;shadow;long shadows;dramatic atmosphere;cinematic style;mood;
composition;background;blurred background;depth of field;shallow depth of field;high resolution;masterpiece;bokeh;
warm color palette;ambience;volumetric light;vibrant colors;the scene;8k;minimalist aesthetic;low angle view
""".replace("\n", "").split(";")


@pytest.mark.parametrize("label", KEPT)
def test_things_stay(label):
    assert is_thing(label)


@pytest.mark.parametrize("label", DROPPED)
def test_what_has_no_mask_goes(label):
    assert not is_thing(label)


def test_each_thing_once_in_order():
    labels = ["Red Sofa", "a dog", "red  sofa", "DOG", "the red sofa", "lighting"]
    assert filter_labels(labels) == ["Red Sofa", "dog"]
    assert filter_labels(labels, most=1) == ["Red Sofa"]


def test_the_lists_are_read():
    assert filter_labels(["dog", "lighting"], excluded=["dog"]) == ["lighting"]
    assert filter_labels(["old dog", "dog"], excluded=["dog"], qualifiers=["old"]) == []
    assert filter_labels(["old dog", "dog"], excluded=["dog"], qualifiers=[]) == ["old dog"]
    assert filter_labels(["Sea  Shell"], excluded=["sea shell"]) == []


def test_comparison_knows_articles_and_case():
    assert normal("The  Red Sofa") == "red sofa"
    assert normal("a") == "a"
