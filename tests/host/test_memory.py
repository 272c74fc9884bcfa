"""The memory that the host plans for a call of the model, against what the call takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from host_tests.random_model import write

GUIDERS = {1: ("Joint", 1.0), 2: ("Joint", 3.0), 3: ("Separate", 3.0, 2.0)}  # by branches
FRAMES, SIZE = 12, 32
# Every tensor in pages of its own, given back when freed: else the peak depends on what lay free before.
BLOCKS = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


@pytest.mark.parametrize(("branches", "channels"), [(1, 32), (2, 64), (3, 32)])
def test_the_estimate_is_near_the_measured_peak(pack, tmp_path, channels, branches):
    arguments = [write(tmp_path, channels), json.dumps(GUIDERS[branches]), FRAMES, SIZE]
    result = subprocess.run(
        [sys.executable, Path(__file__).with_name("one_call.py"), *map(str, arguments)],
        env=os.environ | BLOCKS,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    figures = json.loads(result.stdout.splitlines()[-1])
    ratio = figures["estimate"] / figures["measured"]
    print(f"width {channels}: measured {figures['measured'] / 2**20:.0f} MB, estimate {ratio:.2f} of it")
    assert 0.8 < ratio < 1.7
