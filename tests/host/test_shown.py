"""What nodes show and tell: a plot once, the clip without a saved file, that nothing steers, control."""

import io

import av
import pytest
from host_tests.test_server import good, graph, latents
from PIL import Image

pytestmark = pytest.mark.slow


def pictures(run, node) -> list[dict]:
    return run.outputs.get(node, {}).get("images", [])


def last_preview(run) -> Image.Image:
    """Of the messages with previews, which tell the picture's format in 4 bytes before it."""
    return Image.open(io.BytesIO([data for kind, data in run.events if kind == "preview"][-1][4:]))


@pytest.mark.parametrize("name, node", [("text_and_image_to_video", "UniVidPSTSampler"),
                                        ("modality_sweep", "UniVidModalitySweep")])  # fmt: skip
def test_a_plot_is_the_last_preview_or_a_picture_of_the_node(server, name, node):
    """In Nodes 2.0 both are shown, in the classic look the preview hides the picture."""
    plots = []
    for seed, previews in ((21, "none"), (22, "latent2rgb")):
        queued = graph(server, name, seed=seed)
        run = server.run(queued, previews=previews)
        assert run.status == "success", run.message
        shown = pictures(run, queued.one(node))
        if previews == "none":
            assert [item["type"] for item in shown] == ["temp"]
            assert not any(kind == "preview" for kind, _ in run.events)
            plots.append(Image.open(server.file(shown[0])))
        else:
            assert not shown
            plots.append(last_preview(run))
    assert plots[0].size == plots[1].size and min(plots[0].size) > 200


def test_a_plot_is_gone_after_a_run_without_one(server):
    queued = graph(server, "text_and_image_to_video", seed=23)
    node = queued.one("UniVidPSTSampler")
    assert pictures(server.run(queued, previews="none"), node)
    run = server.run(queued.having(mode="joint"), previews="none")
    assert run.outputs[node]["images"] == []


@pytest.mark.parametrize("frames", [1, 9])
def test_decode_video_shows_its_clip_and_saves_nothing(server, frames):
    queued = graph(server, "text_to_video", seed=24, frames=frames)
    save, decode = queued.one("SaveVideo"), queued.one("UniVidDecodeVideo")
    queued[save] = {"class_type": "PreviewImage", "inputs": {"images": [decode, 0]}}
    before = {path for path in (server.base / "output").rglob("*") if path.suffix != ".latent"}
    run = good(server, queued)
    after = {path for path in (server.base / "output").rglob("*") if path.suffix != ".latent"}
    assert before == after
    (clip,) = pictures(run, decode)
    assert clip["type"] == "temp" and run.outputs[decode]["animated"] == [True]
    with av.open(str(server.file(clip))) as video:
        assert len(list(video.decode(video=0))) == frames
    assert server.get("/view", **clip) == server.file(clip).read_bytes()


def unsteered(server, name, **values):
    """A graph, and the sentences that a run of it shows on nodes and writes into the log."""
    seen = len(server.log())
    queued = graph(server, "text_and_image_to_video", **values)
    if name == "without picture":
        del queued[queued.one("UniVidEncodeDualPrompt")]["inputs"]["image"]
    texts = told_on_nodes(queued, good(server, queued))
    log = [line for line in server.log()[seen:].splitlines() if "nothing steers" in line]
    return texts, log


def told_on_nodes(queued, run):
    size, texts = 4, []  # bytes that tell the length of the node's id
    for data in (data for kind, data in run.events if kind == "text"):
        end = size + int.from_bytes(data[:size], "big")
        texts.append((queued[data[size:end].decode()]["class_type"], data[end:].decode()))
    return texts


WEIGHTS, ENCODE, SAMPLER = "UniVidModalityWeights", "UniVidEncodeDualPrompt", "UniVidPSTSampler"


@pytest.mark.parametrize(
    "name, values, told",
    [
        (
            "without picture", {"prompt": " ", "image_weight": 0.0},
            {ENCODE: "the prompt is empty and there is no picture",
             WEIGHTS: "the prompt is empty and there is no picture"},
        ),
        (
            "both weights", {"text_weight": 0.0, "image_weight": 0.0},
            {WEIGHTS: "text_weight is 0 and image_weight is 0"},
        ),
        (
            "empty prompt", {"prompt": "", "image_weight": 0.0},
            {WEIGHTS: "the prompt is empty and image_weight is 0"},
        ),
        ("joint", {"mode": "joint", "guidance_scale": 0.0}, {SAMPLER: "guidance_scale is 0"}),
        (
            "separate", {"text_guidance": 0.0, "image_guidance": 0.0},
            {SAMPLER: "text_guidance is 0 and image_guidance is 0"},
        ),
        (
            "mixed", {"mode": "nested", "text_weight": 0.0, "image_guidance": 0.0},
            {SAMPLER: "text_weight is 0 and image_guidance is 0"},
        ),
    ],
)  # fmt: skip
def test_a_clip_that_nothing_steers_is_told_once_on_the_node(server, name, values, told):
    texts, log = unsteered(server, name, seed=25, **values)
    assert {node: text.split(", so ")[0] for node, text in texts} == told
    assert len(texts) == len(log) == len(told)
    assert all(text.count(".") == 1 and text.endswith(".") for _, text in texts)
    texts, log = unsteered(server, "mended", seed=25)  # what is on the nodes is replaced
    assert dict(texts) == dict.fromkeys(told, "Prompt or picture steer the clip.") and not log
    assert unsteered(server, "as before", seed=26) == ([], [])


@pytest.mark.parametrize(
    "name, values, told",
    [
        ("text_to_video", {"guidance_scale": 1.0}, True),
        ("text_to_video", {"guidance_scale": 1.5}, False),
        ("text_to_video", {"mode": "separate", "text_guidance": 1.0}, True),
        ("text_to_video", {"mode": "separate", "text_guidance": 1.5}, False),
        ("modality_sweep", {"guidance_scale": 1.0, "text_weights": "1", "image_weights": "1"}, True),
        ("modality_sweep", {"guidance_scale": 1.5, "text_weights": "1", "image_weights": "1"}, False),
    ],
)
def test_a_negative_prompt_that_has_no_say_is_told_on_the_node(server, name, values, told):
    queued = graph(server, name, seed=27, **values)
    queued[queued.one("UniVidEncodeDualPrompt")]["inputs"]["negative"] = "a blue square"
    texts = told_on_nodes(queued, good(server, queued))
    sampling = SAMPLER if name == "text_to_video" else "UniVidModalitySweep"
    assert any(node == sampling and "negative prompt no say" in text for node, text in texts) == told


def test_control_acts_and_its_pictures_must_fit_the_clip(server):
    queued = graph(server, "control")
    with_control = latents(server, good(server, queued))
    without = latents(server, good(server, queued.having(strength=0.0)))
    assert with_control.shape == without.shape == (12, 4, 8, 8)
    assert (with_control - without).abs().mean() > 0.01
    queued[queued.one("UniVidEmptyLatent")]["inputs"]["frames"] = 6
    run = server.run(queued)
    assert run.status == "error"
    assert run.message.startswith("expected 1 control picture, or one for each of 6 frames, got 12; ")
