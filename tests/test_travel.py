"""Prompt travel: its grammar, and what lies between two keys."""

import pytest
import torch

from univid.travel import Key, blend, parse


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("0: a red circle / 12: a blue circle", [(0, "a red circle"), (12, "a blue circle")]),
        ("0: a red circle\n12: a blue circle\n", [(0, "a red circle"), (12, "a blue circle")]),
        ("\n 0 :a red circle \n / 12 : a blue circle", [(0, "a red circle"), (12, "a blue circle")]),
        ("12: b / 0: a", [(0, "a"), (12, "b")]),
        ("5: only one", [(5, "only one")]),
        ("0: a cat / dog and/or bird / 3: x", [(0, "a cat / dog and/or bird"), (3, "x")]),
        ("0: two\nlines / 3: x", [(0, "two\nlines"), (3, "x")]),
        ("0: (red:1.2), 16:9 / 3: 4: x", [(0, "(red:1.2), 16:9"), (3, "4: x")]),
        ("0: / 12: x", [(0, ""), (12, "x")]),
        ("0:", [(0, "")]),
    ],
)
def test_keys_of_a_text(text, keys):
    assert parse(text) == tuple(Key(*key) for key in keys)


@pytest.mark.parametrize(
    "text",
    ["", " a red circle ", "16:9 photo", "a clock, 12: noon", "1.5: x", "red / 12: blue", "红"],
)
def test_a_text_that_starts_without_a_key_is_one_prompt_as_it_stands(text):
    assert parse(text) == (Key(0, text),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-3: a / 4: b", "from 0 to 1,000,000, got -3"),
        ("0: a / -1: b", "got -1"),
        ("0: a / 99999999999999999999: b", "got 99999999999999999999"),
        ("0: a / 4: b / 4: c", "more than one prompt at frame 4"),
    ],
)
def test_impossible_keys_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def tokens(count, n=3, d=2):
    return list(torch.randn(count, 1, n, d, generator=torch.Generator().manual_seed(0)))


def test_linear_between_keys_and_constant_outside():
    a, b, c = tokens(3)
    out = blend([a, b, c], [2, 4, 5], 8)
    assert out.shape == (8, 3, 2)
    for frame, expected in enumerate([a, a, a, (a + b) / 2, b, c, c, c]):
        torch.testing.assert_close(out[frame : frame + 1], expected)
    assert torch.equal(out[2:3], a) and torch.equal(out[4:5], b)  # exact where a key holds


def test_keys_beyond_the_clip_are_travelled_towards():
    a, b = tokens(2)
    assert torch.equal(blend([a, b], [0, 8], 3), blend([a, b], [0, 8], 20)[:3])
    assert torch.equal(blend([a, b], [30, 40], 2), torch.cat([a, a]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_equal_prompts_give_exactly_the_tokens_of_one(dtype):
    a = tokens(1)[0].to(dtype)
    assert torch.equal(blend([a, a, a], [0, 3, 7], 9), a.expand(9, -1, -1))


def test_a_long_prompt_blends_with_a_short_one():
    short, long = tokens(1)[0], tokens(1, n=6)[0]
    out = blend([short, long], [0, 1], 2)
    assert torch.equal(out[:1], torch.cat([short, short], dim=1)) and torch.equal(out[1:], long)
