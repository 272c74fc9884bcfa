"""What the registry of ComfyUI's packs asks of one, checked by its own tool, offline."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    """The tool counts its users, asks them about that, and keeps files at home, if it may."""
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_the_registrys_tool_has_no_complaint():
    done = subprocess.run(
        [sys.executable, "-m", "comfy_cli", "node", "validate"], cwd=ROOT, capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "validation checks passed" in said, said
    assert "warning" not in said.lower(), said


def test_the_registry_reads_every_field():
    from comfy_cli.registry.config_parser import extract_node_configuration

    found = extract_node_configuration(str(ROOT / "pyproject.toml"))
    assert found.project.supported_comfyui_version == ">=0.19.0"
    assert found.project.supported_os == ["OS Independent"] and len(found.project.supported_accelerators) == 5
    assert found.project.license.text and found.project.description and found.project.requires_python
    assert found.tool_comfy.publisher_id and found.tool_comfy.display_name == "UniVid"
    icon = ElementTree.parse(ROOT / found.tool_comfy.icon).getroot()
    assert int(icon.get("width")) <= 400 and int(icon.get("height")) <= 400
    assert f"## {found.project.version}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern")
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the tool packs what git tracks")
def test_the_package_runs_without_what_it_leaves_out(tmp_path, monkeypatch):
    from comfy_cli.file_utils import zip_files

    monkeypatch.chdir(ROOT)
    zip_files(tmp_path / "node.zip")
    with zipfile.ZipFile(tmp_path / "node.zip") as package:
        packed = set(package.namelist())
        package.extractall(tmp_path / "pack")
    assert not [name for name in packed if name.startswith(("tests/", "."))]
    needed = (
        "requirements.txt",
        "LICENSE",
        "README.md",
        "nodes/web/docs/UniVidLoad.md",
        "workflows/text_to_video.json",
    )
    assert packed >= {"__init__.py", *needed}
    for command in (["univid", "inspect", "built-in"], ["training", "--help"]):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=tmp_path / "pack", capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
