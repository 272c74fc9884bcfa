"""How frames of a video are shown: upright, with square pixels, on white, at the levels that players show."""

import io
import shutil
import subprocess
from fractions import Fraction

import av
import numpy as np
import pytest
from clip_files import clip, numbered, read, read_numbers, ticks, written
from PIL import Image

from univid.files.frames import SD_HEIGHT, rgb
from univid.files.video import open_clip
from univid.video import fit, from_uint8, read_video, write_video


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_frames_stand_upright(tmp_path, degrees):
    picture = np.zeros((48, 80, 3), np.uint8)
    picture[:20, :30] = 255, 0, 0
    media = clip(ticks(25, 3), frames=[picture] * 3, turn=(degrees,), crf="1")
    got, _ = read(tmp_path, media)
    upright = np.rot90(picture, degrees // 90)
    assert got[0].shape == upright.shape and np.abs(got[0].astype(int) - upright).mean() < 6
    fitted, _ = read(tmp_path, media, size=upright.shape[:2])
    assert np.abs(fitted.astype(int) - got).mean() < 1


@pytest.mark.parametrize(
    "aspect, shown", [(Fraction(2), (96, 144)), (Fraction(1, 2), (96, 36)), (None, (96, 72))]
)
def test_pixels_become_square(tmp_path, aspect, shown):
    media = clip(ticks(25, 3), frames=[np.full((96, 72, 3), 99, np.uint8)] * 3, aspect=aspect)
    assert read(tmp_path, media)[0].shape == (3, *shown, 3)


def test_transparency_is_put_on_white(tmp_path):
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[:, 8:] = 10, 20, 30, 255
    pixels[0, 0] = 0, 0, 0, 128
    for codec, form in (("png", "rgba"), ("qtrle", "argb")):
        file = io.BytesIO()
        with av.open(file, "w", format="mov") as out:
            stream = out.add_stream(codec, rate=25)
            stream.height, stream.width, stream.pix_fmt = 16, 16, form
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgba")))
            out.mux(stream.encode())
        got, _ = read(tmp_path, file.getvalue())
        assert (got[0, :, 8:] == (10, 20, 30)).all()
        assert (got[0, 1:, :8] == 255).all() and (got[0, 0, 0] == 127).all()


def test_frames_are_fitted_one_by_one(tmp_path):
    """To the same pixels as all at once, within what halving changes."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (8, 12, 3), np.uint8)).resize((480, 320), Image.BICUBIC)
    media = clip(ticks(25, 3), frames=[np.asarray(smooth)] * 3)
    whole = read_video(written(tmp_path, media))[0]
    for size in ((64, 64), (160, 240), (96, 40), (320, 480)):
        fitted = read_video(tmp_path / "clip", size=size)[0]
        assert fitted.shape == (1, 3, 3, *size)
        assert (fitted - fit(whole, *size)).abs().max() < 6 / 127.5


def test_frames_of_several_sizes(tmp_path):
    small = [numbered(k, 64, 64) for k in range(10)]
    media = clip(ticks(25, 10), container="h264") + clip(ticks(25, 10), container="h264", frames=small)
    with pytest.raises(ValueError, match="its frames have several sizes"):
        read(tmp_path, media)
    assert read(tmp_path, media, size=(32, 32))[0].shape == (20, 32, 32, 3)


# ---- at which levels

# FFmpeg's number of a matrix: the shares of red and blue in the brightness
MATRICES = {
    1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114),
    6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593),
}  # fmt: skip


def planes(colour, matrix, full, bits):
    """One pixel's Y, Cb and Cr, from the standards' formulas."""
    red, green, blue = (level / 255 for level in colour)
    of_red, of_blue = MATRICES[matrix]
    y = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    differences = ((blue - y) / (2 - 2 * of_blue), (red - y) / (2 - 2 * of_red))
    if full:
        return [round(y * (2**bits - 1)), *(round(c * (2**bits - 1) + 2 ** (bits - 1)) for c in differences)]
    step = 2 ** (bits - 8)
    return [round((219 * y + 16) * step), *(round((224 * c + 128) * step) for c in differences)]


def of_one_colour(colour, matrix, full, pixels, height=96, named=True):
    """A lossless file of one frame."""
    bits = 10 if "10" in pixels else 8
    kind = np.uint16 if bits > 8 else np.uint8
    frame = av.VideoFrame(64, height, pixels)
    for plane, level in zip(frame.planes, planes(colour, matrix, full, bits), strict=True):
        plane.update(np.full(plane.buffer_size // kind().itemsize, level, kind).tobytes())
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        stream = out.add_stream("libx264", rate=25, options={"qp": "0", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = height, 64, pixels
        if named:
            stream.codec_context.colorspace = matrix
        stream.codec_context.color_range = 2 if full else 1
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("full", [False, True])
def test_levels_are_those_of_the_standard_that_a_file_names(pixels, matrix, full):
    for colour in ((200, 30, 30), (10, 40, 230), (255, 255, 255), (0, 0, 0), (128, 128, 128)):
        with open_clip(of_one_colour(colour, matrix, full, pixels)) as opened:
            frame = next(opened.container.decode(opened.stream))
            got = rgb(frame, 1.0, None).reshape(-1, 3).astype(int)
            half = rgb(frame, 1.0, (16, 16)).reshape(-1, 3).astype(int)
        assert np.abs(got - colour).max() <= 2 and np.abs(got.mean(0) - colour).max() <= 1
        assert np.abs(half - colour).max() <= 2


@pytest.mark.parametrize("height", [96, 736])
def test_a_file_that_names_no_matrix_has_the_one_of_its_height(height):
    matrix = 1 if height > SD_HEIGHT else 6
    with open_clip(of_one_colour((200, 30, 30), matrix, False, "yuv420p", height, named=False)) as opened:
        got = rgb(next(opened.container.decode(opened.stream)), 1.0, None)
    assert np.abs(got.astype(int) - (200, 30, 30)).max() <= 2


@pytest.mark.parametrize("tag", range(18))
def test_no_tag_makes_a_file_unreadable(tmp_path, tag):
    """Also those that no standard knows: of HDR, of constant luminance, reserved ones."""
    source, file = io.BytesIO(clip(ticks(25, 5), container="h264")), io.BytesIO()
    filters = f"h264_metadata=matrix_coefficients={tag}:colour_primaries={tag}:transfer_characteristics={tag}"
    with av.open(source) as tape, av.open(file, "w", format="h264") as out:
        stream = out.add_stream_from_template(tape.streams.video[0])
        chain = av.bitstream.BitStreamFilterContext(filters, tape.streams.video[0])
        for packet in [packet for p in tape.demux(video=0) if p.size for packet in chain.filter(p)]:
            packet.stream = stream
            out.mux(packet)
    assert read_numbers(tmp_path, file.getvalue())[0] == list(range(5))


def smooth_clip(height, width, frames=4):
    rows, columns = np.mgrid[0:height, 0:width]
    waves = (
        200 - 50 * np.sin(columns / 30),
        150 + 30 * np.cos(rows / 25),
        120 + 40 * np.sin((columns + rows) / 40),
    )
    picture = np.stack(waves, -1).round().astype(np.uint8)
    return from_uint8(np.stack([np.roll(picture, k, 1) for k in range(frames)]))


def drift(video, exact):
    """How much each colour changed on average, in levels of 255."""
    return ((video - exact) * 127.5).mean((0, 2, 3, 4)).abs().max().item()


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("height, width", [(128, 192), (97, 131), (592, 64)])
def test_what_we_write_is_read_at_the_same_levels(tmp_path, suffix, height, width):
    exact = smooth_clip(height, width)
    path = tmp_path / f"clip{suffix}"
    write_video(exact, path, 8)
    assert drift(read_video(path)[0], exact) < 0.3
    for _ in range(5):
        write_video(read_video(path)[0], path, 8)
    assert drift(read_video(path)[0], exact) < 1


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("height, matrix", [(576, 6), (592, 1)])
def test_what_we_write_names_its_levels(tmp_path, suffix, height, matrix):
    write_video(smooth_clip(height, 64, 2), tmp_path / f"clip{suffix}", 8)
    with av.open(str(tmp_path / f"clip{suffix}")) as file:
        frame = next(file.decode(video=0))
        assert (frame.colorspace, frame.color_range) == (matrix, 1)
        if suffix == ".mp4":
            codec = file.streams.video[0].codec_context
            assert (codec.color_primaries, codec.color_trc) == (1, 1)


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the program ffmpeg")
@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
@pytest.mark.parametrize("height", [128, 592])
def test_other_players_see_the_same_levels(tmp_path, suffix, height):
    """FFmpeg's own program, which reads the tags, at its exact settings."""
    exact = smooth_clip(height, 192)
    path = tmp_path / f"clip{suffix}"
    write_video(exact, path, 8)
    scale = "scale=flags=accurate_rnd+full_chroma_int+bilinear"
    to = ["-vf", scale, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.check_output(["ffmpeg", "-v", "error", "-i", path, *to])
    theirs = from_uint8(np.frombuffer(raw, np.uint8).reshape(-1, height, 192, 3))
    assert drift(theirs, exact) < (2 if suffix == ".gif" else 0.3)
    assert (theirs - read_video(path)[0]).abs().mean() * 127.5 < 0.5
