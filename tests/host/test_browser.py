"""The workflows as a user meets them: dropped on the canvas of a real browser, no red node, Run, a video.

`EXPORT=1 .venv/bin/python -m tests.host -k browser` writes workflows/*.json anew from graphs/*.json and
layout.json through the newest host's frontend, and their thumbnails from what they make; of imported models,
which random weights stand for, from the graph alone. Nothing else may write them. One of them: add
`and NAME` behind browser.
"""

import json
import os
import shutil
import subprocess
import uuid

import av
import pytest
from host_tests.harness import FOLDER, ROOT, Graph
from host_tests.hosts import CACHE, find_hosts
from host_tests.stand_ins import FRAMES
from PIL import Image

pytestmark = pytest.mark.slow
GRAPHS = sorted(path.stem for path in (FOLDER / "graphs").glob("*.json"))
WORKFLOWS = ROOT / "workflows"
SHOTS = FOLDER / "screenshots"
LAYOUT = json.loads((FOLDER / "layout.json").read_text())
MODULES = CACHE / "browser"
CANVAS = (80, 115, 1560, 825)  # of a screenshot, without most of what lies around and over it
EXPORT = bool(os.environ.get("EXPORT"))


@pytest.fixture(scope="module")
def browser(server, tmp_path_factory):
    """Runs one job of browser.mjs."""
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    chromium = next(filter(None, found), None)
    if not chromium or not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("needs chromium, node and npm; on Debian: apt-get install chromium nodejs npm")
    if not (MODULES / "node_modules/playwright-core").exists():
        MODULES.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "install", "--prefix", MODULES, "--silent", "playwright-core"], check=True)
    file = tmp_path_factory.mktemp("browser") / "job.json"

    def run(**job):
        file.write_text(json.dumps({"url": server.url, "chromium": chromium, "modules": str(MODULES)} | job))
        done = subprocess.run(["node", FOLDER / "browser.mjs", file], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.mark.skipif(not EXPORT, reason="EXPORT=1 writes workflows/*.json")
@pytest.mark.parametrize("name", GRAPHS)
def test_export_from_the_frontend(browser, host, name):
    if host != find_hosts()[0]:
        pytest.skip("the newest host writes")
    item = {"name": name, "graph": dict(Graph.named(name)), "layout": LAYOUT[name]}
    workflow = browser(export=[item])["exported"][name]
    workflow["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"univid/{name}"))  # the same in every export
    workflow.get("extra", {}).pop("ds", None)  # so that the browser fits it into its own window
    (WORKFLOWS / f"{name}.json").write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n")


@pytest.mark.parametrize("name", GRAPHS)
def test_workflow_in_the_browser(browser, server, host, name):
    if name == "chain_upscale_interpolate" and "FrameInterpolate" not in server.get("/object_info"):
        pytest.skip(f"{host} has no frame interpolation, as the workflow's note says")
    SHOTS.mkdir(exist_ok=True)
    shot = SHOTS / f"{name}-{host.version}.png"
    imported = name.startswith("imported_")
    widgets = {} if EXPORT and not imported else {"steps": 2, "text_weights": "1", "image_weights": "0, 1"}
    item = {"file": str(WORKFLOWS / f"{name}.json"), "shot": str(shot), "widgets": widgets}
    if imported:
        widgets |= {"width": 64, "height": 64, "frames": FRAMES}
        item["before"] = str(graph_alone := shot.with_stem(f"{shot.stem}-before"))
    seen = browser(drop=[item])["dropped"][name]
    assert not seen["red"] and not seen["dialogs"], (seen["red"], seen["dialogs"])
    assert plain(seen["prompt"]) == plain(Graph.named(name)), "export again: the frontend reads other values"
    assert seen["end"]["kind"] == "execution_success", seen["end"]
    assert shot.stat().st_size > 30_000
    outputs = server.get(f"/history/{seen['end']['prompt_id']}")[seen["end"]["prompt_id"]]["outputs"]
    shown = [item for output in outputs.values() for item in output.get("images", ())]
    files = [server.file(item) for item in shown if item["type"] == "output"]
    assert len(files) == 1 and files[0].stat().st_size > 0
    assert seen["videos"] == seen["players"], "a video node shows no video"
    assert not seen["complaints"], seen["complaints"]
    if EXPORT and host == find_hosts()[0]:
        if imported:
            with Image.open(graph_alone) as page:
                page.crop(CANVAS).save(graph_alone)
        thumbnail(graph_alone if imported else files[0], WORKFLOWS / f"{name}.jpg")


def plain(prompt: dict) -> dict:
    """Types and values of a graph in API format, without what the frontend adds."""
    return {
        name: (
            node["class_type"],
            {k: v for k, v in node["inputs"].items() if k not in ("upload", "video-preview")},
        )
        for name, node in prompt.items()
    }


def thumbnail(source, target):
    """Four frames of a video in a square, or a picture, small enough for the template browser."""
    if source.suffix == ".mp4":
        with av.open(str(source)) as video:
            frames = [frame.to_image() for frame in video.decode(video=0)]
        side = 192
        page = Image.new("RGB", (2 * side, 2 * side))
        for i in range(4):
            frame = frames[i * (len(frames) - 1) // 3].resize((side, side), Image.Resampling.BICUBIC)
            page.paste(frame, (side * (i % 2), side * (i // 2)))
    else:
        page = Image.open(source).convert("RGB")
        page.thumbnail((512, 512))
    for quality in (90, 80, 70, 50):
        page.save(target, quality=quality, optimize=True)
        if target.stat().st_size <= 60_000:
            return
