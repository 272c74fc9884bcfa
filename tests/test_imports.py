"""What reads and writes pictures and videos, and open_clip, are imported by what needs them alone."""

import subprocess
import sys
from pathlib import Path

import pytest

HIDDEN = ("av", "imageio", "PIL", "open_clip")
HIDE = f"""
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HIDDEN}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
"""


def without(code: str) -> subprocess.CompletedProcess:
    """Run code in a Python that lacks those packages."""
    return subprocess.run(
        [sys.executable, "-c", HIDE + code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_importing_needs_none_of_them():
    done = without("import training, training.loop, univid\nfrom univid import load, generate")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("code", "package"),
    [
        ("from univid.video import read_image\nread_image('univid/assets/sample.png')", "PIL"),
        ("from univid.video import read_video\nread_video('nothing.mp4')", "av"),
        ("from univid import load\nload()", "open_clip"),
    ],
    ids=["picture", "video", "towers"],
)
def test_what_needs_a_package_asks_for_it(code, package):
    assert f"No module named '{package}'" in without(code).stderr
