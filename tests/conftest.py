"""What several test files share."""

import dataclasses
import shutil

import pytest
import torch

from univid import presets


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory):
    """A native checkpoint of the tiny architecture, narrower, with every weight drawn at random.

    Its profile asks for 3 frames of 32 x 32 in 2 steps, so that a clip takes a fraction of a second.
    """
    from univid.checkpoints.native import meta_modules, save
    from univid.model import UniVid

    tiny = presets.PRESETS["tiny"]
    small = dataclasses.replace(
        tiny,
        unet=dataclasses.replace(
            tiny.unet, model_channels=16, channel_mult=(1, 2, 2, 2), head_channels=16, norm_groups=8,
            context_dim=32, image_stream=dataclasses.replace(tiny.unet.image_stream, width=32),
        ),
        vae=dataclasses.replace(tiny.vae, channels=8, channel_mult=(1, 1, 2, 2)),
        text=dataclasses.replace(tiny.text, width=32, layers=2, embed_dim=32),
        vision=dataclasses.replace(tiny.vision, width=32, layers=1, embed_dim=32),
    )  # fmt: skip
    tiny_profile = presets.PROFILES["tiny"]
    profile = dataclasses.replace(
        tiny_profile, frames=3, height=32, width=32, steps=2, sampler="dpmpp_2m",
        guidance=dataclasses.replace(tiny_profile.guidance, scale=3.0),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    parts = meta_modules(small)
    for part in parts.values():
        part.to_empty(device="cpu")
        for parameter in part.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 100
            parameter.data.normal_(std=fan_in**-0.5, generator=generator)
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    save(path, UniVid(small, profile, info={"source": "random weights of a test"}, **parts))
    return path


@pytest.fixture(scope="session")
def media(tmp_path_factory):
    """A folder of real clips (clips/) and pictures (images/), each with its caption."""
    from denoise_runs import write_media

    return write_media(tmp_path_factory.mktemp("media"))


@pytest.fixture
def run(small_checkpoint, tmp_path, monkeypatch, capsys):
    """Call the command line in an own folder; gives (exit status, stdout, stderr)."""
    from univid import __main__ as command_line

    monkeypatch.chdir(tmp_path)

    def call(command, *words):
        given = ["--checkpoint", small_checkpoint] if command in ("generate", "sweep", "demo") else []
        status = command_line.main([command, *map(str, [*given, *words])])
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """As `run`, by whatever checkpoint the words name."""
    from univid import __main__ as command_line

    monkeypatch.chdir(tmp_path)
    capsys.readouterr()

    def called(*words):
        status = command_line.main(list(map(str, words)))
        return status, *capsys.readouterr()

    return called


@pytest.fixture(scope="module")
def made(small_checkpoint, tmp_path_factory):
    """A folder with a checkpoint, a picture, and what the command line made of them in every kind of file."""
    from PIL import Image

    from univid import __main__ as command_line

    folder = tmp_path_factory.mktemp("made")
    shutil.copy(small_checkpoint, folder / "small.safetensors")
    Image.effect_noise((40, 24), 80).convert("RGB").save(folder / "picture.png")
    prompt = "圆 🙂 é \"a 'red' circle\"\nmoves left"
    words = ["--prompt", prompt, "--image", folder / "picture.png", "--seed", 5, "--steps", 1]
    words += ["--checkpoint", folder / "small.safetensors"]
    for name in ("clip.mp4", "clip.webm", "clip.gif", "clip"):
        sheet = ["--sheet", folder / "sheet.png"] if name == "clip.mp4" else []
        given = ["generate", *words, *sheet, "--out", folder / name]
        assert command_line.main(list(map(str, given))) == 0
    return folder


@pytest.fixture(scope="module")
def one_thread():
    """Networks this small are slower on more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def no_pictures():
    """Drawing a run takes longer than a toy run."""
    from training import report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw", lambda folder: None)
        yield
