import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from asking import gathered
from PIL import Image

from univid import Clip, Sampling, cli_groups, generate, guidance, load, samplers, video
from univid import __main__ as command_line

ROOT = Path(__file__).parent.parent
PROMPT = "a red circle moves left on a black background"


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.effect_noise((40, 24), 80).convert("RGB").save(path)
    return path


@pytest.fixture(scope="module")
def model(small_checkpoint):
    return load(small_checkpoint)


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# What works


@pytest.mark.parametrize("name", ["clip.mp4", "new/clip.webm", "clip.gif"])
def test_text_to_video(run, tmp_path, name):
    status, out, err = run("generate", "--prompt", PROMPT, "--out", name)
    assert status == 0 and name in out
    assert "sample" in err and "2/2" in err and "decode" in err  # the progress bars
    clip, fps = video.read_video(tmp_path / name)
    assert clip.shape == (1, 3, 3, 32, 32) and fps == pytest.approx(8, rel=0.05)
    assert files(tmp_path) == [name]


def test_every_option_arrives(run, tmp_path, picture, model):
    words = (
        "generate", "--prompt", PROMPT, "--image", picture, "--negative", "blur", "--text-weight", 0.7,
        "--image-weight", 0.4, "--guidance", "nested", "--text-guidance", 3, "--image-guidance", 2,
        "--guidance-rescale", 0.5, "--steps", 3, "--sampler", "euler_ancestral", "--schedule", "karras",
        "--seed", 7, "--frames", 2, "--height", 16, "--width", 24, "--device", "cpu", "--dtype", "fp32",
        "--out", "frames", "--sheet", "sheet.png",
    )  # fmt: skip
    assert run(*words)[0] == 0
    expected = generate(
        model.to(dtype=torch.float32), PROMPT, video.read_image(picture), negative="blur", text_weight=0.7,
        image_weight=0.4, guidance=guidance.Nested(3.0, 2.0, 0.5), seed=7, clip=Clip(2, 16, 24),
        sampling=Sampling(3, "euler_ancestral", "karras"),
    )  # fmt: skip
    assert expected.std() > 0.05  # something to compare
    found = torch.stack([video.read_image(tmp_path / "frames" / f"frame_000{k}.png") for k in (1, 2)], 2)
    assert (found - expected).abs().max() <= 1 / 127.5
    written = ["frame_0001.png", "frame_0002.png", "receipt.json"]
    assert files(tmp_path) == [*(f"frames/{name}" for name in written), "picture.png", "sheet.png"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("negative", "blur"),
        ("text_weight", 0.3),
        ("image_weight", 0.3),
        ("guidance", guidance.Separate(3.0, 2.0)),
        ("steps", 3),
        ("sampler", "dpmpp_2m_sde"),
        ("sigma_schedule", "karras"),
        ("seed", 1),
    ],
)
def test_every_option_changes_the_video(model, option, value):
    image = torch.linspace(-1, 1, 3 * 8 * 8).view(1, 3, 8, 8)
    plain = generate(model.to(dtype=torch.float32), PROMPT, image)
    assert torch.equal(plain, generate(model, PROMPT, image))
    assert not torch.equal(plain, generate(model, PROMPT, image, **gathered(**{option: value})))


def test_a_clip_of_a_batch_is_the_clip_alone(model):
    images = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)
    both = generate(model.to(dtype=torch.float32), [PROMPT, "waves"], images, seed=3)
    alone = generate(model, "waves", images[1:], seed=4)
    assert (both[1:] - alone).abs().max() < 1e-3
    assert (both[:1] - alone).abs().max() > 0.05


def test_a_picture_alone_is_enough_and_a_frame_is_a_picture(run, tmp_path, picture):
    assert run("generate", "--image", picture, "--frames", 1, "--out", "one.mp4")[0] == 0
    assert video.read_video(tmp_path / "one.mp4")[0].shape == (1, 3, 1, 32, 32)


def test_a_hundred_frames(run, tmp_path):
    words = ("--frames", 100, "--height", 8, "--width", 16, "--steps", 1, "--fps", 25, "--out", "long.mp4")
    assert run("generate", "--prompt", PROMPT, *words)[0] == 0
    clip, fps = video.read_video(tmp_path / "long.mp4")
    assert clip.shape == (1, 3, 100, 8, 16) and fps == 25


def test_a_long_prompt_is_cut_with_a_warning_and_chinese_works(run, caplog):
    assert (
        run("generate", "--prompt", "circle " * 500, "--steps", 1, "--out", "long.mp4", "--sheet", "s.png")[0]
        == 0
    )
    assert "77" in caplog.text
    caplog.clear()
    assert (
        run("generate", "--prompt", "一个红色的圆", "--steps", 1, "--out", "圆.mp4", "--sheet", "s.png")[0]
        == 0
    )
    assert not caplog.text


