import numpy as np
import pytest
import torch
from PIL import Image

from univid import sheet, video
from univid.files import encode


def moving_square(frames, height, width):
    """A light square that moves right over a dark ramp, frame by frame brighter."""
    pixels = np.zeros((frames, height, width, 3), np.uint8)
    pixels[..., 2] = np.linspace(20, 60, width).astype(np.uint8)
    for k in range(frames):
        left = round(k * width / 2 / max(frames - 1, 1))
        pixels[k, height // 4 : height // 4 * 3, left : left + max(width // 3, 1)] = 120 + 8 * k
    return video.from_uint8(pixels)


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".MP4"])
@pytest.mark.parametrize(
    ("frames", "height", "width", "fps"),
    [(12, 64, 64, 8), (5, 45, 81, 29.97), (3, 40, 72, 12.5), (1, 64, 64, 8)],
)
def test_what_is_written_is_read_back(tmp_path, suffix, frames, height, width, fps):
    clip = moving_square(frames, height, width)
    path = tmp_path / "new" / "folder" / f"clip{suffix}"
    video.write_video(clip, path, fps)
    back, rate = video.read_video(path)
    assert back.shape == clip.shape
    if suffix != ".gif":
        assert rate == pytest.approx(fps, rel=1e-3)
    elif frames > 1:  # hundredths of a second
        assert rate == pytest.approx(fps, rel=0.02)
    assert (back - clip).abs().mean() < 4 / 127.5
    if frames > 1:  # negative control: the frames are in order
        assert (back.flip(2) - clip).abs().mean() > 2 * (back - clip).abs().mean()
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(("height", "width", "pixels"), [(64, 64, "yuv420p"), (45, 81, "yuv444p")])
def test_mp4_is_what_players_show(tmp_path, height, width, pixels):
    import av

    video.write_video(moving_square(3, height, width), tmp_path / "clip.mp4", 8)
    with av.open(str(tmp_path / "clip.mp4")) as file:
        stream = file.streams.video[0]
        assert (stream.codec.name, stream.pix_fmt) == ("h264", pixels)
        assert (stream.height, stream.width, stream.frames) == (height, width, 3)


def test_frames_in_a_folder_are_exact(tmp_path):
    clip = moving_square(11, 16, 24)
    (tmp_path / "frames").mkdir()
    for folder in ("frames", "a/new/one"):
        video.write_video(clip, tmp_path / folder, 8)
        names = sorted(p.name for p in (tmp_path / folder).iterdir())
        assert names == [f"frame_{k:04d}.png" for k in range(1, 12)]
        back = torch.stack([video.read_image(tmp_path / folder / name) for name in names], 2)
        assert torch.equal(back, clip)


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "frame_0001.png").write_text("precious")
    with pytest.raises(ValueError, match="already holds files"):
        video.write_video(moving_square(2, 8, 8), tmp_path / "mine", 8)
    assert [p.read_text() for p in (tmp_path / "mine").iterdir()] == ["precious"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("name", ["clip.mp4", "frames"])
def test_a_write_that_fails_leaves_nothing_and_keeps_the_old_file(tmp_path, monkeypatch, error, name):
    kept = tmp_path / "clip.mp4"
    kept.write_text("old")

    def fail(path, *_, **__):
        path.write_text("half")
        raise error

    monkeypatch.setattr(encode, "encode_video", lambda frames, *rest: fail(*rest))
    monkeypatch.setattr(encode.iio, "imwrite", fail)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else ValueError):
        video.write_video(moving_square(2, 8, 8), tmp_path / name, 8)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"clip.mp4": "old"}


