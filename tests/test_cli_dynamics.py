"""Livelier motion and reuse on the command line: made, written down, made again, refused."""

from pathlib import Path

import pytest
import torch

from univid import Sampling, generate, load, receipt
from univid.steer import Dynamics, Reuse, Steering
from univid.video import read_image

WORDS = ["--prompt", "a red circle moves left", "--steps", 3]
ASKED = [
    "--dynamics",
    0.8,
    "--dynamics-share",
    0.5,
    "--temporal-guidance",
    0.5,
    "--reuse",
    2,
    "--reuse-blocks",
    3,
]
NAMES = ("dynamics", "dynamics_share", "temporal_guidance", "reuse", "reuse_blocks")


def settings(name):
    said = receipt.read(name).settings
    return {option: said[option] for option in NAMES if option in said}


def test_a_clip_says_what_it_was_made_with_and_is_made_again(run, small_checkpoint, tmp_path):
    assert run("generate", *WORDS, *ASKED, "--out", "a")[0] == 0
    assert settings("a") == {
        "dynamics": 0.8, "dynamics_share": 0.5, "temporal_guidance": 0.5, "reuse": 2, "reuse_blocks": 3
    }  # fmt: skip
    again = ["--checkpoint", small_checkpoint]
    assert run("repeat", "a", "--out", "b", *again)[0] == 0
    frames = {name: sorted((tmp_path / name).glob("*.png")) for name in "ab"}
    assert [f.read_bytes() for f in frames["a"]] == [f.read_bytes() for f in frames["b"]]
    status, out, _ = run("receipt", "a")
    assert status == 0 and "temporal guidance" in out


def test_it_is_the_library_s(run, small_checkpoint):
    assert run("generate", *WORDS, *ASKED, "--out", "a")[0] == 0
    steering = Steering(dynamics=Dynamics(0.8, 0.5), temporal_guidance=0.5, reuse=Reuse(2, 3))
    made = generate(load(small_checkpoint), WORDS[1], sampling=Sampling(steps=3, steering=steering))
    plain = generate(load(small_checkpoint), WORDS[1], sampling=Sampling(steps=3))
    found = read_frames("a")
    assert (found - made).abs().max() < 1 / 127 < (found - plain).abs().max()


def read_frames(folder):
    return torch.stack([read_image(path)[0] for path in sorted(Path(folder).glob("*.png"))], 1)[None]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), {}),
        (("--reuse", 1), {"reuse": 1, "reuse_blocks": 1}),
        (("--dynamics", 2), {"dynamics": 2.0, "dynamics_share": 0.3}),
        (("--temporal-guidance", 0), {}),
    ],
    ids=str,
)
def test_what_had_no_part_is_left_out(run, words, said):
    assert run("generate", *WORDS, *words, "--out", "a")[0] == 0
    assert settings("a") == said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reuse", 0], "reuse must be a whole number of steps from 1 (off) on, got 0."),
        (
            ["--reuse", 2, "--reuse-blocks", 9],
            "blocks of reuse must be from 1 to 8, which this model has, got 9.",
        ),
        (["--reuse-blocks", 2], "--reuse-blocks does nothing without --reuse; give both, or neither."),
        (["--dynamics", 0], "sigma of dynamics must be a finite number of frames above 0, got 0.0."),
        (["--dynamics", 1, "--dynamics-share", 2], "share of dynamics must be between 0 and 1, got 2.0."),
        (
            ["--dynamics-share", 0.2],
            "--dynamics-share does nothing without --dynamics; give both, or neither.",
        ),
        (["--temporal-guidance", -1], "temporal guidance must be a finite number of at least 0, got -1.0."),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_bad_input_is_one_sentence(run, words, message):
    assert run("generate", *WORDS, *words, "--out", "a") == (2, "", f"univid: error: {message}\n")
