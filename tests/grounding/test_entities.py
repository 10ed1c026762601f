"""What a prompt names, by each backend; the language model has random weights."""

import json

import pytest
import torch
from tiny_grounding import tiny_qwen
from tiny_segmenters import picture

from lit_insert.errors import InputError
from lit_insert.grounding.entities import GivenEntities, NounPhraseEntities, QwenEntities
from lit_insert.grounding.grammar import allowed_tokens, begins_list, is_list
from lit_insert.grounding.parse import ExtractionError


@pytest.fixture(scope="module")
def qwen():
    return QwenEntities(*tiny_qwen(5), max_new_tokens=48, constrain=True)


def test_given_labels():
    assert GivenEntities(" dog ; red  sofa;").extract("whatever") == ["dog", "red sofa"]
    assert GivenEntities(["a", " "]).extract("") == ["a"]
    with pytest.raises(InputError, match="none given"):
        GivenEntities(" ; ")


def test_rules():
    assert NounPhraseEntities().extract("a dog on a sofa") == ["dog", "sofa"]


def test_a_model_held_to_the_grammar_gives_labels(qwen):
    labels = qwen.extract('A dog "says": hello')
    assert labels
    assert all(len(label) <= 30 for label in labels)
    assert qwen.extract('A dog "says": hello') == labels


def test_a_model_can_be_made_to_say_one_of_some_texts(qwen):
    wanted = '["dog", "red sofa"]'
    assert qwen.ask([{"type": "text", "text": "what?"}], [wanted]) == wanted
    answer = qwen.ask([{"type": "image", "image": picture()}, {"type": "text", "text": "a dog?"}], ["yes", "no"])
    assert answer in ("yes", "no")


def test_an_answer_that_is_no_list_is_an_error(monkeypatch, qwen):
    monkeypatch.setattr(qwen, "ask", lambda *a: "I cannot see any prompt.")
    with pytest.raises(ExtractionError):
        qwen.extract("A dog")


def test_the_prompt_cannot_end_its_own_quotes(monkeypatch, qwen):
    asked = []
    monkeypatch.setattr(qwen, "ask", lambda content, only: asked.append(content) or "[]")
    prompt = 'A sign: "ignore this" \\ and\nanother line'
    qwen.extract(prompt)
    text = asked[0][0]["text"]
    assert json.loads(text[text.index('"A sign') :]) == prompt


def test_save_and_load(qwen, tmp_path):
    qwen.model.save_pretrained(tmp_path)
    qwen.processor.save_pretrained(tmp_path)
    again = QwenEntities.from_folder(tmp_path, dtype=torch.float32, max_new_tokens=48, constrain=True)
    assert again.extract("A dog") == qwen.extract("A dog")
    with pytest.raises(InputError, match=r"no weights|no config"):
        QwenEntities.from_folder(tmp_path / "..", dtype=torch.float32)


@pytest.mark.parametrize(
    ("text", "begins", "whole"),
    [
        ("", True, False),
        ("[", True, False),
        ("[]", True, True),
        ('["', True, False),
        ('["dog', True, False),
        ('["dog"', True, False),
        ('["dog",', True, False),
        ('["dog", ', True, False),
        ('["dog", "red sofa"]', True, True),
        ('["dog","cat"]', True, True),
        ('["dog" "cat"]', False, False),
        ('["dog",]', False, False),
        ('[dog"]', False, False),
        ('["]', False, False),
        ('["1"]', False, False),
        ('["dog"] ', False, False),
        ("Sure", False, False),
        ('["' + "a" * 31, False, False),
    ],
)
def test_the_grammar(text, begins, whole):
    assert begins_list(text) == begins
    assert is_list(text) == whole
    if whole:
        json.loads(text)


def test_when_nothing_fits_the_answer_ends(qwen):
    tokenizer = qwen.processor.tokenizer
    ids = torch.tensor(tokenizer("Sure").input_ids)
    assert allowed_tokens(tokenizer, 0, "list")(0, ids) == [tokenizer.eos_token_id]
