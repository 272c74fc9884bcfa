"""On a ComfyUI older than the floor the pack says so in one line, offers nothing, and the server runs on."""


def test_an_old_host_gets_one_line_and_no_nodes(server, host):
    lines = [line for line in server.log().splitlines() if "UniVid needs" in line]
    assert len(lines) == 1, server.log()
    assert "0.19" in lines[0] and host.version in lines[0]
    assert not [name for name in server.get("/object_info") if "UniVid" in name]
    assert server.get("/system_stats")["system"]["comfyui_version"].endswith(host.version)
    assert "Traceback" not in server.log()
