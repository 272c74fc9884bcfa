"""Receipts that are damaged, of strangers or of another version, and files that ComfyUI saved."""

import json
import shutil

import av
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from univid import receipt
from univid.files import encode
from univid.sheet import save_sheet
from univid.video import write_frames

NOISE = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


def spoiled(made, change):
    said = json.loads(receipt.read(made / "clip.mp4").text())
    change(said)
    return json.dumps(said)


def setting(name, value):
    return lambda said: said["settings"].update({name: value})


def file(name, value, number=0):
    return lambda said: said["files"][number].update({name: value})


BAD = {
    "version": (lambda said: said.update(univid_receipt=2), "has a receipt of version 2, not 1"),
    "no version": (lambda said: said.update(univid_receipt=None), "has a receipt of version None, not 1"),
    "field": (lambda said: said.pop("noise"), "is damaged"),
    "unknown field": (lambda said: said.update(more=1), "is damaged"),
    "kind": (lambda said: said.update(settings=[]), "is damaged"),
    "nan": (setting("seed", float("nan")), "is damaged"),
    "name": (setting("a --out", 1), "is damaged"),
    "deep": (setting("seed", [[1]]), "is damaged"),
    "path": (file("name", "../secret.safetensors"), "is damaged"),
    "folder": (file("name", "/etc/passwd"), "is damaged"),
    "windows": (file("name", "C:\\secret"), "is damaged"),
    "dots": (file("name", ".."), "is damaged"),
    "hash": (file("sha256", "0"), "is damaged"),
}
REFUSED = {  # well formed, but nothing that is done
    "command": (lambda said: said.update(command="import"), "made by a command import"),
    "out": (setting("out", "mine.mp4"), "sets out, which none does"),
    "help": (setting("help", True), "sets help, which none does"),
    "device": (setting("device", "cpu"), "sets device, which none does"),
    "role": (file("role", "out"), "names a file for out"),
    "unknown": (setting("magic", 1), "has settings that this version does not take"),
    "type": (setting("steps", "many"), "has settings that this version does not take"),
    "range": (setting("steps", 0), "steps"),
    "option": (setting("references", ["--debug"]), "is damaged at references"),
    "sampler": (setting("sampler", "magic"), "dpmpp_2m_sde"),
}


@pytest.mark.parametrize("kind", [*BAD, *REFUSED])
def test_a_strangers_receipt_does_no_harm(made, call, tmp_path, kind):
    change, message = (BAD | REFUSED)[kind]
    for name in ("small.safetensors", "picture.png"):
        shutil.copy(made / name, tmp_path)
    write_frames(NOISE, tmp_path / "bad.gif", 8, spoiled(made, change))
    before = sorted(tmp_path.iterdir())
    for words in (("repeat", "bad.gif", "--out", "b.gif"), ("receipt", "bad.gif")):
        status, _, err = call(*words)
        if words[0] == "repeat" or kind in BAD:
            assert status == 2 and message in err.splitlines()[-1], err
            assert err.splitlines()[-1].startswith("univid: error: ")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", ["receipt", "repeat", "compare"])
