"""`python -m tests.host [pytest arguments]`: the pack's tests on every ComfyUI.

The last lines say on which, and which tests failed.

HOSTS=ends leaves of several the newest and the oldest that the pack supports. Each has two processes, one
of them for the long files; JOBS of all run at a time.

On the newest of them, `python -m tests.host bench` measures instead what it adds to the library's sampling
time, and `windows` what windows do to long clips; `locales [LANGUAGE]` writes the nodes' texts, see
translations.py, and `screenshots` the workflows and their pictures, see screenshots.py.

COMFYUI_PATH names hosts, several separated as in PATH; COMFYUI_PYTHON the interpreter of one without a venv.
"""

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .hosts import FLOOR, find_hosts

FOLDER = Path(__file__).parent
NOTHING_COLLECTED = 5  # pytest's exit status, for instance with -k
LONG = [str(FOLDER / name) for name in ("test_browser.py", "test_browser_pages.py", "test_sampler_table.py")]
PARTS = {  # pytest's arguments; the longer part first
    "": [str(FOLDER), *(f"--ignore={name}" for name in LONG)],
    " long": LONG,
}
SCRIPTS = {  # what runs on the newest host instead
    "bench": "bench.py",
    "windows": "bench_windows.py",
    "locales": "translations.py",
    "screenshots": "screenshots.py",
}


def main() -> int:
    try:
        hosts = find_hosts()
    except ValueError as error:
        sys.exit(str(error))
    if not hosts:
        print(
            "\n!!! HOST TESTS DID NOT RUN: no ComfyUI found; try COMFYUI_PATH=<its folder> make test-host !!!"
        )
        return 0
    if sys.argv[1:] and sys.argv[1] in SCRIPTS:
        return run_script(next(host for host in hosts if host.supported), *sys.argv[1:])
    floor = ".".join(str(part) for part in FLOOR)
    results, failures, failed = [], [], False
    if os.environ.get("HOSTS") == "ends":
        supported = [host for host in hosts if host.supported]  # newest first
        hosts = supported[:1] + supported[1:][-1:]
        if hosts and not hosts[-1].version.startswith(f"{floor}."):
            results.append(f"!!! NONE OF THEM IS ComfyUI {floor}: THE OLDEST SUPPORTED WAS NOT TESTED !!!")
    for host in hosts:
        print(f"{host} in {host.root}: {host.python}", flush=True)  # may take packages first
    jobs = [(host, part) for part in PARTS for host in hosts if host.supported or not part]
    with ThreadPoolExecutor(int(os.environ.get("JOBS", 1))) as pool:
        done = pool.map(lambda job: run_tests(*job), jobs)
        for (host, part), (status, summary, wrong) in zip(jobs, done, strict=True):
            failed |= status not in (0, NOTHING_COLLECTED)
            results.append(f"{host.version}{part}: {summary}")
            failures += [f"{host.version}{part}: {line}" for line in wrong]
    if not any(host.supported for host in hosts):
        results.append(f"!!! NONE OF THEM IS ComfyUI {floor} OR NEWER: THE NODES WERE NOT TESTED !!!")
    print("\n" + "".join(failures) + f"host tests {'FAILED' if failed else 'passed'}: " + "; ".join(results))
    return int(failed)


def run_tests(host, part: str) -> tuple[int, str, list[str]]:
    """pytest's exit status, its last line, and those that name a failed test.

    Each line is shown as it comes, behind the host's version.
    """
    command = [host.python, "-m", "pytest", "-c", FOLDER / "pytest.ini", *PARTS[part], "-q", *sys.argv[1:]]
    environment = {**os.environ, "UNIVID_HOST": str(host.root)}
    environment.pop("PYTHONPATH", None)
    line, wrong = "", []
    with (
        tempfile.TemporaryDirectory() as elsewhere,  # -m puts the working directory on sys.path
        subprocess.Popen(
            [str(part) for part in command], cwd=elsewhere, env=environment, stdout=subprocess.PIPE,
            text=True, errors="replace",
        ) as run,
    ):  # fmt: skip
        for line in run.stdout:
            print(f"{host.version}{part}: {line}", end="", flush=True)
            if line.startswith(("FAILED ", "ERROR ")):
                wrong.append(line)
    return run.returncode, line.strip("= \n"), wrong


def run_script(host, name: str, *arguments: str) -> int:
    """One of SCRIPTS under this host's python, in a temporary folder."""
    print(f"{host} in {host.root}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "UNIVID_HOST": str(host.root)}
        command = [host.python, FOLDER / SCRIPTS[name], *arguments]
        return subprocess.run(command, cwd=folder, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