@pytest.mark.parametrize(
    ("name", "fps", "words"),
    [
        ("clip.avi", 8, ".mp4, .webm, .gif"),
        ("clip.mp4", 0, "fps"),
        ("clip.mp4", float("nan"), "fps"),
        ("clip.mp4", float("inf"), "fps"),
        ("clip.gif", 60, "fps must be from 0.01 to 50"),
        ("folder.mp4", 8, "is a folder"),
        ("file/clip.mp4", 8, "Not a directory"),
        ("file", 8, "is a file"),
    ],
)
def test_outputs_that_cannot_be(tmp_path, name, fps, words):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ValueError, match=words):
        video.check_output(tmp_path / name, fps)
    with pytest.raises(ValueError, match=words):
        video.write_video(moving_square(2, 8, 8), tmp_path / name, fps)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.mp4"]


def test_a_batch_is_not_a_clip():
    with pytest.raises(ValueError, match="one by one"):
        video.to_uint8(torch.zeros(2, 3, 1, 8, 8))


RED, HALF_RED = (1.0, -1.0, -1.0), (1.0, 0.0, 0.0)


def as_cmyk(path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(path, quality=95)


def as_rgba(path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(path)


def as_palette(path):
    Image.new("RGB", (8, 8), "red").convert("P", palette=Image.Palette.ADAPTIVE).save(path)


def as_transparent_palette(path):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([0, 0, 255])
    image.save(path, transparency=0)


def as_grey(path):
    Image.new("L", (8, 8), 51).save(path)


def as_16_bit(path):
    Image.fromarray(np.full((8, 8), 51 * 257, np.uint16)).save(path)


def as_black_and_white(path):
    Image.new("1", (8, 8), 1).save(path)


def as_grey_with_alpha(path):
    Image.new("LA", (8, 8), (0, 0)).save(path)


@pytest.mark.parametrize(
    ("make", "suffix", "colour"),
    [
        (as_cmyk, ".jpg", RED),
        (as_rgba, ".png", HALF_RED),
        (as_palette, ".png", RED),
        (as_transparent_palette, ".png", (1.0, 1.0, 1.0)),
        (as_grey, ".png", (-0.6, -0.6, -0.6)),
        (as_16_bit, ".png", (-0.6, -0.6, -0.6)),
        (as_black_and_white, ".png", (1.0, 1.0, 1.0)),
        (as_grey_with_alpha, ".png", (1.0, 1.0, 1.0)),
    ],
)
def test_every_kind_of_picture(tmp_path, make, suffix, colour):
    make(tmp_path / f"picture{suffix}")
    image = video.read_image(tmp_path / f"picture{suffix}")
    assert image.shape == (1, 3, 8, 8)
    assert torch.allclose(image, torch.tensor(colour).view(1, 3, 1, 1).expand_as(image), atol=0.02)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 10_000), (200, 10_000)])
def test_pictures_of_unusual_size(tmp_path, height, width, recwarn, monkeypatch):
    Image.new("1", (width, height), 1).save(tmp_path / "picture.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_500_000)  # the last is in the range of Pillow's warning
    assert video.read_image(tmp_path / "picture.png").shape == (1, 3, height, width)
    assert not recwarn.list


def test_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (16, 8), "black")
    image.paste("white", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(tmp_path / "picture.jpg", exif=exif)
    upright = video.read_image(tmp_path / "picture.jpg")
    assert upright.shape == (1, 3, 16, 8)
    assert upright[..., :7, :].mean() > 0.9 and upright[..., 9:, :].mean() < -0.9


@pytest.mark.parametrize("content", [b"", b"just words", b"\x89PNG\r\n\x1a\n broken"])
def test_files_that_are_no_pictures_and_no_videos(tmp_path, content):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        video.read_image(path)
    with pytest.raises(ValueError, match="cannot be read as a video"):
        video.read_video(path)


def test_truncated_missing_and_folder(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:1500])
    for name in ("cut.png", "absent.png", "."):
        with pytest.raises(ValueError) as caught:
            video.read_image(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="does not exist"):
        video.read_video(tmp_path / "absent.mp4")


