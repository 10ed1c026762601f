import pytest
import tiny_text
import torch

from lit_insert.errors import InputError
from lit_insert.mifo.prompts import find_tokens, separate_states
from lit_insert.pocket.words import word_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    words = word_tokenizer(tiny_text.WORDS, tiny_text.LENGTH)
    words.add_tokens(["<asset0>", "<asset1>"])
    return words


def test_placeholders_stand_where_the_original_counts_them(tokenizer):
    found = find_tokens("a photo of <asset0> and <asset1>", ["<asset0>", "<asset1>"], tokenizer)
    assert found.subjects == ((4,), (6,))
    assert found.filler == (1, 3, 5)  # a, of, and
    assert found.end == 7
    assert found.ids.shape == (1, 16)
    assert found.ids[0, 7] == tokenizer.eos_token_id


def test_subjects_are_any_words_in_any_order(tokenizer):
    prompt = "a photo of a striped red circle and a Blue square on the beach"
    found = find_tokens(prompt, ["blue square", "striped red circle"], tokenizer)
    assert found.subjects == ((10, 11), (5, 6, 7))
    assert found.filler == (1, 3, 4, 8, 9, 12, 13)
    words = tokenizer.convert_ids_to_tokens(found.ids[0].tolist())
    assert [words[p] for p in found.subjects[0]] == ["blue</w>", "square</w>"]


def test_words_that_are_spelt_out_are_found_whole(tokenizer):
    found = find_tokens("a cat, a photo", ["cat"], tokenizer)
    pieces = tokenizer.convert_ids_to_tokens(found.ids[0].tolist())
    assert [pieces[p] for p in found.subjects[0]] == ["c", "a", "t</w>"]
    assert found.filler == (1, 6)  # the letter a within the word is no article


def test_one_name_twice_means_two_places(tokenizer):
    found = find_tokens("a red circle and a red circle", ["red circle", "red circle"], tokenizer)
    assert found.subjects == ((2, 3), (6, 7))
    with pytest.raises(InputError, match=r"'red circle' has a box but is not in the prompt .* once more"):
        find_tokens("a red circle", ["red circle", "red circle"], tokenizer)


def test_a_short_name_does_not_take_a_long_ones_words(tokenizer):
    found = find_tokens("a red circle and a circle", ["circle", "red circle"], tokenizer)
    assert found.subjects == ((6,), (2, 3))


def test_positions_may_be_given(tokenizer):
    found = find_tokens("a photo of <asset0>", ["x"], tokenizer, positions=[[4]])
    assert found.subjects == ((4,),)
    with pytest.raises(InputError, match=r"positions \[5\]: the prompt has positions 1 to 4"):
        find_tokens("a photo of <asset0>", ["x"], tokenizer, positions=[[5]])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a photo of <asset2>", "has <asset2>, which the model does not know; it knows <asset0>, <asset1>"),
        ("a red circle", "'<asset0>' has a box but is not in the prompt"),
        ("<asset0> " + "a " * 15, "18 tokens, the model takes 16"),
    ],
)
def test_mistakes_are_named(tokenizer, prompt, message):
    with pytest.raises(InputError, match=message):
        find_tokens(prompt, ["<asset0>"], tokenizer)


def test_ids_are_those_of_the_tokenizer(tokenizer):
    found = find_tokens("a photo of <asset0>", ["<asset0>"], tokenizer)
    ids = tokenizer("a photo of <asset0>", padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(found.ids, ids)


def test_words_read_apart_do_not_see_each_other():
    parts = tiny_text.components()
    prompts = ["a red circle and a blue square on the beach", "a green square and a blue square on the beach"]
    subjects = [["red circle", "blue square"], ["green square", "blue square"]]
    found = [find_tokens(p, s, parts["tokenizer"]) for p, s in zip(prompts, subjects, strict=True)]
    apart = [separate_states(parts["text_encoder"], tokens)[0] for tokens in found]
    with torch.no_grad():
        plain = [parts["text_encoder"](tokens.ids).last_hidden_state[0] for tokens in found]
    second = list(found[0].subjects[1])
    assert torch.allclose(apart[0][second], apart[1][second], atol=1e-5)
    assert not torch.allclose(plain[0][second], plain[1][second], atol=1e-3)
    first = list(found[0].subjects[0])
    assert torch.allclose(apart[0][first], plain[0][first], atol=1e-5)  # it had seen nothing of the second
    rest = [p for p in range(16) if p not in first + second]
    assert torch.allclose(apart[0][rest], plain[0][rest], atol=1e-5)
