"""The nodes' names and tooltips in other languages: none is missing, stale, or another text's translation.

That English is what the nodes say, and that the server gives all of it, tests/host/test_locales.py asks.
"""

import re

import pytest

from tests.host import translations
from tests.host.translations import LANGUAGES, fingerprint, read, texts, to_redo

ENGLISH = texts(read("en"))
SAME_IN_CHINESE = {"VAE", "CLIP", "Latent", "eta"}  # as ComfyUI's own translation has them


def test_nothing_is_to_be_redone():
    lines = translations.all_to_redo()
    assert not lines, "redo these in locales/, then `make locales DONE=LANGUAGE`:\n" + "\n".join(lines)


def test_what_is_to_be_redone_is_seen():
    english = {"a": "one", "b": "two", "c": "three", "d": "four"}
    theirs = {"a": "eins", "b": "zwei", "d": "vier {n}", "e": "fünf"}
    made_of = {"a": fingerprint("one"), "b": fingerprint("2"), "d": fingerprint("four")}
    assert [line.split()[1] for line in to_redo("de", english, theirs, made_of)] == ["b", "c", "d", "e"]
    assert not to_redo("de", {"a": "one"}, {"a": "eins"}, made_of)


def test_english_has_no_markup_of_the_interface():
    assert not [key for key, text in ENGLISH.items() if translations.MARKUP.search(text)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_keeps_numbers_and_code(language):
    """Numbers, `code`, file endings and the words of the paper stand in every language alike."""
    kept = re.compile(r"`[^`]*[ :/][^`]*`|\d+(?:\.\d+)?|\.[a-z]{3,}|lambda_[tv]|ease_\w+|ViT-H-14")
    lost = {
        key: sorted(missing)
        for key, text in texts(read(language)).items()
        if (missing := set(kept.findall(ENGLISH[key])) - set(kept.findall(text)))
    }
    assert not lost


def test_chinese_is_chinese():
    chinese = re.compile(r"[\u4e00-\u9fff]")
    odd = [key for key, text in texts(read("zh")).items() if not chinese.search(text)]
    assert {texts(read("zh"))[key] for key in odd} <= SAME_IN_CHINESE
    assert not [key for key in odd if key.endswith(("tooltip", "description"))]
