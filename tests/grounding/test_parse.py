"""Replies of language models, in every form that they come in."""

import pytest

from lit_insert.errors import InputError
from lit_insert.grounding.parse import ExtractionError, parse_reply, token_estimate

GOOD = {
    "a JSON list": ('["dog", "red sofa"]', ["dog", "red sofa"]),
    "an empty list": ("[]", []),
    "fenced": ('```json\n["dog", "cat"]\n```', ["dog", "cat"]),
    "fenced without a language": ('```\n["dog"]\n```', ["dog"]),
    "prose around": ('Sure! Here are the things: ["dog", "cat"]. Anything else?', ["dog", "cat"]),
    "prose around a fence": ('The list:\n```json\n["a dog"]\n```\nI hope it helps.', ["a dog"]),
    "bullets": ("- dog\n- red sofa", ["dog", "red sofa"]),
    "stars": ("* dog\n* red sofa\n", ["dog", "red sofa"]),
    "bold bullets with a colon": ("Objects:\n- **dog**: an animal\n- **sofa**: furniture", ["dog", "sofa"]),
    "round bullets": ("\u2022 dog\n\u2022 cat", ["dog", "cat"]),
    "numbers": ("1. dog\n2. red sofa", ["dog", "red sofa"]),
    "numbers with brackets": ("1) dog\n2) red sofa", ["dog", "red sofa"]),
    "an introduction before numbers": ("Things in it are:\n1. dog\n2. cat (small)", ["dog", "cat"]),
    "objects": ('[{"label": "dog", "bbox_2d": [1, 2, 3, 4]}, {"label": "cat"}]', ["dog", "cat"]),
    "objects with another key": ('[{"name": "dog"}, {"name": "cat"}]', ["dog", "cat"]),
    "one object": ('{"label": "dog", "bbox_2d": [0, 1, 2, 3]}', ["dog"]),
    "objects line by line": ('{"label": "dog"}\n{"label": "cat"}', ["dog", "cat"]),
    "an object around the list": ('{"entities": ["dog", "cat"]}', ["dog", "cat"]),
    "an object around an empty list": ('{"entities": []}', []),
    "an object around objects": ('{"objects": [{"label": "dog"}, {"label": "cat"}]}', ["dog", "cat"]),
    "nested lists": ('[["dog", "cat"], ["sofa"]]', ["dog", "cat", "sofa"]),
    "a Python list": ("['dog', 'red sofa']", ["dog", "red sofa"]),
    "an apostrophe in a Python list": ("['dog', \"child's toy\"]", ["dog", "child's toy"]),
    "numbers in brackets before the list": ('[1] The things: ["dog"]', ["dog"]),
    "cut off in an item": ('["dog", "red so', ["dog"]),
    "cut off after a comma": ('["dog", "cat",', ["dog", "cat"]),
    "objects cut off": ('[{"label": "dog", "bbox_2d": [1, 2]}, {"label": "ca', ["dog"]),
    "a thought before": ('<think>There is a ["cat"]?</think>\n["dog"]', ["dog"]),
    "a thought that the template opened": ('maybe a ["cat"]\n</think>\n["dog"]', ["dog"]),
    "commas": ("dog, red sofa, lamp", ["dog", "red sofa", "lamp"]),
    "commas and an and": ("dog, cat, and lamp.", ["dog", "cat", "lamp"]),
    "one word": ("dog", ["dog"]),
    "one word and a stop": ("Dog.", ["Dog"]),
    "lines": ("dog\nred sofa", ["dog", "red sofa"]),
    "the word none": ("None", []),
    "none in words": ("There are no physical objects in the prompt.", []),
    "null among labels": ('["dog", null, "none", "", 3]', ["dog"]),
    "bullets inside labels": ('["- dog", "1. cat", "* sofa"]', ["dog", "cat", "sofa"]),
    "spaces": ('["  red\\n sofa "]', ["red sofa"]),
    "other scripts": ('["собака", "赤い椅子"]', ["собака", "赤い椅子"]),
}
BAD = {
    "nothing": "",
    "a refusal": "I cannot find any objects",
    "an apology": "I'm sorry, but I can't help with that.",
    "one word of apology": "sorry.",
    "as an AI": "As an AI language model, I have no access to images.",
    "a sentence": "The prompt describes a calm evening by the sea with a lot of wind.",
    "a thought that does not end": '<think>The prompt has ["dog"',
    "only long labels": '["' + "word " * 60 + '"]',
}


@pytest.mark.parametrize("case", GOOD)
def test_what_replies_list(case):
    reply, expected = GOOD[case]
    assert parse_reply(reply) == expected


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_list(case):
    with pytest.raises(ExtractionError) as error:
        parse_reply(BAD[case])
    assert isinstance(error.value, InputError)
    assert "\n" not in str(error.value)


def test_labels_that_no_segmenter_reads_are_left_out():
    long = "very " * 40 + "dog"
    assert parse_reply(f'["dog", "{long}"]') == ["dog"]
    assert token_estimate("red sofa") == 4
    assert token_estimate(long) > 32
    assert all(
        token_estimate(label) <= 5 for label in parse_reply('["a dog", "weather-beaten red barn"]', max_tokens=5)
    )
