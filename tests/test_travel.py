"""Prompt travel: its grammar, and what lies between two keys."""

import pytest
import torch

from univid import Clip, generate, load, receipt
from univid.travel import Key, blend, encode, length, parse


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


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("12 frames: a / 12 frames: b", [(0, "a"), (11, "a"), (12, "b"), (23, "b")]),
        ("1 frame: a\n2 frames: b\n1 frame: c", [(0, "a"), (1, "b"), (2, "b"), (3, "c")]),
        ("12 frames: a / 12 frames fade 4: b", [(0, "a"), (9, "a"), (14, "b"), (23, "b")]),
        ("12 frames: a / 12 frames fade 5: b", [(0, "a"), (9, "a"), (15, "b"), (23, "b")]),
        (
            "3 frames: a / 3 frames fade 1: b / 3 frames fade 2: c",
            [(0, "a"), (2, "a"), (4, "b"), (7, "c"), (8, "c")],
        ),
        ("4 frames: 9: a / 3: 12 frames", [(0, "9: a / 3: 12 frames"), (3, "9: a / 3: 12 frames")]),
    ],
)
def test_scenes_are_keys_where_they_are_alone(text, keys):
    assert [(key.frame, key.prompt) for key in parse(text)] == keys


@pytest.mark.parametrize("fade", [0, 1, 2, 5, 6])
def test_a_cut_blends_as_many_frames_as_it_says(fade):
    a, b = tokens(2)
    path = parse(f"8 frames: a / 8 frames fade {fade}: b")
    out = blend([{"a": a, "b": b}[key.prompt] for key in path], [key.frame for key in path], 16)
    first, second = (torch.tensor([torch.equal(frame[None], x) for frame in out]) for x in (a, b))
    assert (~first & ~second).sum() == fade and first[:5].all() and second[11:].all()
    assert abs(int(first.sum()) - int(second.sum())) <= 1  # around the cut
    assert length(f"8 frames: a / 8 frames fade {fade}: b") == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 frames: a", "at least 1 frame, .* got 0"),
        ("9999999 frames: a", "at most 1,000,000"),
        ("4 frames fade 2: a", "first scene has none before it"),
        ("4 frames: a / 3 frames fade 6: b", "scene 2 has 3 frames, too few .*fade 6 and 0"),
        ("2 frames: a / 3 frames fade 6: b", "scene 1 has 2 frames, too few"),
    ],
)
def test_impossible_scenes_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_what_only_looks_like_scenes_is_a_prompt():
    for text in ("a film of 12 frames: noon", "12 frames", "12 frames:30 s", "red / 12 frames: blue"):
        assert parse(text) == (Key(0, text),) and length(text) is None


def test_prompts_of_a_batch_are_encoded_together():
    def encoder(prompts):
        return torch.stack([torch.full((2, 3), float(ord(prompt))) for prompt in prompts])

    assert torch.equal(encode(encoder, ["a", "0: b"], 5)[:, 0, 0], torch.tensor([97.0, 98.0]))
    out = encode(encoder, ["0: a / 4: c", "b"], 5)
    assert out.shape == (2, 5, 2, 3)
    assert out[:, :, 0, 0].tolist() == [[97.0, 97.5, 98.0, 98.5, 99.0], [98.0] * 5]
    assert torch.equal(encode(encoder, ["0: a / 4: c"], 2, start=3), out[:1, 3:])  # a window of a longer clip


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


# In generate and on the command line

PROMPT = "a red circle moves left on a black background"


def test_a_clip_of_one_scene_is_the_plain_prompts_bit_for_bit(small_checkpoint):
    model = load(small_checkpoint, dtype=torch.float32)
    plain, negative = generate(model, PROMPT), {"negative": "waves"}
    assert torch.equal(generate(model, f"3 frames: {PROMPT}"), plain)
    assert torch.equal(generate(model, f"0: {PROMPT}", **negative), generate(model, PROMPT, **negative))
    same = generate(model, f"1 frame: {PROMPT} / 2 frames: {PROMPT}")
    cut = generate(model, f"1 frame: {PROMPT} / 2 frames: waves")
    assert apart(cut, plain) > 10 * apart(same, plain)  # which rounding alone sets apart
    waves = generate(model, "waves", clip=Clip(start=1))
    later, earlier = (
        generate(model, f"{n} frame: {PROMPT} / 8 frames: waves", clip=Clip(start=1)) for n in (1, 3)
    )
    assert apart(earlier, waves) > 10 * apart(later, waves)
    away = generate(model, PROMPT, negative=f"1 frame: {PROMPT} / 2 frames: waves")
    assert not torch.equal(away, generate(model, PROMPT, **negative))


def apart(a, b):
    return (a - b).abs().max()


def test_the_command_line_makes_as_many_frames_as_the_scenes_have(run, call, tmp_path, small_checkpoint):
    text = f"2 frames: {PROMPT} / 3 frames fade 1: waves"
    assert run("generate", "--prompt", text, "--steps", 1, "--out", "scenes")[0] == 0
    assert receipt.read(tmp_path / "scenes").settings["frames"] == 5
    assert call("repeat", "scenes", "--out", "again", f"--checkpoint={small_checkpoint}")[0] == 0
    for frame in range(1, 6):
        one, other = (tmp_path / name / f"frame_000{frame}.png" for name in ("scenes", "again"))
        assert one.read_bytes() == other.read_bytes()
    assert run("generate", "--prompt", text, "--frames", 4, "--steps", 1, "--out", "short")[0] == 0
    assert receipt.read(tmp_path / "short").settings["frames"] == 4
    status, _, err = run("generate", "--prompt", "0 frames: a", "--out", "none.mp4")
    assert status == 2 and "at least 1 frame" in err