def test_no_receipt_is_one_sentence(made, call, tmp_path, command):
    note = receipt.read(made / "clip.mp4").text()
    write_frames(NOISE, tmp_path / "cut.gif", 8, note[: len(note) // 2])
    write_frames(NOISE, tmp_path / "cut", 8, note[:-1])
    write_frames(NOISE, tmp_path / "none.mp4", 8)
    write_frames(NOISE, tmp_path / "none", 8)
    write_frames(NOISE, tmp_path / "words.webm", 8, "just words")
    save_sheet(Image.new("RGB", (8, 8)), tmp_path / "none.png")
    (tmp_path / "words.txt").write_text("just words")
    (tmp_path / "empty").mkdir()
    more = {"repeat": ("--out", "b.mp4"), "compare": (made / "clip.mp4",)}.get(command, ())
    for name, message in {
        "cut.gif": "the receipt of cut.gif is cut off or damaged",
        "cut": "the receipt of cut is cut off or damaged",
        "none.mp4": "none.mp4 has no receipt",
        "none": "none has no receipt",
        "words.webm": "words.webm has no receipt",
        "none.png": "none.png has no receipt",
        "empty": "empty has no receipt",
        "words.txt": "words.txt cannot be read: it is damaged, cut short or of no known format",
        "absent.mp4": "absent.mp4 cannot be read: it does not exist",
    }.items():
        status, out, err = call(command, name, *more)
        assert status == 2 and message in err and out == "", (name, err)
        assert len(err.splitlines()) == 1 and err.startswith("univid: error: ")


# Files that ComfyUI saved

GRAPH = {"prompt": {"3": {"class_type": "KSampler", "inputs": {"seed": 7, "model": ["4", 0], "text": "圆"}}},
         "workflow": {"nodes": [{"id": 3, "type": "KSampler", "widgets_values": [7, "圆"]}]}}  # fmt: skip


def saved_by_the_host(path, keys=("prompt", "workflow"), **more):
    """A file with what ComfyUI writes into one, as it does."""
    texts = {key: json.dumps(GRAPH[key]) for key in keys} | more
    if path.suffix == ".png":
        found = PngInfo()
        for key, text in texts.items():
            found.add_text(key, text)
        Image.new("RGB", (8, 8)).save(path, pnginfo=found)
        return
    options = {"movflags": "use_metadata_tags"} if path.suffix == ".mp4" else {}
    container, codec, _ = encode.ENCODERS[path.suffix]
    with av.open(str(path), "w", format=container, options=options) as opened:
        opened.metadata.update(texts)
        stream = opened.add_stream(codec, 8)
        stream.width = stream.height = 32
        opened.mux(
            stream.encode(av.VideoFrame.from_ndarray(NOISE[0], format="rgb24").reformat(format="yuv420p"))
        )
        opened.mux(stream.encode())


@pytest.mark.parametrize("name", ["h.mp4", "h.webm", "h.png"])
@pytest.mark.parametrize("keys", [("prompt", "workflow"), ("workflow",)])
def test_the_workflow_of_comfyui_is_read(call, tmp_path, name, keys):
    saved_by_the_host(tmp_path / name, keys)
    status, out, _ = call("receipt", name)
    assert status == 0 and "saved by ComfyUI, by a workflow of 1 nodes" in out
    assert "KSampler" in out and "7" in out and "圆" in out
    assert json.loads(call("receipt", name, "--json")[1]) == {key: GRAPH[key] for key in keys}
    status, _, err = call("repeat", name, "--out", "b.mp4")
    assert status == 2 and "was saved by ComfyUI and holds its workflow, but no receipt" in err


def test_a_workflow_that_is_cut_off(call, tmp_path):
    saved_by_the_host(tmp_path / "h.png", (), prompt='{"3": {"class')
    status, out, err = call("receipt", "h.png")
    assert status == 2 and "the workflow in h.png is cut off or damaged" in err and out == ""


@pytest.mark.parametrize(
    "text", ["[]", "1", '{"3": 5, "4": {"inputs": 7}, "\\u001b": {"class_type": [1]}}', "null"]
)
def test_a_workflow_of_another_form_is_shown_safely(call, tmp_path, text):
    saved_by_the_host(tmp_path / "h.png", (), prompt=text, workflow=text)
    status, out, _ = call("receipt", "h.png")
    assert status == 0 and all(line.isprintable() for line in out.splitlines())


def test_what_comfyui_made_of_ours_says_both(made, call, tmp_path):
    saved_by_the_host(tmp_path / "h.mp4", comment=receipt.read(made / "clip.mp4").text())
    status, out, _ = call("receipt", "h.mp4")
    assert status == 0 and "saved by ComfyUI" in out and "made by `python -m univid generate`" in out
