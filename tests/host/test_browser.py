"""The workflows as a user meets them: dropped on the canvas of a real browser, no red node, Run, a video.

In the classic look on every host, and in Nodes 2.0 where that is the host's own; one page a look.
"""

import pytest
from host_tests.browser.driver import LOOKS, looks_of
from host_tests.workflows import NAMES, SHOTS, WORKFLOWS, differences, missing_nodes, quick_values

pytestmark = pytest.mark.slow
SHOWING = {
    "LoadImage", "LoadVideo", "PreviewImage", "SaveImage", "SaveVideo", "UniVidDecodeVideo",
    "UniVidModalitySweep", "UniVidModalityWeights", "UniVidPSTSampler",
}  # fmt: skip
ZOOM = 0.6  # at which a workflow's words can be read when it opens in a window of 1600 x 1000


@pytest.fixture(scope="module", params=list(LOOKS))
def seen(request, browser, known, host):
    """What came of every workflow in one look, by name."""
    look = request.param
    if look not in looks_of(host):
        pytest.skip(f"{host} is tested in the classic look alone")
    names = [name for name in NAMES if not missing_nodes(name, known)]
    SHOTS.mkdir(exist_ok=True)
    preview = {  # first, on a page that is quick yet, of frames that are drawn long enough to be looked at
        "do": "preview",
        "file": str(WORKFLOWS / "text_and_image_to_video.json"),
        "widgets": {"steps": 40, "width": 128, "height": 128, "seed": 41 + list(LOOKS).index(look)},
        "node": "UniVidPSTSampler",
        "shot": str(SHOTS / f"preview-{look}-{host.version}.png"),
    }
    workflows = [
        {
            "do": "workflow",
            "file": str(WORKFLOWS / f"{name}.json"),
            "widgets": quick_values(name) | seeds(number + 100 * list(LOOKS).index(look)),
            "opened": str(SHOTS / f"{name}-{look}-{host.version}-opened.png"),
            "ended": str(SHOTS / f"{name}-{look}-{host.version}.png"),
        }
        for number, name in enumerate(names)  # by seeds of their own: what is cached shows nothing
    ]
    seen = browser(look, [preview, *workflows])
    return dict(zip(["preview", *names], seen, strict=True))


def seeds(seed: int) -> dict:
    """Values of widgets: one seed for all that samples, and another for the fresh noise of FreeInit."""
    return {"seed": seed, "PrimitiveInt.value": seed, "UniVidFreeInit.seed": 1000 + seed}


@pytest.fixture(params=NAMES)
def workflow(request, seen, known, host):
    """(name, what came of it)"""
    if lacking := missing_nodes(request.param, known):
        pytest.skip(f"{host} has no {', '.join(lacking)}, as the workflow's note says")
    return request.param, seen[request.param]


def test_it_opens_without_a_complaint_and_says_what_its_graph_says(workflow, known):
    name, seen = workflow
    assert not seen["red"] and not seen["dialogs"]
    found = differences(seen["prompt"], name, known)
    assert not found, "make screenshots: the frontend reads other values"


def test_it_runs_and_saves_one_file(workflow, server):
    _, seen = workflow
    assert seen["end"]["kind"] == "execution_success", seen["end"]
    outputs = server.get(f"/history/{seen['end']['prompt_id']}")[seen["end"]["prompt_id"]]["outputs"]
    shown = [item for output in outputs.values() for item in output.get("images", ())]
    (file,) = [server.file(item) for item in shown if item["type"] == "output"]
    assert file.stat().st_size > 0


@pytest.mark.parametrize("when", ["before", "after"])
def test_no_node_stands_on_another(workflow, when):
    _, seen = workflow
    assert not overlaps(seen[when]["nodes"])


def test_what_a_node_shows_stands_there_once(workflow):
    name, seen = workflow
    nodes = {str(node["id"]): node["type"] for node in seen["after"]["nodes"]}
    shown = seen["after"]["media"]
    assert {nodes[key]: count for key, count in shown.items() if count > 1} == {}
    empty = {nodes[key] for key, count in shown.items() if not count and nodes[key] in SHOWING}
    assert not empty, "these nodes show nothing"


def test_it_opens_large_enough_to_be_read_with_nothing_cut(workflow):
    _, seen = workflow
    view = seen["before"]["view"]
    assert view["scale"] >= ZOOM
    assert view["left"] > 0 and view["top"] > 0 and view["right"] < 1600 and view["bottom"] < 1000
    for note in seen["notes"]:
        assert note["text"] <= note["field"] + 1 and not note["code"]
    assert len(seen["notes"]) == 1


def test_the_preview_plays_while_a_clip_is_sampled_and_the_plot_does_not(seen):
    preview = seen["preview"]
    assert preview["end"]["kind"] == "execution_success", preview["end"]
    clips = [file for file in preview["during"] if file.get("frames", 0) > 1]
    assert {clip["type"] for clip in clips} == {"image/png"} and max(c["frames"] for c in clips) == 12
    assert any(clip["moves"] for clip in clips)
    assert preview["after"] and not preview["after"]["moves"]
    assert preview["after"]["source"] not in [clip["source"] for clip in clips]


@pytest.mark.parametrize("look", LOOKS)
def test_plots_stand_once_without_previews_too(browser, server, host, look):
    if look not in looks_of(host):
        pytest.skip(f"{host} is tested in the classic look alone")
    file = WORKFLOWS / "text_and_image_to_video.json"
    number = list(LOOKS).index(look)
    widgets = {"steps": 2, "seed": 31 + number, "text_weight": 0.8 + 0.1 * number}  # the cached shows nothing
    server.post("/settings/Comfy.Execution.PreviewMethod", "none")
    try:
        (seen,) = browser(look, [{"do": "workflow", "file": str(file), "widgets": widgets}])
    finally:
        server.post("/settings/Comfy.Execution.PreviewMethod", "default")
    assert seen["end"]["kind"] == "execution_success"
    assert not overlaps(seen["after"]["nodes"])
    shown = {key for key, count in seen["after"]["media"].items() if count == 1}
    assert shown == {"4", "5", "6", "7", "8"}, seen["after"]["media"]


def overlaps(nodes: list[dict]) -> list[str]:
    """Pairs of nodes whose boxes share more than a pixel."""
    found = []
    for i, one in enumerate(nodes):
        for other in nodes[i + 1 :]:
            (x, y, w, h), (u, v, s, t) = one["box"], other["box"]
            across, down = min(x + w, u + s) - max(x, u), min(y + h, v + t) - max(y, v)
            if across > 1 and down > 1:
                found.append(f"{one['title']} and {other['title']}: {across:.0f} x {down:.0f}")
    return found
