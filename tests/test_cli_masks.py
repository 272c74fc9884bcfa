"""Masks and several pictures on the command line and in `generate`."""

import numpy as np
import pytest
import torch
from PIL import Image

from univid import Clip, Masks, Picture, Sampling, curves, generate, load, receipt, video
from univid.files.hashes import sha256

PROMPT = "a red circle moves left on a black background"
SHORT = ("--prompt", PROMPT, "--image", "picture.png", "--steps", 1)


@pytest.fixture(autouse=True)
def files(tmp_path):
    Image.effect_noise((40, 24), 80).convert("RGB").save(tmp_path / "picture.png")
    half = np.zeros((30, 50), np.uint8)
    half[:, 20:] = 255
    Image.fromarray(half).save(tmp_path / "half.png")
    Image.new("L", (7, 5), 255).save(tmp_path / "white.png")
    Image.new("RGB", (7, 5)).save(tmp_path / "black.png")
    levels = np.linspace(0, 255, 3 * 24 * 24).reshape(3, 24, 24, 1).astype(np.uint8)
    video.write_video(video.from_uint8(levels.repeat(3, 3)), tmp_path / "moving.gif", 8)
    video.write_video(video.from_uint8(levels.repeat(3, 3)), tmp_path / "moving.mp4", 8)


@pytest.fixture(scope="module")
def model(small_checkpoint):
    return load(small_checkpoint, dtype=torch.float32)


def frames(folder):
    return [(folder / f"frame_000{k}.png").read_bytes() for k in (1, 2, 3)]


def made(run, tmp_path, name, *words):
    status, _, err = run("generate", *SHORT, *words, "--out", name)
    assert status == 0, err
    return video.read_image(tmp_path / name / "frame_0003.png")


def test_masks_arrive(run, tmp_path, model):
    found = made(run, tmp_path, "out", "--image-mask", "half.png", "--text-mask", "moving.mp4")
    masks = Masks(video.read_mask(tmp_path / "moving.mp4", 3), video.read_mask(tmp_path / "half.png", 3))
    assert masks.text.shape == (3, 24, 24) and masks.text[0].mean() < 0.3 < 0.7 < masks.text[2].mean()
    half = torch.zeros(1, 30, 50)
    half[..., 20:] = 1
    assert torch.equal(masks.image, half)
    picture = video.read_image(tmp_path / "picture.png")
    expected = generate(model, PROMPT, picture, masks=masks, sampling=Sampling(steps=1))[:, :, 2]
    assert (found - expected).abs().max() <= 1 / 127.5
    swapped = Masks(masks.image, masks.text)
    other = generate(model, PROMPT, picture, masks=swapped, sampling=Sampling(steps=1))[:, :, 2]
    assert (found - other).abs().max() > 0.02


def test_white_changes_nothing_and_black_is_a_weight_of_0(run, tmp_path):
    plain, white = made(run, tmp_path, "a"), made(run, tmp_path, "b", "--image-mask", "white.png")
    assert torch.equal(plain, white)
    none = made(run, tmp_path, "c", "--image-weight", 0)
    black = made(run, tmp_path, "d", "--image-mask", "black.png")
    assert torch.equal(none, black) and not torch.equal(none, plain)
    silent = made(run, tmp_path, "e", "--text-weight", 0)
    assert torch.equal(silent, made(run, tmp_path, "f", "--text-mask", "black.png"))


def test_every_clip_of_a_batch_and_every_tile_is_under_them(model):
    picture = torch.linspace(-1, 1, 3 * 8 * 8).view(1, 3, 8, 8)
    half = torch.zeros(1, 40, 64)
    half[..., 32:] = 1
    size = {"clip": Clip(2, 40, 64), "sampling": Sampling(steps=1)}
    both = generate(model, [PROMPT, "waves"], picture, masks=Masks(image=half), seed=3, **size)
    alone = generate(model, "waves", picture, masks=Masks(image=half), seed=4, **size)
    assert (both[1:] - alone).abs().max() < 1e-3
    tiled = {"clip": Clip(2, 40, 64), "sampling": Sampling(steps=1, tile=32)}
    ones = torch.ones(1, 3, 4)
    plain = generate(model, "waves", picture, seed=4, **tiled)
    assert torch.equal(generate(model, "waves", picture, seed=4, masks=Masks(ones, ones), **tiled), plain)
    in_part = generate(model, "waves", picture, seed=4, masks=Masks(image=half), **tiled)
    assert (in_part - plain).abs().max() > 1e-3


