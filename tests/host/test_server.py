"""The pack in a running server, over the API that the browser uses."""

import json
import os
import pickle
import re
import urllib.error

import av
import numpy as np
import pytest
import torch
from host_tests import frozen
from host_tests.harness import FOLDER, PACK, ROOT, Graph, Server
from host_tests.stand_ins import FRAMES
from host_tests.workflows import NAMES, quick_values
from PIL import Image
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.slow
FROZEN = FOLDER / "object_info.json"
LATENTS = ("UniVidPSTSampler", "KSampler", "SamplerCustomAdvanced")  # nodes whose first output they are


def graph(server, name: str, **values) -> Graph:
    """A graph for a test: few steps, its latents saved, and without nodes that this host does not have."""
    found = Graph.named(name)
    if name == "chain_upscale_interpolate" and "FrameInterpolate" not in server.get("/object_info"):
        video = found[found.one("CreateVideo")]["inputs"]
        video.update(images=found[found.one("FrameInterpolate")]["inputs"]["images"], fps=8.0)
        for class_type in ("FrameInterpolate", "FrameInterpolationModelLoader"):
            del found[found.one(class_type)]
    found = found.having(**quick_values(name) | values)
    for node in sampled(found):
        found = found.plus("SaveLatent", samples=[node, 0], filename_prefix="latents/test")
    return found


def sampled(queued: Graph) -> list[str]:
    """The nodes that give latents; a stage that makes frames out of frames gives none."""
    return [node for class_type in LATENTS for node in queued.of(class_type)]


def saved(server, run, kind: str = "images"):
    """The files of one kind that a run's nodes leave in the output folder."""
    items = [item for output in run.outputs.values() for item in output.get(kind, ())]
    return [server.file(item) for item in items if item["type"] == "output"]


def latents(server, run) -> torch.Tensor:
    (file,) = saved(server, run, "latents")
    return load_file(file)["latent_tensor"]


