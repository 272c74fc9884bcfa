"""What made a file is in the file: read again, made again, and held against another one's."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from experts import knowing, upscaling
from PIL import Image
from safetensors.torch import save_file

from univid import __main__ as command_line
from univid import checkpoints, receipt
from univid.cli_made import given_files
from univid.cli_receipt import SAMPLE
from univid.files.hashes import sha256
from univid.sheet import save_sheet
from univid.video import write_frames

PROMPT = "圆 🙂 é \"a 'red' circle\"\nmoves left"
KINDS = ("clip.mp4", "clip.webm", "clip.gif", "clip", "sheet.png")
NOISE = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


def contents(path):
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file.read_bytes() for file in files]


# What a file says


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_says_what_made_it(made, name):
    said = receipt.read(made / name)
    assert said.command == "generate" and said.noise and said.versions["torch"] == torch.__version__
    profile = checkpoints.load(made / "small.safetensors", parts=()).profile
    expected = {
        "prompt": PROMPT, "seed": 5, "steps": 1, "frames": 3, "height": 32, "width": 32, "image_weight": 1.0,
        "sampler": profile.sampler, "schedule": profile.sigma_schedule, "guidance": profile.guidance.kind,
        "guidance_scale": profile.guidance.scale, "fps": profile.fps, "dtype": "fp32",
    }  # fmt: skip
    assert expected.items() <= said.settings.items()
    assert {(file.role, file.name, file.sha256) for file in said.files} == {
        ("checkpoint", "small.safetensors", sha256(made / "small.safetensors")),
        ("image", "picture.png", sha256(made / "picture.png")),
    }


@pytest.mark.parametrize("name", KINDS)
def test_no_folder_of_the_machine_is_named(made, name):
    written = b"".join(contents(made / name))
    for private in (str(made), made.name, str(Path.home()), str(Path(__file__).parents[1])):
        assert private.encode() not in written
    assert b"small.safetensors" in written


@pytest.mark.parametrize("name", KINDS)
def test_it_is_made_again_to_the_bit(made, name, call, tmp_path):
    again = tmp_path / name
    status, out, err = call("repeat", made / name, "--out", again)
    assert status == 0 and "will differ" not in out, err
    assert contents(again) == contents(made / name)  # frames, receipt and all
    status, out, _ = call("compare", made / name, again)
    assert status == 0 and "are equal: the same settings, files and frames" in out


def test_a_clip_is_made_again_of_its_sheet_and_as_another_kind(made, call, tmp_path):
    assert call("repeat", made / "sheet.png", "--out", "frames")[0] == 0
    assert contents(tmp_path / "frames") == contents(made / "clip")
    status, out, _ = call("compare", made / "clip", made / "clip.mp4")
    assert status == 0 and "frame 1 is the first that differs" in out and "a folder and .mp4" in out


def test_what_is_printed_is_read_by_people_and_by_programs(made, call):
    status, out, _ = call("receipt", made / "clip.mp4")
    assert status == 0 and "made by `python -m univid generate`" in out and "圆 🙂 é" in out
    assert sha256(made / "picture.png") in out and "image weight" in out
    status, out, _ = call("receipt", made / "clip.mp4", "--json")
    assert json.loads(out) == json.loads(receipt.read(made / "clip.mp4").text()) and out.isascii()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("prompt", ["circle " * 30_000, "圆🙂" * 40_000, '"\\\n\0\udcff' * 20_000, ""])
def test_any_prompt_survives(tmp_path, name, prompt):
    whole = receipt.Receipt("generate", {"prompt": prompt}, (), (), {}, {}, "none")
    if name == "sheet.png":
        save_sheet(Image.fromarray(NOISE[0]), tmp_path / name, whole.text())
    else:
        write_frames(NOISE, tmp_path / name, 8, whole.text())
    assert receipt.read(tmp_path / name) == whole


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_the_same_frames_are_the_same_bytes(tmp_path, suffix):
    for name in ("a", "b"):
        write_frames(np.tile(NOISE, (4, 2, 2, 1)), tmp_path / f"{name}{suffix}", 8, "words")
    assert contents(tmp_path / f"a{suffix}") == contents(tmp_path / f"b{suffix}")


def test_a_gif_still_moves_and_loops(made):
    with Image.open(made / "clip.gif") as gif:
        assert gif.n_frames == 3 and gif.info["loop"] == 0


# Other commands


@pytest.fixture(scope="module")
def models(made):
    base = checkpoints.load(made / "small.safetensors", dtype=torch.float32)
    checkpoints.save(made / "known.safetensors", knowing(base))
    checkpoints.save(made / "upscale.safetensors", upscaling(base, height=48, width=64))
    return made


COMMANDS = {
    "interpolate": ("--factor", 2, "--checkpoint", "known.safetensors"),
    "extend": ("--more", 2, "--checkpoint", "known.safetensors", "--seed", 3),
    "upscale": ("--checkpoint", "upscale.safetensors", "--prompt", "words", "--steps", 1),
    "chain": (
        "--prompt", "a", "--frames", 3, "--factor", 2, "--window", 3, "--checkpoint", "small.safetensors",
        "--known-checkpoint", "known.safetensors", "--upscale-checkpoint", "upscale.safetensors",
    ),
    "sweep": (
        "--prompt", "", "--image", "picture.png", "--checkpoint", "small.safetensors", "--text-weights", 0,
        0.3, "--image-weights", 1, "--steps", 1, "--references", "1=off", "8=2",
    ),
    "generate": ("--video", "clip.gif", "--prompt", "b", "--checkpoint", "small.safetensors", "--eta", 0.3,
        "--sampler", "ddim", "--guidance", "nested", "--guidance-rescale", 0.5, "--negative=-c"),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_made_again(models, call, tmp_path, command, monkeypatch):
    shutil.copytree(models, tmp_path / "in")
    monkeypatch.chdir(tmp_path / "in")
    words = [
        f"--negative={COMMANDS[command][-1]}" if word == "--negative" else word for word in COMMANDS[command]
    ]
    words = [word for word in words if word != "-c"]
    video = ("--video", "clip.mp4") if command in ("interpolate", "extend", "upscale") else ()
    first, second = (f"{name}.{'png' if command == 'sweep' else 'mp4'}" for name in ("first", "second"))
    status, _, err = call(command, *video, *words, "--out", first)
    assert status == 0, err
    assert call("repeat", first, "--out", second)[0] == 0
    assert contents(Path(first)) == contents(Path(second))
    said = receipt.read(first)
    assert said.command == command and b"in/" not in b"".join(contents(Path(first)))
    if command == "chain":
        assert [stage["stage"] for stage in said.stages] == ["base", "interpolate", "upscale"]
        assert [file.role for file in said.files] == ["checkpoint", "known_checkpoint", "upscale_checkpoint"]


def test_the_demo_is_made_again(made, call, tmp_path, monkeypatch):
    sample = tmp_path / "sample.png"
    shutil.copy(made / "picture.png", sample)
    monkeypatch.setattr(command_line, "SAMPLE", sample)
    assert call("demo", "--checkpoint", made / "small.safetensors")[0] == 0
    shutil.copy(sample, "demo")
    words = ("--checkpoint", made / "small.safetensors")
    for name in ("text-to-video", "text-and-image-to-video"):
        assert call("repeat", f"demo/{name}.mp4", *words, "--out", f"{name}.mp4")[0] == 0
        assert contents(tmp_path / f"{name}.mp4") == contents(tmp_path / "demo" / f"{name}.mp4")


def test_loras_come_in_their_order_with_their_strengths(made, call, tmp_path):
    weight = dict(checkpoints.load(made / "small.safetensors", parts=("unet",)).unet.named_parameters())
    rows, columns = weight["middle_block.1.proj_in.weight"].shape[:2]
    for name, value in (("a:b", 0.1), ("c", 0.2)):
        tensors = {"A.weight": torch.full((2, columns), value), "B.weight": torch.full((rows, 2), value)}
        tensors = {f"diffusion_model.middle_block.1.proj_in.lora_{end}": t for end, t in tensors.items()}
        save_file(tensors, tmp_path / f"{name}.safetensors")
    words = ("--checkpoint", made / "small.safetensors", "--prompt", "a", "--steps", 1, "--out", "first.webm")
    loras = ("--lora", "a:b.safetensors", "--lora", tmp_path / "c.safetensors:0.25")
    assert call("generate", *words, *loras)[0] == 0
    said = [(file.name, file.strength) for file in receipt.read("first.webm").files if file.role == "lora"]
    assert said == [("a:b.safetensors", 1.0), ("c.safetensors", 0.25)]
    again = ("repeat", "first.webm", "--checkpoint", made / "small.safetensors", "--out", "second.webm")
    assert call(*again)[0] == 0
    assert contents(tmp_path / "first.webm") == contents(tmp_path / "second.webm")
    status, _, err = call(*again, "--lora", "c.safetensors")
    assert status == 2 and "made with 2 LoRAs, got 1; give all" in err
    status, out, _ = call(*again, "--lora", "c.safetensors", "--lora", "c.safetensors")
    assert status == 0 and out.count("is not the lora") == 1
    out = call("compare", "first.webm", "second.webm")[1]
    assert "the file of lora: a:b.safetensors (" in out and "at strength 1 in first.webm" in out


def test_what_an_expert_leaves_to_the_built_in_model_counts(made, call, tmp_path):
    expert, plain = (SimpleNamespace(info=info) for info in ({"base": "built-in"}, {"base": "elsewhere"}))
    asked = {"checkpoint": made / "small.safetensors"}
    found = given_files(SimpleNamespace(lora=[]), [expert, plain], asked)
    assert found[1:] == (receipt.Given("base", "built-in", sha256(checkpoints.built_in_path())),)
    said = receipt.read(made / "clip.gif")
    other = dataclasses.replace(found[1], sha256="0" * 64)
    shutil.copytree(made, tmp_path / "in")
    write_frames(NOISE, "in/old.gif", 8, changed(said, files=(*said.files, other)).text())
    status, out, _ = call("repeat", "in/old.gif", "--out", "b.gif")
    assert status == 0 and "built-in is not the base that in/old.gif was made with" in out


# What made two files differ


def test_settings_that_differ_are_said_in_words(made, call, tmp_path):
    words = ("--checkpoint", made / "small.safetensors", "--image", made / "picture.png", "--steps", 1)
    assert call("generate", *words, "--prompt", "waves", "--image-weight", 0.5, "--out", "b.mp4")[0] == 0
    status, out, _ = call("compare", made / "clip.mp4", "b.mp4")
    assert status == 0 and "seed: 5 in clip.mp4, 0 in b.mp4" in out and "waves in b.mp4" in out
    assert "image weight: 1 in clip.mp4, 0.5 in b.mp4" in out and "steps" not in out
    assert "frame 1 is the first that differs: by" in out.splitlines()[-1]


def changed(said, **fields):
    return dataclasses.replace(said, **fields)


def test_every_part_counts(made):
    said = receipt.read(made / "clip.mp4")
    other = receipt.Given("image", "other.png", "0" * 64)
    for fields, words in (
        ({"command": "sweep"}, "the command: generate in a, sweep in b"),
        ({"settings": said.settings | {"guidance_scale": 3.0000001}}, "3.0 in a, 3.0000001 in b"),
        ({"settings": said.settings | {"compile": True}}, "compile: none in a, yes in b"),
        ({"stages": ({"stage": "base", "steps": 4},)}, "steps of stage 1: none in a, 4 in b"),
        ({"files": (said.files[0], other)}, "other.png (000000000000) in b"),
        ({"files": said.files[:1]}, "the file of image: picture.png"),
        ({"versions": said.versions | {"torch": "1.0"}}, "the version of torch: "),
        ({"machine": said.machine | {"threads": 99}}, "the machine's threads: "),
        ({"noise": "2: otherwise"}, "2: otherwise in b"),
    ):
        found = receipt.differences(said, changed(said, **fields), ("a", "b"))
        assert words in " ".join(found), (words, found)
    renamed = tuple(dataclasses.replace(file, name="x") for file in said.files)
    assert receipt.differences(said, changed(said, files=renamed), ("a", "b")) == []


def test_frames_that_differ_are_told_by_number_and_size(made, call, tmp_path):
    note = receipt.read(made / "clip").text()
    frames = NOISE.copy()
    write_frames(frames, tmp_path / "a", 8, note)
    frames[1, 0, 0] ^= 12
    write_frames(frames, tmp_path / "b", 8, note)
    assert "frame 2 is the first that differs: by 12 of 255" in call("compare", "a", "b")[1]
    write_frames(NOISE[:2], tmp_path / "c", 8, note)
    assert "the first 2 frames are equal, and a has more" in call("compare", "a", "c")[1]
    write_frames(NOISE[:, :16], tmp_path / "d", 8, note)
    assert "the frames' sizes differ: 32 x 32 in a, 32 x 16 in d" in call("compare", "a", "d")[1]
    other = changed(receipt.parse(note, "a"), machine={"cpu": "other"})
    write_frames(NOISE, tmp_path / "e", 8, other.text())
    assert "their frames are equal all the same" in call("compare", "a", "e")[1]


# Inputs


def test_inputs_that_are_elsewhere_are_given(made, call, tmp_path):
    shutil.copy(made / "clip.mp4", tmp_path)
    status, out, err = call("repeat", "clip.mp4", "--out", "b.mp4")
    digest = sha256(made / "small.safetensors")
    assert status == 2 and f"the checkpoint small.safetensors of sha256 {digest}" in err
    assert "which is not beside it; give --checkpoint." in err and out == ""
    words = ("--checkpoint", made / "small.safetensors")
    status, _, err = call("repeat", "clip.mp4", "--out", "b.mp4", *words)
    assert status == 2 and "the image picture.png of sha256" in err and "give --image." in err
    words += ("--image", made / "picture.png")
    status, out, _ = call("repeat", "clip.mp4", "--out", "b.mp4", *words)
    assert status == 0 and contents(tmp_path / "b.mp4") == contents(made / "clip.mp4")


def test_the_sample_picture_needs_not_be_given(made, call, tmp_path):
    said = receipt.read(made / "clip.gif")
    shutil.copy(made / "small.safetensors", tmp_path)
    for digest, status in ((sha256(SAMPLE), 0), ("0" * 64, 2)):
        picture = receipt.Given("image", "sample.png", digest)
        write_frames(NOISE, "old.gif", 8, changed(said, files=(said.files[0], picture)).text())
        assert call("repeat", "old.gif", "--out", "b.gif")[0] == status


def test_an_input_of_another_hash_is_said_and_taken(made, call, tmp_path):
    for name in ("clip.mp4", "small.safetensors"):
        shutil.copy(made / name, tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    status, out, _ = call("repeat", "clip.mp4", "--out", "b.mp4")
    assert status == 0 and "picture.png is not the image that clip.mp4 was made with: its sha256" in out
    assert sha256(tmp_path / "picture.png")[:12] in out and "the result will differ" in out
    assert "the file of image: picture.png" in call("compare", "clip.mp4", "b.mp4")[1]


def test_another_version_is_said(made, call, tmp_path):
    shutil.copytree(made, tmp_path / "in")
    said = receipt.read(made / "clip.gif")
    old = changed(said, versions=said.versions | {"torch": "1.0"}, noise="0: otherwise")
    write_frames(NOISE, "in/old.gif", 8, old.text())
    status, out, _ = call("repeat", "in/old.gif", "--out", "b.gif")
    assert status == 0 and f"in/old.gif was made with torch 1.0, this is {torch.__version__}" in out
    assert "noise of another rule" in out and contents(tmp_path / "b.gif") == contents(made / "clip.gif")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--video", "x.mp4"), "was made without --video; leave it out"),
        (("--lora", "x"), "was made without --lora"),
        (("--image", "absent.png"), "absent.png cannot be read"),
        (("--out", "b.avi"), "expected an output ending in"),
    ],
    ids=" ".join,
)
def test_words_that_do_not_fit_a_receipt(made, call, tmp_path, words, message):
    status, out, err = call("repeat", made / "clip.mp4", "--out", "b.mp4", *words)
    assert status == 2 and message in err and len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_not_repeated_onto_itself(made, call):
    before = contents(made / "clip.mp4")
    status, _, err = call("repeat", made / "clip.mp4", "--out", made / "clip.mp4")
    assert status == 2 and "is read too" in err and contents(made / "clip.mp4") == before