def test_video_to_video_takes_the_profiles_size_and_the_videos_rate(run, tmp_path):
    source = video.from_uint8(np.random.default_rng(0).integers(0, 255, (5, 48, 64, 3), np.uint8))
    video.write_video(source, tmp_path / "in.mp4", 12.5)
    words = ("generate", "--prompt", PROMPT, "--video", "in.mp4", "--out", "out.mp4")
    assert run(*words)[0] == 0
    clip, fps = video.read_video(tmp_path / "out.mp4")
    assert clip.shape == (1, 3, 3, 32, 32) and fps == 12.5  # the profile's frames, the video's rate
    status, _, err = run(*words, "--frames", 6)
    assert status == 2 and "5 frames" in err


def test_a_video_is_looked_at_before_the_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("univid.checkpoints.load", lambda *_, **__: pytest.fail("it was loaded"))
    (tmp_path / "words.mp4").write_text("what is this? " * 99)
    for name, reason in {"words.mp4": "of no known format", "gone.mp4": "it does not exist"}.items():
        words = ("--prompt", PROMPT, "--video", tmp_path / name, "--out", tmp_path / "out.mp4")
        assert command_line.main(["generate", *map(str, words)]) == 2
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "out.mp4").exists()


def test_sweep_draws_a_grid(run, tmp_path, picture):
    words = ("--text-weights", 0, 1, "--image-weights", 0, 0.5, 1, "--steps", 1, "--out", "grid.png")
    status, out, err = run("sweep", "--prompt", PROMPT, "--image", picture, *words)
    assert status == 0 and "grid.png" in out and "6/6" in err
    assert Image.open(tmp_path / "grid.png").width > 3 * 3 * 96


def test_demo_makes_three_clips_and_their_sheets(run, tmp_path, picture, monkeypatch):
    monkeypatch.setattr(command_line, "SAMPLE", picture)
    status, out, _ = run("demo")
    names = ["image-to-video", "text-and-image-to-video", "text-to-video"]
    assert files(tmp_path / "demo") == [f"{name}{suffix}" for name in names for suffix in (".mp4", ".png")]
    assert status == 0 and all(f"demo/{name}.mp4" in out for name in names)
    assert run("demo")[0] == 0  # again, over the old ones


def test_inspect_reads_files_and_presets(run, small_checkpoint):
    status, out, _ = run("inspect", small_checkpoint)
    assert status == 0
    assert all(
        words in out for words in ("PSTAttn", "random weights of a test", "dpmpp_2m", "model_channels", "MB")
    )
    status, out, _ = run("inspect", "paper")
    assert status == 0 and "865,910,724" in out and "686" in out


def test_help_names_every_sampler_and_schedule(capsys):
    assert cli_groups.SAMPLERS == ", ".join(samplers.SAMPLERS)
    assert cli_groups.SCHEDULES == ", ".join(samplers.SIGMA_SCHEDULES)
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["generate", "--help"])
    assert stopped.value.code == 0 and "--text-weight" in capsys.readouterr().out


# What is refused


BAD = [
    (("--prompt", ""), "neither"),
    (("--prompt", "   "), "neither"),
    (("--image", "words.txt"), "words.txt cannot be read as a picture"),
    (("--image", "absent.png"), "absent.png cannot be read as a picture: it does not exist"),
    (("--prompt", PROMPT, "--height", 0), "height"),
    (("--prompt", PROMPT, "--height", 20), "multiple of 8, got 20"),
    (("--prompt", PROMPT, "--width", -8), "width"),
    (("--prompt", PROMPT, "--width", 4), "width"),
    (("--prompt", PROMPT, "--frames", 0), "frames must be at least 1"),
    (("--prompt", PROMPT, "--frames", -3), "frames must be at least 1"),
    (("--prompt", PROMPT, "--frames", 2.5), "invalid int value"),
    (("--prompt", PROMPT, "--steps", 0), "steps"),
    (("--prompt", PROMPT, "--steps", 5000), "steps"),
    (("--prompt", PROMPT, "--sampler", "magic"), "dpmpp_2m_sde"),
    (("--prompt", PROMPT, "--schedule", "magic"), "sgm_uniform"),
    (("--prompt", PROMPT, "--guidance", "magic"), "nested"),
    (("--prompt", PROMPT, "--text-weight", "nan"), "text_weight"),
    (("--prompt", PROMPT, "--text-weight", "inf"), "text_weight"),
    (("--prompt", PROMPT, "--text-weight", -1), "text_weight"),
    (("--image", "picture.png", "--image-weight", -1), "image_weight"),
    (("--image", "picture.png", "--image-weight", "nan"), "image_weight"),
    (("--prompt", PROMPT, "--image-weight", 1), "--image"),
    (("--prompt", PROMPT, "--guidance-scale", "nan"), "scale"),
    (("--prompt", PROMPT, "--guidance-scale", -2), "scale"),
    (("--prompt", PROMPT, "--guidance-rescale", 2), "rescale"),
    (("--prompt", PROMPT, "--guidance", "nested", "--text-guidance", "inf"), "text"),
    (("--prompt", PROMPT, "--guidance", "nested", "--guidance-scale", 2), "--guidance-scale does nothing"),
    (("--prompt", PROMPT, "--image-guidance", 2), "--image-guidance does nothing"),
    (("--prompt", PROMPT, "--guidance-scale", 1, "--negative", "blur"), "--negative does nothing"),
    (("--prompt", PROMPT, "--seed", -1), "seed"),
    (("--prompt", PROMPT, "--seed", 2**70), "seed"),
    (("--prompt", PROMPT, "--fps", 0), "fps"),
    (("--prompt", PROMPT, "--fps", "nan"), "fps"),
    (("--prompt", PROMPT, "--denoise", 0.5), "--video"),
    (("--prompt", PROMPT, "--video", "clip.gif", "--denoise", 0), "denoise"),
    (("--prompt", PROMPT, "--video", "clip.gif", "--denoise", "nan"), "denoise"),
    (("--prompt", PROMPT, "--video", "words.txt"), "words.txt cannot be read as a video"),
    (("--prompt", PROMPT, "--video", "clip.gif", "--frames", 0), "frames"),
    (("--prompt", PROMPT, "--video", "clip.gif", "--height", 20), "multiple of 8"),
    (("--prompt", PROMPT, "--device", "abacus"), "device"),
    (("--prompt", PROMPT, "--dtype", "fp64"), "fp32"),
    (("--prompt", PROMPT, "--sheet", "sheet.jpg"), ".png"),
    (("--prompt", PROMPT, "--out", "clip.avi"), ".webm"),
    (("--prompt", PROMPT, "--out", "words.txt/clip.mp4"), "cannot be written"),
    (("--prompt", PROMPT, "--out", "/proc/clip.mp4"), "cannot be written"),
    (("--prompt", PROMPT, "--checkpoint", "words.txt"), "words.txt"),
    (("--prompt", PROMPT, "--checkpoint", "absent.safetensors"), "absent.safetensors"),
    (("--prompt", PROMPT, "--magic"), "--magic"),
    (("--prompt",), "expected one argument"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(map(str, words))[:60] for words, _ in BAD])