def test_reading_stops_at_the_frames_asked_for(tmp_path):
    video.write_video(moving_square(9, 16, 16), tmp_path / "clip.mp4", 8)
    assert video.read_video(tmp_path / "clip.mp4", frames=4)[0].shape[2] == 4
    assert video.read_video(tmp_path / "clip.mp4", frames=40)[0].shape[2] == 9


def test_fit_crops_at_the_centre():
    clip = torch.full((1, 3, 2, 20, 60), -1.0)
    clip[..., 20:40] = 1.0  # the square in the middle
    assert torch.allclose(video.fit(clip, 8, 8), torch.ones(1, 3, 2, 8, 8), atol=1e-5)
    assert video.fit(clip, 40, 120).shape == (1, 3, 2, 40, 120)
    assert video.fit(clip, 16, 64).shape == (1, 3, 2, 16, 64)


def solid(*colours, size=16):
    pixels = np.array(colours, np.uint8)[:, None, None].repeat(size, 1).repeat(size, 2)
    return video.from_uint8(pixels)


def centres(page, colours):
    """Mean position (y, x) of every colour, which has to be there."""
    pixels = np.asarray(page).astype(int)
    found = [np.argwhere((pixels == colour).all(-1)) for colour in colours]
    assert all(len(positions) > 1000 for positions in found)
    return np.array([positions.mean(0) for positions in found])


def test_contact_sheet_shows_every_frame_in_reading_order_and_the_picture_first():
    colours = [(10 * k, 200 - 10 * k, 77) for k in range(12)]
    reference = solid((1, 2, 250))[:, :, 0]
    page = sheet.contact_sheet(solid(*colours), title="words", columns=4, reference=reference)
    positions = centres(page, colours).reshape(3, 4, 2)
    assert (np.diff(positions[..., 0], axis=0) > 100).all() and (
        np.diff(positions[..., 1], axis=1) > 100
    ).all()
    picture = centres(page, [(1, 2, 250)])[0]
    assert picture[1] < positions[..., 1].min() - 100 and picture[0] == positions[0, 0, 0]


def test_labels_and_title_are_drawn():
    clip = solid((0, 0, 0), (9, 9, 9))
    pages = [
        sheet.contact_sheet(clip, title="one", labels=["a", "b"]),
        sheet.contact_sheet(clip, title="one", labels=["a", "c"]),
        sheet.contact_sheet(clip, title="two", labels=["a", "b"]),
    ]
    assert len({page.tobytes() for page in pages}) == 3


@pytest.mark.parametrize("title", ["", "many words " * 300, "x" * 500, "一个红色的圆"])
def test_a_title_does_not_widen_the_sheet(title):
    clip = solid(*[(k, k, k) for k in range(8)])
    assert sheet.contact_sheet(clip, title=title).width == sheet.contact_sheet(clip, title="words").width


def test_big_frames_are_shrunk_and_many_frames_fit():
    assert sheet.contact_sheet(torch.zeros(1, 3, 1, 320, 576), title="").width < 400
    assert sheet.contact_sheet(torch.zeros(1, 3, 100, 8, 8), title="").width < 2000


def test_sweep_sheet_has_a_row_for_each_text_weight(tmp_path):
    colours = [[(60 * row, 50 * column, 99) for column in range(4)] for row in range(3)]
    page = sheet.sweep_sheet(
        [[solid(colour, colour) for colour in row] for row in colours],
        title="words",
        row_labels=["0", "0.5", "1"],
        column_labels=["0", "0.3", "0.6", "1"],
        reference=solid((1, 2, 250))[:, :, 0],
    )
    positions = centres(page, [colour for row in colours for colour in row]).reshape(3, 4, 2)
    assert (np.diff(positions[..., 0], axis=0) > 50).all() and (np.diff(positions[..., 1], axis=1) > 50).all()
    centres(page, [(1, 2, 250)])
    sheet.save_sheet(page, tmp_path / "new" / "sweep.png")
    assert Image.open(tmp_path / "new" / "sweep.png").size == page.size
