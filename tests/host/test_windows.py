"""The pack in a server where its modules see what Windows has, and names as a Windows host lists them."""

import shutil
from pathlib import Path

import pytest
from host_tests.files import prepare
from host_tests.harness import PACK, ROOT, Graph, Server
from host_tests.stand_ins import FRAMES

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux pretends to be Windows")

SITE = """
import sys
sys.path.append({tests!r})
import windows
sys.path.remove({tests!r})
windows.disguise({package!r}, tell=lambda module, name: print(name, "as under Windows for", module))
"""


@pytest.mark.slow
def test_graphs_run_where_windows_is_pretended(host, tmp_path):
    environment = {"PYTHONPATH": str(tmp_path), "PYTHONWARNDEFAULTENCODING": "1"}
    server = Server(host, tmp_path, environment=environment)
    package = str(server.base / "custom_nodes" / PACK).replace(".", "_x_")  # as the host calls its modules
    (tmp_path / "sitecustomize.py").write_text(SITE.format(tests=str(ROOT / "tests"), package=package))
    folder = server.base / "models/univid/my models"
    folder.mkdir()
    shutil.copyfile(ROOT / "univid/assets/univid-tiny.safetensors", folder / "copy.safetensors")
    with server:
        prepare(server)
        small = {"width": 64, "height": 64, "frames": FRAMES}
        for name, values in {
            "text_and_image_to_video": {"checkpoint": "my models\\copy.safetensors"},
            "imported_image_to_video": small,  # of a .ckpt
        }.items():
            run = server.run(Graph.named(name).having(steps=2, **values))
            assert run.status == "success", f"{run.node_type}: {run.message}"
        log = server.log()
    assert f"os as under Windows for {package}.univid" in log
    assert "Traceback" not in log and "UniVid: loaded my models\\copy.safetensors" in log


def test_a_name_with_a_backslash_is_found(pack):
    import folder_paths
    from univid_pack.nodes.host.files import checkpoint_path
    from univid_pack.nodes.load import UniVidLoad

    folder = Path(folder_paths.get_folder_paths("univid")[0]) / "sub" / "folder"
    folder.mkdir(parents=True)
    (folder / "a.safetensors").write_bytes(b"")
    assert checkpoint_path("sub\\folder\\a.safetensors") == folder / "a.safetensors"
    assert UniVidLoad.validate_inputs("sub\\folder\\a.safetensors") is True
    assert "'sub\\folder\\b.safetensors'" in UniVidLoad.validate_inputs("sub\\folder\\b.safetensors")
    assert "found no checkpoint" in UniVidLoad.validate_inputs("..\\..\\sub\\a.safetensors")