def test_bad_input_is_one_line_and_leaves_nothing(run, tmp_path, picture, words, message):
    (tmp_path / "words.txt").write_text("just words")
    (tmp_path / "clip.mp4").write_text("the user's own")
    video.write_video(torch.zeros(1, 3, 3, 32, 32), tmp_path / "clip.gif", 8)
    before = files(tmp_path)
    status, out, err = run("generate", "--out", "clip.mp4", *words)
    assert status == 2 and out == ""
    assert err.startswith("univid: error: ") and message in err and len(err.splitlines()) == 1
    assert files(tmp_path) == before and (tmp_path / "clip.mp4").read_text() == "the user's own"


@pytest.mark.parametrize(
    "words", [(), ("magic",), ("inspect",), ("inspect", "absent"), ("inflate", "absent", "--out", "x")]
)
def test_bad_commands(run, words, capsys, tmp_path):
    assert command_line.main(list(words)) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and err.startswith("univid: error: ")
    assert files(tmp_path) == []


def test_debug_shows_the_traceback(run):
    status, _, err = run("generate", "--prompt", PROMPT, "--steps", 0, "--out", "x.mp4", "--debug")
    assert status == 2 and "Traceback" in err and err.splitlines()[-1].startswith("univid: error: ")


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_infinite_values_name_the_stage(small_checkpoint, part):
    model = load(small_checkpoint)
    next(reversed(list(getattr(model, part).parameters()))).data.fill_(float("nan"))
    words = {"text_encoder": "text encoder", "unet": "step 1 of 2", "vae": "VAE decoder"}[part]
    if part == "vae":
        model.vae.decoder.conv_out.bias.data.fill_(float("inf"))
    if part == "text_encoder":
        model.text_encoder.ln_final.bias.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=words):
        generate(model, PROMPT)


@pytest.mark.parametrize(
    ("missing", "words"),
    [("vae", "VAE"), ("text_encoder", "text encoder"), ("image_encoder", "image encoder")],
)
def test_a_missing_part_is_named(small_checkpoint, missing, words):
    model = load(small_checkpoint)
    setattr(model, missing, None)
    with pytest.raises(ValueError, match=f"holds no {words}"):
        generate(model, PROMPT, torch.zeros(1, 3, 8, 8))


def test_progress_counts_to_the_end_and_an_exception_cancels(model):
    seen = []
    generate(model.to(dtype=torch.float32), PROMPT, callback=lambda *event: seen.append(event))
    assert seen == [
        ("encode", 1, 1),
        ("sample", 0, 2),
        ("sample", 1, 2),
        ("sample", 2, 2),
        ("decode", 0, 3),
        ("decode", 3, 3),
    ]

    def cancel(stage, done, total):
        if (stage, done) == ("sample", 1):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        generate(model, PROMPT, callback=cancel)


# The program itself


def test_the_program_answers_help_without_torch():
    code = "import sys, univid.cli; univid.cli.build_parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_program_reports_errors_by_exit_status(tmp_path):
    words = [sys.executable, "-m", "univid", "generate", "--image", "absent.png", "--out", tmp_path / "x.mp4"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "univid: error: absent.png cannot be read as a picture: it does not exist; give a PNG, JPEG, "
        "WebP, GIF, BMP, TIFF or AVIF file.\n"
    )
