"""Runs tasks in a real browser: `main.mjs` beside this file says which there are."""

import json
import shutil
import subprocess
from pathlib import Path

from host_tests.hosts import CACHE

FOLDER = Path(__file__).parent
MODULES = CACHE / "browser"
LOOKS = {"classic": False, "nodes2": True}  # by whether the setting of that look, Nodes 2.0, is on
SETTING = "Comfy.VueNodes.Enabled"


class Browser:
    """`browser(look, tasks)` opens a page of a running server and gives the answer of each task.

    folder: for the job's file.
    """

    def __init__(self, server, folder: Path):
        self.server, self.job = server, Path(folder) / "job.json"
        self.chromium = find_chromium()
        if not (MODULES / "node_modules/playwright-core").exists():
            MODULES.mkdir(parents=True, exist_ok=True)
            subprocess.run(["npm", "install", "--prefix", MODULES, "--silent", "playwright-core"], check=True)

    def __call__(self, look: str, tasks: list[dict]) -> list[dict]:
        self.server.post(f"/settings/{SETTING}", LOOKS[look])
        job = {"url": self.server.url, "chromium": self.chromium, "modules": str(MODULES), "tasks": tasks}
        self.job.write_text(json.dumps(job))
        done = subprocess.run(["node", FOLDER / "main.mjs", self.job], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert not answer["complaints"], answer["complaints"]
        return answer["answers"]


def find_chromium() -> str | None:
    """A browser that this can drive, together with node and npm; None without."""
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    return next(filter(None, found), None) if shutil.which("node") and shutil.which("npm") else None


def looks_of(host) -> list[str]:
    """In which looks a host is tested: Nodes 2.0 came of age in the frontends of the newer ones."""
    return list(LOOKS) if tuple(int(part) for part in host.version.split(".")[:2]) >= (0, 30) else ["classic"]
