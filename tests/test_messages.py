import logging

import pytest

from univid import __main__ as command_line
from univid.messages import LIMIT, Lines, sentence, shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("clip.mp4", "clip.mp4"),
        ("圆 é 🙂.mp4", "圆 é 🙂.mp4"),
        ("a\u3000b\xa0c", "a\u3000b\xa0c"),  # spaces
        ("\x1b[2J\x1b]0;x\x07", "\\x1b[2J\\x1b]0;x\\x07"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x9b31m\x7f\x00", "\\x9b31m\\x7f\\x00"),
        ("gpj\u202e.exe\u2066\u200b\u2028\ufeff", "gpj\\u202e.exe\\u2066\\u200b\\u2028\\ufeff"),
        ("\udcff", "\\udcff"),  # a byte of a name that is no text
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text, expected):
    assert shown(text) == expected and shown(expected) == expected


def test_a_message_is_one_line_of_limited_length():
    assert sentence(" one\n two\x1c\x85\u2028 three ") == "one two three"
    for text in ("x" * 10**6, "\x1b" * 10**6, "\U000e0001" * 10**6, "word " * 10**6):
        assert len(sentence(text)) <= LIMIT and len(shown(text)) <= 120
    long = f"the file {'x' * 5000} is unknown; take another one."
    assert sentence(long).startswith("the file xxx") and sentence(long).endswith("take another one.")
    exact = "y" * LIMIT
    assert sentence(exact) == exact and sentence(exact + "y") != exact + "y"


def test_a_log_line_is_a_message():
    record = logging.LogRecord("n", logging.WARNING, "p", 1, "%s has\n%s", ("\x1b[2J", "z" * 999), None)
    line = Lines("univid: %(message)s").format(record)
    assert line.startswith("univid: \\x1b[2J has zzz") and len(line) <= LIMIT


@pytest.mark.parametrize("name", ["\x1b[2J\x1b]0;x\x07.mp4", "x" * 100_000, "a\nb", "\u202egpj.mp4"])
@pytest.mark.parametrize(
    "words", [("inspect",), ("generate", "--out", "o.mp4", "--image"), ("export", "--out")]
)
def test_the_command_line_shows_names_safely(tmp_path, monkeypatch, capsys, words, name):
    monkeypatch.chdir(tmp_path)
    more = ("x",) if words[0] == "export" else ()
    assert command_line.main([*words, name, *more]) == 2
    out, err = capsys.readouterr()
    line = err.removesuffix("\n")
    assert out == "" and line.isprintable() and len(line) <= LIMIT
