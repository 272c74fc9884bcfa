"""The check on a GPU, on a CPU with shrunk networks: what it prints and writes, and what ends a section."""

import json
import sys
from pathlib import Path

import accelerator
import pytest

from tests.gpu import networks, runner
from univid.unet import UNet

ROOT = Path(__file__).parents[1]
CPU = ["--device", "cpu"]
PATCHED = """
import sys
from tests.gpu import child
{}
sys.exit(child.main())
"""
# A section that starts a program, as that of the host does, and never ends.
ENDLESS = """
import subprocess, time
from tests.gpu import run_parity

def run(section):
    section.result("first", 1.0, "s")
    section.says(str(subprocess.Popen(["sleep", "1000"]).pid))
    time.sleep(1000)

run_parity.run = run
"""
CRASH = """
import os
from tests.gpu import run_parity

def run(section):
    section.result("first", 1.0, "s")
    {}

run_parity.run = run
"""
# One of the networks, and on the device a slightly other one.
OTHER = """
from tests.gpu import networks, run_parity

kinds, moved = networks.kinds, run_parity.moved

def other(*args):
    network = moved(*args)
    network.out[-1].bias += 1e-3
    return network

networks.kinds = lambda levels: {"paper": kinds(levels)["paper"]}
run_parity.moved = other
run_parity.check_samplers = run_parity.check_vae = lambda section: None
"""
HIDDEN = "av comfy diffusers imageio kornia matplotlib open_clip PIL pytest scipy torchvision"
BARE = f"""
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {set(HIDDEN.split())!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hide())
"""


@pytest.fixture
def check(tmp_path, monkeypatch, capfd):
    """Runs the check without a ComfyUI: (exit status, what it printed, the sections of its JSON).

    child: code that a section's process runs first.
    """
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    out = tmp_path / "found.json"

    def call(*words: str, child: str | None = None):
        if child is not None:
            (tmp_path / "patched.py").write_text(PATCHED.format(child))
            monkeypatch.setattr(runner, "CHILD", (sys.executable, str(tmp_path / "patched.py")))
        status = runner.main([*CPU, "--out", str(out), *words])
        return status, capfd.readouterr().out, json.loads(out.read_text())["sections"]

    return call


def results(section: dict) -> list[dict]:
    return [record for record in section["records"] if record["kind"] == "result"]


@pytest.mark.slow
def test_all_of_it_and_again(check):
    status, printed, sections = check()
    assert {name: found["state"] for name, found in sections.items()} == {
        name: "lacking" if name == "host" else "whole" for name in runner.LIMITS
    }
    assert status == 0 and "host: lacks a ComfyUI: expected COMFYUI_PATH" in printed
    lines = printed.splitlines()
    for name, found in sections.items():
        assert found["command"].startswith("python -m tests.gpu") and found["seconds"] > 0
        for result in results(found):
            (line,) = [line for line in lines if line.startswith(f"{name:<11}{result['name']:<56} ")]
            assert result["unit"] in line
    assert all(len(results(sections[name])) > 10 for name in runner.LIMITS if name != "host")
    assert not [r for found in sections.values() for r in found["records"] if r["kind"] == "failed"]
    status, printed, again = check()
    assert status == 0 and printed.count("; --section") == len(runner.LIMITS) - 1
    assert {**again, "host": None} == {**sections, "host": None}


@pytest.mark.slow
def test_a_bare_machine(check):
    names = ("diffusers", "generate", "training")
    status, printed, sections = check(*(f"--section={name}" for name in names), child=BARE)
    assert status == 0 and {name: found["state"] for name, found in sections.items()} == {
        "diffusers": "lacking", "generate": "whole", "training": "whole",
    }  # fmt: skip
    assert "diffusers: lacks diffusers" in printed
    assert len(results(sections["training"])) > 10
    everything = (
        "import importlib, pkgutil, tests.gpu\nfor module in pkgutil.iter_modules(tests.gpu.__path__):\n"
    )
    everything += "    importlib.import_module(f'tests.gpu.{module.name}')"
    status, _, sections = check("--section=parity", child=f"{BARE}\n{everything}\n{OTHER}")
    assert sections["parity"]["state"] == "wrong"  # and no import failed


@pytest.mark.slow
def test_another_network_on_the_device_is_wrong(check):
    status, printed, sections = check("--section=parity", child=OTHER)
    found = {result["name"]: result for result in results(sections["parity"])}
    assert status == 1 and sections["parity"]["state"] == "wrong"
    assert not found["paper, fp32"]["right"] and found["paper, fp16"]["right"]
    assert "WRONG: < 0.0001" in printed and "WRONG: paper, fp32" in printed.split("summary")[1]
    status, printed, sections = check("--section=parity", "--minutes=0")
    assert status == 1 and "parity: not run" in printed and len(results(sections["parity"])) > 3  # are kept


@pytest.mark.slow
@pytest.mark.parametrize(
    "child, state",
    [
        (ENDLESS, "out of time"),
        (CRASH.format("os.abort()"), "crashed"),
        (CRASH.format("raise RuntimeError('none of this')"), "crashed"),
    ],
)
def test_what_ends_a_section_leaves_its_results(check, child, state):
    status, printed, sections = check("--section=parity", "--minutes=0.35", child=child)
    assert status == 1 and sections["parity"]["state"] == state and f"parity: {state} after" in printed
    assert [result["name"] for result in results(sections["parity"])] == ["first"]
    for text in (record["text"] for record in sections["parity"]["records"] if record["kind"] == "text"):
        process = Path("/proc", text, "status")
        assert not process.exists() or "\nState:\tZ" in process.read_text()


def test_what_no_time_is_left_for_is_named(check):
    status, printed, sections = check("--minutes=0")
    assert status == 0 and all(f"{name}: not run" in printed for name in runner.LIMITS)
    assert {found["state"] for found in sections.values()} == {"not run"}


def test_results_of_another_machine_are_kept(tmp_path, capsys):
    out = tmp_path / "found.json"
    out.write_text('{"machine": {"card": "another"}, "sections": {}}')
    with pytest.raises(SystemExit) as ended:
        runner.main([*CPU, "--out", str(out)])
    assert ended.value.code == 2 and "name another --out" in capsys.readouterr().err
    assert "another" in out.read_text()


@pytest.mark.parametrize("kind", networks.kinds(2))
def test_a_timed_call_waits_for_nothing_and_makes_nothing(kind):
    """Or it could not be a CUDA graph, and its launch could not be timed."""
    config = networks.kinds(2)[kind]
    with accelerator.accelerator() as mode:
        unet = UNet(config).eval().requires_grad_(False).to(accelerator.DEVICE)
        call = networks.inputs_of(config, networks.SMALL_CLIP, accelerator.DEVICE).call(unet)
        with mode.without_waiting():
            assert call().shape == (2, 4, *networks.SMALL_CLIP)
        with pytest.raises(accelerator.Synchronisation), mode.without_waiting():
            call().sum().item()
