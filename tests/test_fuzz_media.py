"""Damaged pictures and videos at random, half a minute each; hours by `python -m tests.fuzz_media`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOORS = ("picture", "video")


@pytest.mark.slow
@pytest.mark.parametrize("door", DOORS)
def test_damage_gives_pixels_or_a_sentence(door, tmp_path):
    """In a process of its own, which a decoder may end."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.fuzz_media", "--minutes", "0.4", "--seed", "12",
         "--door", door, "--kept", tmp_path],
        cwd=Path(__file__).parents[1], capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    counts = re.fullmatch(rf"{door}: (\d+) tried, (\d+) read, (\d+) refused\n", run.stdout)
    tried, read, refused = map(int, counts.groups())
    assert tried == read + refused and read > 20 and refused > 20
