"""The noun phrases of a prompt by rules: no model, no downloads, English."""

import re

from lit_insert.grounding import words as lists

_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*|[^\w\s]")
_LY = re.compile(r"[a-z]{3,}ly$")
_NOT_ADVERBS = {"butterfly", "dragonfly", "lily", "family", "jelly", "belly", "assembly", "bully", "holly", "fly"}
_NOT_ADVERBS |= lists.ADJECTIVES
_NOT_NOUNS = re.compile(r"(ous|ful|ish|ive|ing|[^e]ed|less|able|ible)$")
_MOTIONS = {"from", "at", "over", "through", "into", "past", "toward", "towards", "across", "along", "around"}
_LONGEST = 6  # words of a phrase; what is longer is a list of keywords


def noun_phrases(prompt: str) -> list[str]:
    """The things that a prompt names, with their attributes, in order; articles are dropped.

    A phrase is the longest run of words that ends before a preposition, verb, pronoun, conjunction or mark. Words that
    could be verbs count as such after a noun ("a dog sitting"), not before one ("a sitting dog"). Pictures that hold
    the subject ("a photo of …") and words that count it ("a group of …") are passed over.

    Args:
        prompt: English text.
    """
    text = prompt.replace("\u2019", "'")
    for fixed in lists.FIXED:
        text = re.sub(rf"\b{fixed}\b", ",", text, flags=re.IGNORECASE)
    tokens = [*_WORD.findall(text), "."]
    found: list[str] = []
    run: list[str] = []
    position = 0
    while position < len(tokens):
        word, after = tokens[position].lower(), tokens[position + 1 : position + 3]
        passed_over = word == "of" and bool(run) and _is_passed_over(run[-1].lower())
        if passed_over or word == "by":
            if not passed_over and not (run and run[-1].lower() in lists.PICTURES):
                _close(run, found)
            # "by …", "in the style of …": names of people, not things
            if word == "by" or run[-1].lower() == "style":
                position = _after_names(tokens, position + 1) - 1
            run = []
        elif word in lists.DETERMINERS or _breaks(word, run, after, tokens[position - 1].lower() if position else ""):
            _close(run, found)
            run = []
        else:
            run.append(tokens[position])
        position += 1
    return found


def _breaks(word: str, run: list[str], after: list[str], before: str) -> bool:
    """Whether a word ends the phrase before it and belongs to none."""
    if not word[0].isalnum():
        return True
    if word in lists.CONJUNCTIONS:
        return not _joins(run, after)
    if word in lists.PREPOSITIONS or word in lists.PRONOUNS or word in lists.AUXILIARIES:
        return True
    if _adverb(word):
        return bool(run) and _could_be_noun(run[-1].lower())
    return _is_verb(word, run, after, before)


def _joins(run: list[str], after: list[str]) -> bool:
    """Whether a conjunction stands between two adjectives of one thing: "a black and white cat"."""
    if not run or len(after) < 2 or run[-1].lower() not in lists.ADJECTIVES:
        return False
    return after[0].lower() in lists.ADJECTIVES and _could_be_noun(after[1].lower())


def _is_verb(word: str, run: list[str], after: list[str], before: str) -> bool:
    after_noun = bool(run) and _could_be_noun(run[-1].lower())
    following = after[0].lower() if after else "."
    ends_phrase = not following[0].isalnum() or following in lists.PREPOSITIONS
    opens_object = following in lists.DETERMINERS or following in lists.PRONOUNS
    if word in lists.NOUNS:
        # "the lights", but "a dog watches the cat" and "a bus crossing Broadway"
        verb = word in lists.INFLECTED and word.endswith(("s", "ing"))
        name = word.endswith("ing") and after[:1] != [] and after[0][0].isupper()
        return after_noun and verb and (opens_object or name or following in _MOTIONS)
    if word in lists.BASES and after_noun and opens_object:  # "children build a tower"
        return True
    if before in lists.AUXILIARIES and word.endswith(("ing", "ed")):
        return True
    if word in lists.INFLECTED:
        return after_noun or opens_object or (ends_phrase and (not run or word.endswith("ed")))
    if word.endswith("ing") and len(word) > 5:
        return after_noun or opens_object
    if word.endswith("ed") and len(word) > 4:
        return ends_phrase or (after_noun and opens_object)
    return False


def _could_be_noun(word: str) -> bool:
    """Whether a phrase could end with this word."""
    if word in lists.NOUNS:
        return True
    closed = (
        lists.ADJECTIVES,
        lists.DETERMINERS,
        lists.NUMBERS,
        lists.PREPOSITIONS,
        lists.AUXILIARIES,
        lists.INFLECTED,
    )
    if any(word in group for group in closed) or word in lists.CONJUNCTIONS or _adverb(word):
        return False
    return word[0].isalpha() and not _NOT_NOUNS.search(word)


def _adverb(word: str) -> bool:
    return word in lists.ADVERBS or (bool(_LY.match(word)) and word not in _NOT_ADVERBS)


def _is_passed_over(head: str) -> bool:
    """Whether the word before "of" only holds or counts what comes."""
    return (head in lists.PICTURES or head in lists.COUNTS) and head not in lists.HOLDERS


def _close(run: list[str], found: list[str]) -> None:
    """Note a phrase if it names something."""
    kept = [word for word in run if not _adverb(word.lower())]
    while kept and (kept[0].lower() in lists.NUMBERS or kept[0].isdecimal()):
        kept.pop(0)
    whole = list(kept)
    while kept and not _could_be_noun(kept[-1].lower()):
        kept.pop()
    if not kept and whole and whole[-1].lower() in lists.MATERIALS:
        kept = whole
    if not kept or len(kept) > _LONGEST or (len(kept) == 1 and kept[0].lower() in lists.PICTURES):
        return
    found.append(" ".join(kept))


def _after_names(tokens: list[str], start: int) -> int:
    """The first position after words with capitals, such as a painter's name."""
    while start < len(tokens) and (tokens[start][0].isupper() or (tokens[start] == "and" and start > 0)):
        start += 1
    return start
