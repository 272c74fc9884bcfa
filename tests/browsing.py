"""People before a page from disk, in a real browser: browsing.mjs beside this file says what they can do."""

import json
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest

from univid.files.hashes import cache_folder

SCRIPT = Path(__file__).with_suffix(".mjs")
MODULES = cache_folder() / "browser"
NEEDED = "needs chromium, node and npm; on Debian: apt-get install chromium nodejs npm"


def find_chromium() -> str | None:
    """A browser that can be driven, together with node and npm; None without."""
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    return next(filter(None, found), None) if shutil.which("node") and shutil.which("npm") else None


def visit(page: Path, folder: Path, visits: list[dict]) -> list[dict]:
    """What came of each visit to a page; what is saved lies in `folder`. Skips the test without a browser."""
    chromium = find_chromium()
    if chromium is None:
        _skip(NEEDED)
    if not (MODULES / "node_modules/playwright-core").exists():
        MODULES.mkdir(parents=True, exist_ok=True)
        install = ["npm", "install", "--prefix", MODULES, "--silent", "--fetch-retries=1", "playwright-core"]
        if subprocess.run(install).returncode:
            _skip("playwright-core could not be installed: npm reaches no registry")
    job = folder / "job.json"
    content = {"chromium": chromium, "modules": str(MODULES), "address": page.as_uri(), "folder": str(folder)}
    job.write_text(json.dumps(content | {"visits": visits}))
    done = subprocess.run(["node", SCRIPT, job], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _skip(reason: str) -> None:
    warnings.warn(f"NO BROWSER HAS SEEN THE PAGE: {reason}", stacklevel=2)
    pytest.skip(reason)
