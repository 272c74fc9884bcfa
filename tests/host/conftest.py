"""What the tests inside a ComfyUI share. `python -m tests.host` starts one pytest a host and names that here.

In these processes the host's modules (`comfy`, `nodes`, `folder_paths`) have their names, its files live in a
temporary folder, this folder is the package `host_tests`, the pack is `univid_pack`, or the fixture `pack`:
`from univid_pack.nodes.load import UniVidLoad`.
"""

import importlib.util
import os
import shutil
import sys
import tempfile
import types
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
HOST = os.environ.get("UNIVID_HOST")


if HOST:
    # This folder as a package whose name hides no module of the host, as `server` or `tests.host` would.
    package = sys.modules["host_tests"] = types.ModuleType("host_tests")
    package.__path__ = [str(FOLDER)]
    from host_tests.hosts import Host

    host_here = Host(Path(HOST))
    if host_here.supported:
        collect_ignore = ["test_too_old.py"]
        base_directory = tempfile.mkdtemp(prefix="univid-host-")
        for name in ("input", "output", "custom_nodes", "models/univid"):
            Path(base_directory, name).mkdir(parents=True)
        sys.path.insert(0, HOST)
        import comfy.options  # noqa: F401  (without it the host would read pytest's command line)
        from comfy.cli_args import args

        args.cpu = True
        args.base_directory = base_directory
        spec = importlib.util.spec_from_file_location(
            "univid_pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        sys.modules["univid_pack"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["univid_pack"])
    else:
        collect_ignore_glob = ["test_[!t]*.py", "test_t[!o]*.py"]  # all but test_too_old.py
else:
    collect_ignore_glob = ["test_*.py"]  # the repository's own `make test`


def pytest_sessionfinish():
    if HOST and host_here.supported:
        shutil.rmtree(base_directory, ignore_errors=True)


@pytest.fixture(scope="session")
def host():
    """The ComfyUI under test: `.root`, `.version`, `.python`."""
    return host_here


@pytest.fixture(scope="session")
def pack():
    """The pack, loaded as the host does it: by its path, under a name of its own."""
    return sys.modules["univid_pack"]


@pytest.fixture
def inference():
    """As the host runs its nodes."""
    import torch

    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def path(pack, tmp_path_factory):
    """A checkpoint of random weights, see random_model.py, unless a file has one of its own."""
    from host_tests.random_model import write

    return write(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def model(path):
    """The MODEL of `path`, in float32."""
    from univid_pack.nodes.host.model import load_model

    return load_model(path, "fp32")


@pytest.fixture(scope="module")
def library(path):
    """What the library loads of `path`, in float32."""
    import torch
    from univid_pack.univid.checkpoints import load

    return load(path, dtype=torch.float32)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A running server of this host with the pack in its custom_nodes; one for all tests."""
    from host_tests.files import prepare
    from host_tests.harness import Server

    with Server(host_here, tmp_path_factory.mktemp("server")) as running:
        prepare(running)
        yield running


@pytest.fixture(scope="session")
def known(server):
    """Every node of this host: its /object_info."""
    return server.get("/object_info")


@pytest.fixture(scope="session")
def browser(server, tmp_path_factory):
    """Runs tasks on a page of the server: `browser(look, tasks)`, see browser/driver.py."""
    from host_tests.browser.driver import Browser, find_chromium

    if not find_chromium():
        pytest.skip("needs chromium, node and npm; on Debian: apt-get install chromium nodejs npm")
    return Browser(server, tmp_path_factory.mktemp("browser"))