def test_a_receipt_names_masks_and_the_file_is_made_again(run, call, tmp_path, small_checkpoint):
    made(run, tmp_path, "out", "--image-mask", "half.png", "--text-mask", "moving.gif")
    said = {file.role: file for file in receipt.read(tmp_path / "out").files}
    assert said["image_mask"].name == "half.png" and said["text_mask"].name == "moving.gif"
    assert said["image_mask"].sha256 == sha256(tmp_path / "half.png")
    checkpoint = f"--checkpoint={small_checkpoint}"
    status, _, err = call("repeat", "out", "--out", "again", checkpoint)
    assert status == 0, err
    assert frames(tmp_path / "again") == frames(tmp_path / "out")
    (tmp_path / "half.png").unlink()
    status, _, err = call("repeat", "out", "--out", "third", checkpoint)
    assert status == 2 and "give --image-mask" in err
    status, out, _ = call("repeat", "out", "--out", "third", checkpoint, "--image-mask", "white.png")
    assert status == 0 and "white.png is not the image mask" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--image-mask", "gone.png", "--image", "picture.png"), "gone.png"),
        (("--image-mask", "words.txt", "--image", "picture.png"), "words.txt"),
        (("--image-mask", "half.png"), "--image-mask needs a picture"),
        (("--text-mask", "moving.mp4", "--frames", 5), "each of 5 frames, got 3"),
        (("--text-mask", "out.mp4"), "out.mp4"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(run, tmp_path, words, said):
    (tmp_path / "words.txt").write_text("no picture")
    Image.new("L", (7, 5), 255).save(tmp_path / "out.mp4", "PNG")
    before = (tmp_path / "out.mp4").read_bytes()
    status, _, err = run("generate", "--prompt", PROMPT, *words, "--out", "out.mp4")
    assert status == 2 and said in err and len(err.splitlines()) == 1
    assert (tmp_path / "out.mp4").read_bytes() == before


def test_a_picture_is_needed_for_its_mask(model):
    with pytest.raises(ValueError, match="the image_mask needs a picture, got none"):
        generate(model, PROMPT, masks=Masks(image=torch.ones(1, 4, 4)))


# Several pictures


def test_several_pictures_arrive_and_are_made_again(run, call, tmp_path, model, small_checkpoint):
    words = ("--image", "half.png:0.5@1-2", "--image", "picture.png", "--image", "white.png@0", "--steps", 1)
    assert run("generate", "--prompt", PROMPT, *words, "--out", "out")[0] == 0
    pictures = [
        Picture(video.read_image(tmp_path / name), weight, span)
        for name, weight, span in (
            ("half.png", 0.5, (1, 2)),
            ("picture.png", 1.0, None),
            ("white.png", 1.0, (0, 0)),
        )
    ]
    expected = generate(model, PROMPT, pictures, sampling=Sampling(steps=1))
    found = torch.stack([video.read_image(tmp_path / "out" / f"frame_000{k}.png") for k in (1, 2, 3)], 2)
    assert (found - expected).abs().max() <= 1 / 127.5
    other = generate(model, PROMPT, pictures[1:], sampling=Sampling(steps=1))
    assert (expected - other).abs().max() > 1e-3

    said = receipt.read(tmp_path / "out")
    shown = [(file.name, file.strength) for file in said.files if file.role == "image"]
    assert shown == [("half.png", 0.5), ("picture.png", None), ("white.png", None)]
    assert said.settings["image_frames"] == ["1-2", "all", "0-0"]
    checkpoint = f"--checkpoint={small_checkpoint}"
    assert call("repeat", "out", "--out", "again", checkpoint)[0] == 0
    assert frames(tmp_path / "again") == frames(tmp_path / "out")
    text = (tmp_path / "out" / "receipt.json").read_text("utf-8")
    (tmp_path / "out" / "receipt.json").write_text(text.replace('"1-2"', '"/../x.png"'), "utf-8")
    status, _, err = call("repeat", "out", "--out", "third", checkpoint)
    assert status == 2 and "damaged at image frames" in err


OF_PICTURES = (
    "--image", "half.png:0.5", "--picture-mask", "half.png", "--image", "white.png@1-2",
    "--image", "picture.png:60", "--picture-steps", "0..1", "--picture-mask", "moving.gif",
)  # fmt: skip


def test_a_picture_has_a_region_and_steps_and_is_made_again(run, call, tmp_path, model, small_checkpoint):
    assert run("generate", "--prompt", PROMPT, *OF_PICTURES, "--steps", 2, "--out", "out")[0] == 0
    half, white, third = (video.read_image(tmp_path / f"{n}.png") for n in ("half", "white", "picture"))
    masks = video.read_mask(tmp_path / "half.png", 3), video.read_mask(tmp_path / "moving.gif", 3)
    pictures = [
        Picture(half, 0.5, mask=masks[0]),
        Picture(white, frames=(1, 2)),
        Picture(third, 60.0, mask=masks[1], over_steps=curves.parse("0..1")),
    ]
    expected = generate(model, PROMPT, pictures, sampling=Sampling(steps=2))
    found = torch.stack([video.read_image(tmp_path / "out" / f"frame_000{k}.png") for k in (1, 2, 3)], 2)
    assert (found - expected).abs().max() <= 1 / 127.5
    for changed in (
        Picture(third, 60.0, mask=masks[1]),
        Picture(third, 60.0, over_steps=curves.parse("0..1")),
    ):
        other = generate(model, PROMPT, [*pictures[:2], changed], sampling=Sampling(steps=2))
        assert (expected - other).abs().max() > 2 / 127.5

    said = receipt.read(tmp_path / "out")
    roles = [(file.role, file.name) for file in said.files if file.role in ("image", "picture_mask")]
    assert roles == [
        ("image", "half.png"), ("picture_mask", "half.png"), ("image", "white.png"),
        ("image", "picture.png"), ("picture_mask", "moving.gif"),
    ]  # fmt: skip
    assert said.settings["image_frames"] == ["all", "1-2", "all"]
    assert said.settings["image_places"] == ["mask", "all", "mask"]
    assert said.settings["image_steps"] == ["all", "all", "0..1"]
    checkpoint = f"--checkpoint={small_checkpoint}"
    status, _, err = call("repeat", "out", "--out", "again", checkpoint)
    assert status == 0, err
    assert frames(tmp_path / "again") == frames(tmp_path / "out")
    assert receipt.read(tmp_path / "again").files == said.files
    moved = ("--image", "half.png:0.5", "--image", "white.png@1-2", *OF_PICTURES[2:4], *OF_PICTURES[6:])
    assert run("generate", "--prompt", PROMPT, *moved, "--steps", 2, "--out", "moved")[0] == 0
    assert "image places" in call("compare", "out", "moved")[1]
    text = (tmp_path / "out" / "receipt.json").read_text("utf-8")
    (tmp_path / "out" / "receipt.json").write_text(text.replace('"0..1"', '""'), "utf-8")
    status, _, err = call("repeat", "out", "--out", "third", checkpoint)
    assert status == 2 and "damaged at image steps" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--picture-mask", "half.png", "--image", "white.png"),
            "--picture-mask belongs to the --image before",
        ),
        (("--picture-steps", "1..0"), "--picture-steps belongs to the --image before it; give that first"),
        (("--image", "half.png", *("--picture-steps", "1..0") * 2), "--picture-steps is given twice"),
        (("--image", "half.png", "--picture-steps", "a lot"), "--picture-steps: 'a lot' is no curve"),
        (("--image", "half.png", "--picture-steps=-1..0"), "at least 0, got -1"),
        (("--image", "half.png", "--picture-mask", "gone.png"), "gone.png"),
        (("--image", "half.png", "--picture-mask", "moving.mp4", "--frames", 5), "each of 5 frames, got 3"),
        (("--image", "half.png", "--picture-mask", "out.mp4"), "out.mp4"),
    ],
)
def test_what_does_not_go_with_a_picture_is_refused(run, tmp_path, words, said):
    Image.new("L", (7, 5), 255).save(tmp_path / "out.mp4", "PNG")
    before = (tmp_path / "out.mp4").read_bytes()
    status, _, err = run("generate", "--prompt", PROMPT, *words, "--out", "out.mp4")
    assert status == 2 and said in err and len(err.splitlines()) == 1
    assert (tmp_path / "out.mp4").read_bytes() == before


