"""In a ComfyUI whose Python lacks a package the pack says in one line what to run, and the server runs on."""

import shlex
from importlib import metadata
from pathlib import Path

import pytest
from host_tests.harness import ROOT, Server

HIDE = """
import sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "imageio":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hide())
"""


@pytest.mark.slow
def test_a_server_without_imageio_says_what_to_run(host, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    with Server(host, tmp_path, environment={"PYTHONPATH": str(tmp_path)}) as server:
        assert not [name for name in server.get("/object_info") if "UniVid" in name]
        log = server.log()
    (line,) = [line for line in log.splitlines() if "UniVid needs" in line]
    assert "imageio>=" in line and "einops" not in line and "Traceback" not in log
    command = shlex.split(line.split("restart ComfyUI: ")[1])
    assert Path(command[0]).samefile(host.python) and command[1:5] == ["-m", "pip", "install", "-r"]
    assert Path(command[5]).samefile(ROOT / "requirements.txt")


def test_all_that_is_missing_or_too_old_is_named_at_once(host, monkeypatch):
    from univid_pack.nodes.host import version

    assert version.problem(host.version) is None
    found = {"av": "13.1.0", "numpy": "1.24.4", "pillow": "10.10"}  # pillow is new enough
    real = metadata.version
    monkeypatch.setattr(version.metadata, "version", lambda name: found.get(name) or real(name))
    monkeypatch.setattr(version.sys, "executable", r"C:\Program Files\ComfyUI\python.exe")
    monkeypatch.setitem(version.sys.modules, "einops", None)
    problem = version.problem(host.version)
    assert all(name in problem for name in ("av>=", "numpy>=", "einops>=")) and "pillow" not in problem
    assert r'"C:\Program Files\ComfyUI\python.exe" -m pip install -r' in problem and "\n" not in problem
    assert "0.19" in version.problem("0.3.64")
