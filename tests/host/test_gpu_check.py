"""What `make gpu-check` measures of a host, here with the small model on a CPU."""

import json
import os
import subprocess
import sys

import pytest
from host_tests.harness import ROOT
from host_tests.hosts import find_hosts


@pytest.mark.slow
def test_the_check_of_a_host_runs(host, tmp_path):
    if host != find_hosts()[0]:
        pytest.skip("a minute that the newest host alone takes")
    if lacking := [name for name in host.lacking if name != "pytest"]:
        pytest.skip(f"its own Python lacks {', '.join(lacking)}")
    out = tmp_path / "found.json"
    command = [sys.executable, "-m", "tests.gpu", "--device", "cpu", "--section", "host", "--out", str(out)]
    environment = os.environ | {"COMFYUI_PATH": str(host.root)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    section = json.loads(out.read_text())["sections"]["host"]
    assert done.returncode == 0 and section["state"] == "whole", (done.stdout + done.stderr)[-3000:]
    names = " ".join(record["name"] for record in section["records"] if record["kind"] == "result")
    assert all(words in names for words in ("Load UniVid", "separate", "growth", "interrupt", "LoRA", "fp8"))