def frames_of(path) -> np.ndarray:
    with av.open(str(path)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


def good(server, queued, **options):
    run = server.run(queued, **options)
    assert run.status == "success", f"{run.node_type}: {run.message}"
    return run


def forget(server):
    """Empty the host's cache of results."""
    server.post("/free", {"free_memory": True, "unload_models": True})


# What the host says about the pack.


def test_frozen(server):
    """See frozen.py for what this holds still and how to refresh it."""
    now = frozen.snapshot(server.get("/object_info"))
    if os.environ.get("FREEZE"):
        FROZEN.write_text(json.dumps(now, indent=1) + "\n")
    assert now == json.loads(FROZEN.read_text())


def test_every_input_and_output_is_explained(server):
    assert not frozen.without_tooltip(server.get("/object_info"))


def test_at_most_9_widgets_are_visible(server):
    for name, info in frozen.ours(server.get("/object_info")).items():
        specs = [spec for part in ("required", "optional") for spec in info["input"].get(part, {}).values()]
        widgets = [
            options
            for kind, options in specs
            if (isinstance(kind, list) or kind in {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"})
            and not options.get("advanced")
        ]
        assert len(widgets) <= 9, f"{name} shows {len(widgets)} widgets"
        assert info["category"] == "UniVid" and info["search_aliases"]


def test_every_node_has_a_help_page(server):
    missing = []
    for name in frozen.ours(server.get("/object_info")):
        try:
            server.get(f"/extensions/{PACK}/docs/{name}.md")
        except urllib.error.HTTPError:
            missing.append(name)
    assert not missing


def test_the_workflows_are_offered_as_templates(server):
    assert sorted(server.get("/workflow_templates")[PACK]) == NAMES
    for name in NAMES:
        thumbnail = ROOT / "workflows" / f"{name}.jpg"
        assert thumbnail.stat().st_size <= 60_000
        with Image.open(thumbnail) as picture:
            assert min(picture.size) >= 128


def test_the_pack_loads_without_complaint(server):
    loading = server.log().split("To see the GUI go to")[0]
    complaints = [
        line for line in loading.splitlines() if PACK in line and ("FAIL" in line or "rror" in line)
    ]
    assert not complaints


# What the graphs make.

CLIPS = {  # frames, height, width of the video, where it is not the built-in checkpoint's 12 of 64 x 64
    "long_video": (32, 64, 64),
    "chain_upscale_interpolate": (23, 256, 256),
    "imported_text_to_video": (FRAMES, 64, 64),
    "imported_image_to_video": (FRAMES, 64, 64),
    "imported_first_to_last": (FRAMES, 64, 64),
    "animate": (24, 64, 64),
    "first_to_last": (24, 64, 64),
    "interpolate": (23, 64, 64),
    "extend": (24, 64, 64),
    "upscale_720p": (12, 128, 128),
    "two_pictures": (24, 64, 64),
    "livelier_motion": (12, 132, 64),  # two clips and what is between them
    "imported_long_video": (FRAMES, 64, 64),
    "chain_univid": (23, 128, 128),
}
CHAINS = ("chain_upscale_interpolate", "chain_univid")  # whose sampler makes another number of frames


@pytest.mark.parametrize("name", NAMES)
def test_graph_runs(server, name):
    queued = graph(server, name)
    run = good(server, queued)
    (file,) = saved(server, run)
    if name == "modality_sweep":
        with Image.open(file) as picture:
            assert min(picture.size) > 64
        return
    size = CLIPS.get(name, (12, 64, 64))
    if name == "chain_upscale_interpolate" and not queued.of("FrameInterpolate"):
        size = (12, 256, 256)
    frames = frames_of(file)
    assert frames.shape == (*size, 3)
    assert frames.std() > 0
    files = saved(server, run, "latents")
    assert len(files) == len(sampled(queued))
    for samples in (load_file(file)["latent_tensor"] for file in files):
        expected = 12 if name in CHAINS else size[0]
        assert samples.shape == (expected, 4, 8, 8) and torch.isfinite(samples).all()
    assert server.get("/view", filename=file.name, subfolder="video", type="output") == file.read_bytes()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(server):
    queued = graph(server, "text_and_image_to_video")
    first = good(server, queued)
    forget(server)
    again = good(server, queued)
    assert not again.cached
    assert torch.equal(latents(server, first), latents(server, again))
    other = good(server, queued.having(seed=8))
    assert not torch.equal(latents(server, first), latents(server, other))


def test_another_weight_gives_other_bytes_and_does_not_run_the_encoders_again(server):
    queued = graph(server, "text_and_image_to_video")
    before = latents(server, good(server, queued))
    run = good(server, queued.having(image_weight=0.25))
    assert {queued.one("UniVidLoad"), queued.one("UniVidEncodeDualPrompt")} <= run.cached
    assert queued.one("UniVidPSTSampler") not in run.cached
    assert not torch.equal(before, latents(server, run))


def test_progress_preview_and_one_preflight_line(server):
    seen = len(server.log())
    # A host tells of progress ten times a second at most: steps of 96 frames take longer.
    run = good(server, graph(server, "text_to_video", seed=11, steps=3, frames=96))
    steps = [data["value"] for kind, data in run.events if kind == "progress" and data["max"] == 3]
    assert {1, 2, 3} <= set(steps) and steps == sorted(steps)
    assert any(kind == "preview" for kind, _ in run.events)
    lines = [line for line in server.log()[seen:].splitlines() if "a step" in line]
    assert len(lines) == 1 and re.search(r"96 frames.*64 x 64.*1 branch a step", lines[0])


@pytest.mark.parametrize("name", ["text_to_video", "custom_sampling", "modality_sweep"])
def test_an_interrupt_ends_a_run(server, name):
    """It comes when it comes; test_model.py counts the calls after one."""

    def interrupt(kind, data):
        if kind == "progress" and data["max"] >= 500:
            server.interrupt()

    run = server.run(graph(server, name, steps=500), on_event=interrupt)
    assert run.status == "interrupted"
    assert torch.isfinite(latents(server, good(server, graph(server, "text_to_video", seed=13)))).all()


def test_the_plain_ksampler_runs(server):
    queued = graph(server, "text_to_video")
    node = queued[queued.one("UniVidPSTSampler")]
    given = node["inputs"]
    node["class_type"] = "KSampler"
    node["inputs"] = {
        **{key: given[key] for key in ("model", "positive", "negative", "seed", "steps")},
        "sampler_name": "lcm", "scheduler": "sgm_uniform", "denoise": 1.0, "cfg": 1.0,
        "latent_image": given["latent"],
    }  # fmt: skip
    assert latents(server, good(server, queued)).shape == (12, 4, 8, 8)


# Odd input that must work.


@pytest.mark.parametrize("frames", [1, 200])
def test_any_number_of_frames(server, frames):
    run = good(server, graph(server, "text_to_video", frames=frames, steps=1))
    assert latents(server, run).shape == (frames, 4, 8, 8)
    assert len(frames_of(*saved(server, run))) == frames


@pytest.mark.parametrize("mode, size", [("RGBA", (48, 80)), ("RGB", (1, 1)), ("L", (64, 1))])
def test_odd_pictures(server, tmp_path, mode, size):
    Image.new(mode, size, 128 if mode == "L" else (200, 30, 30, 99)[: len(mode)]).save(tmp_path / "odd.png")
    name = server.add_input(tmp_path / "odd.png", f"odd_{mode}.png")
    good(server, graph(server, "image_to_video").having(image=name))


def test_a_picture_for_each_frame(server):
    queued = graph(server, "image_to_video")
    encode = queued[queued.one("UniVidEncodeDualPrompt")]
    queued = queued.plus("RepeatImageBatch", image=encode["inputs"]["image"], amount=12)
    queued[queued.one("UniVidEncodeDualPrompt")]["inputs"]["image"] = [queued.one("RepeatImageBatch"), 0]
    assert latents(server, good(server, queued)).shape == (12, 4, 8, 8)


@pytest.mark.parametrize("mode", ["joint", "separate", "nested"])
def test_a_timestep_range_that_ends_early(server, mode):
    queued = graph(server, "image_to_video", mode=mode, steps=4)
    sampler = queued.one("UniVidPSTSampler")
    queued = queued.plus(
        "ConditioningSetTimestepRange", conditioning=queued[sampler]["inputs"]["negative"], start=0.0, end=0.4
    )
    queued[sampler]["inputs"]["negative"] = [queued.one("ConditioningSetTimestepRange"), 0]
    found = latents(server, good(server, queued))
    assert torch.isfinite(found).all() and found.abs().max() < 100


# Bad input: one sentence with the value and what to do, and the next run is right.


def weighted(server, **values) -> Graph:
    return graph(server, "text_and_image_to_video").having(**values)


def without_picture(server) -> Graph:
    queued = weighted(server)
    del queued[queued.one("UniVidEncodeDualPrompt")]["inputs"]["image"]
    return queued


def without_model(server) -> Graph:
    queued = graph(server, "text_to_video")
    del queued[queued.one("UniVidEmptyLatent")]["inputs"]["model"]
    return queued


BAD = {
    "no picture, but lambda_v": (without_picture, r"image_weight.*picture"),
    "negative lambda": (lambda s: weighted(s, image_weight=-1.0), r"-1.*min"),
    "lambda of nan": (lambda s: weighted(s, image_weight=float("nan")), r"nan"),
    "values of 3 frames for 12": (
        lambda s: weighted(s, text_over_frames="1, 0.5, 0"),
        r"\b3\b.*12|12.*\b3\b",
    ),
    "width not a multiple of 8": (lambda s: graph(s, "text_to_video", width=60), r"multiple of 8.*60"),
    "0 frames": (without_model, r"(frames|width|height) must be at least.*0"),
    "-1 frames": (lambda s: graph(s, "text_to_video", frames=-1), r"-1.*min"),
    "missing checkpoint": (
        lambda s: graph(s, "text_to_video", checkpoint="none.safetensors"),
        r"none\.safetensors",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_refused_in_words(server, name):
    make, words = BAD[name]
    refuse(server, make(server), words)


FILES = {  # file, whose name says nothing -> words of the message
    "truncated": r"truncated|incomplete|cut off",
    "foreign": r"no UniVid|not a UniVid|expected a UniVid",
    "pickle": r"cannot be read as plain weights",
    "nan weights": r"\bnan\b|finite",
    "unknown field": r"unknown.*surprise",
}


def write_bad_file(kind, path):
    source = ROOT / "univid/assets/univid-tiny.safetensors"
    content = source.read_bytes()
    size = int.from_bytes(content[:8], "little")
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "foreign":
        save_file({"some.weight": torch.ones(3)}, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": {"some.weight": 1}}))
    elif kind == "nan weights":
        # fp16 not-a-numbers for the last tensor of the U-Net that the header lists
        header = json.loads(content[8 : 8 + size])
        unet = [v for k, v in header.items() if k.startswith("model.diffusion_model.")]
        start, end = (8 + size + offset for offset in unet[-1]["data_offsets"])
        path.write_bytes(content[:start] + b"\xff" * (end - start) + content[end:])
    else:
        header = json.loads(content[8 : 8 + size])
        config = json.loads(header["__metadata__"]["config"])
        config["unet"]["surprise"] = 1
        header["__metadata__"]["config"] = json.dumps(config)
        head = json.dumps(header).encode()
        path.write_bytes(len(head).to_bytes(8, "little") + head + content[8 + size :])


@pytest.mark.parametrize("kind", FILES)
def test_bad_checkpoints_are_refused_in_words(server, kind):
    path = server.base / "models/univid/given.safetensors"
    write_bad_file(kind, path)
    try:
        refuse(server, graph(server, "text_to_video", checkpoint=path.name), FILES[kind])
    finally:
        path.unlink()


def refuse(server: Server, queued: Graph, words: str):
    run = server.run(queued)
    print(run.status, run.node_type, run.message[:700])
    assert run.status in ("refused", "error")
    assert re.search(words, run.message, re.IGNORECASE), run.message
    after = latents(server, good(server, graph(server, "text_to_video")))
    assert torch.isfinite(after).all()


def test_after_all_that_the_server_still_gives_the_first_bytes(server):
    """Runs last: on a fresh cache, what the plain graph gave before any bad input."""
    queued = graph(server, "text_to_video")
    kept = latents(server, good(server, queued))
    forget(server)
    assert torch.equal(kept, latents(server, good(server, queued)))
