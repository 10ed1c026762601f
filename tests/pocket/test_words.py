"""The tokenizer of the small world."""

from transformers import CLIPTokenizer

from lit_insert.pocket.words import WORDS, word_tokenizer


def test_every_known_word_is_one_token():
    tokenizer = word_tokenizer()
    for word in WORDS:
        assert len(tokenizer(word).input_ids) == 3, word
    ids = {tokenizer(word).input_ids[1] for word in WORDS}
    assert len(ids) == len(set(WORDS))


def test_other_words_are_spelt_and_come_back(tmp_path):
    tokenizer = word_tokenizer()
    text = "a striped red circle beside the zebra's café"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert again(text).input_ids == ids
    assert tokenizer("A Striped  RED circle").input_ids == tokenizer("a striped red circle").input_ids