def test_one_picture_of_weight_1_is_that_picture_alone(run, tmp_path):
    plain, weighed = made(run, tmp_path, "a"), ("--prompt", PROMPT, "--image", "picture.png:1", "--steps", 1)
    assert run("generate", *weighed, "--out", "b")[0] == 0
    assert torch.equal(video.read_image(tmp_path / "b" / "frame_0003.png"), plain)
    assert receipt.read(tmp_path / "b").text() == receipt.read(tmp_path / "a").text()


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("picture.png:-1", "weight must be a finite number of at least 0, got -1"),
        ("picture.png@2-1", "from 0 on, got 2 and 1"),
        ("picture.png@1-3", "for frame 3, and the clip ends with 2"),
        ("picture.png@x", "picture.png@x"),
        ("gone.png:0.5", "gone.png"),
    ],
)
def test_a_picture_that_cannot_be_is_refused(run, image, said):
    status, _, err = run("generate", "--image", "half.png", "--image", image, "--out", "out.mp4")
    assert status == 2 and said in err and len(err.splitlines()) == 1


def test_a_name_may_hold_a_colon_and_an_at(run, tmp_path):
    (tmp_path / "picture.png").rename(tmp_path / "a:2@1")
    assert run("generate", "--image", "a:2@1", "--steps", 1, "--out", "out")[0] == 0
    assert [f.name for f in receipt.read(tmp_path / "out").files if f.role == "image"] == ["a:2@1"]
