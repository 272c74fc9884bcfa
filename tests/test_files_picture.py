"""The door for pictures: what is opened, what is refused, and how much memory either takes."""

import io
import os
import re
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from clip_files import clip, peak_memory
from PIL import Image, PngImagePlugin, features

from univid.files.media import Unreadable
from univid.files.picture import FORMATS, MAX_PIXELS, picture_size, read_picture
from univid.video import read_image

MODERN = ("AVIF",) if features.check("avif") else ()
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}
TURNS = {
    1: lambda p: p, 2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1), 6: lambda p: np.rot90(p, -1), 7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
    8: np.rot90,
}  # fmt: skip


def quadrants(height=48, width=80):
    """No turn or mirror image of it looks like it."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = 250, 10, 10
    pixels[: height // 2, width // 2 :] = 10, 250, 10
    pixels[height // 2 :, : width // 2] = 10, 10, 250
    return pixels


def saved(pixels, form="PNG", **options):
    file = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, form, **options)
    return file.getvalue()


def chunk(kind, data, checksum=None):
    checksum = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def with_chunk(png, *chunks, before=b"IDAT"):
    at = png.index(before) - 4
    return png[:at] + b"".join(chunks) + png[at:]


def black_png(width, height):
    """A black picture of 1 bit a pixel, whatever its size a file of a few KB."""
    row, packer, body = bytes(1 + (width + 7) // 8), zlib.compressobj(9), b""
    for _ in range(height):
        body += packer.compress(row)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", body + packer.flush()) + chunk(b"IEND", b"")


def tiny_gif(width, height):
    """A GIF of 40 bytes that claims this size."""
    screen = struct.pack("<HH", width, height) + b"\x80\0\0" + bytes(6)
    return b"GIF89a" + screen + b"," + struct.pack("<HHHH", 0, 0, 1, 1) + b"\0\x02\x02\x4c\x01\0;"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", *MODERN])
@pytest.mark.parametrize("orientation", TURNS)
def test_every_format_is_turned_upright(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    media = saved(quadrants(), form, exif=exif, **LOSSLESS.get(form, {"quality": 95}))
    upright = TURNS[orientation](quadrants())
    assert picture_size(media) == upright.shape[:2]
    got = read_picture(media)
    assert got.shape == upright.shape
    assert np.abs(got.astype(int) - upright).mean() < (1 if form in LOSSLESS else 8)


@pytest.mark.parametrize("where", ["XML:com.adobe.xmp", "Raw profile type exif"])
def test_a_turn_that_stands_in_a_text_counts(where):
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    if where.startswith("XML"):
        text.add_itxt(where, '<x tiff:Orientation="6"/>')
    else:
        data = exif.tobytes()
        text.add_text(where, f"\nexif\n{len(data):8}\n{data.hex()}\n", zip=True)
    media = saved(quadrants(), pnginfo=text)
    assert np.array_equal(read_picture(media), TURNS[6](quadrants()))
    assert picture_size(media) == (80, 48)


def beside_the_pixels():
    plain, text = saved(quadrants()), b"workflow\0" + b"x" * 3_000_000
    zipped = b"workflow\0\0" + zlib.compress(bytes(200_000_000))
    yield "profile", saved(quadrants(), icc_profile=bytes(2_500_000))
    yield "a profile that is none", with_chunk(plain, chunk(b"iCCP", b"name\0\0damaged"))
    yield "text", with_chunk(plain, chunk(b"tEXt", text))
    yield "text behind the pixels", with_chunk(plain, chunk(b"tEXt", text), before=b"IEND")
    yield "text that unpacks to 200 MB", with_chunk(plain, chunk(b"zTXt", zipped))
    yield "the same behind the pixels", with_chunk(plain, chunk(b"zTXt", zipped), before=b"IEND")
    yield "many texts", with_chunk(plain, *[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(900_000)))] * 90)
    yield "a damaged text", with_chunk(plain, chunk(b"tEXt", b"a\0b", checksum=1))
    yield "damaged EXIF", with_chunk(plain, chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff"))
    yield "a frame of an animation", with_chunk(plain, chunk(b"acTL", b"\0"))
    yield "no physical size", with_chunk(plain, chunk(b"pHYs", b""))


@pytest.mark.parametrize("name", [name for name, _ in beside_the_pixels()])
def test_what_is_beside_the_pixels_does_not_matter(name):
    assert np.array_equal(read_picture(dict(beside_the_pixels())[name]), quadrants())


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "TIFF", *MODERN])
def test_large_profiles_of_other_formats_do_not_matter(form):
    with_profile = saved(quadrants(), form, icc_profile=bytes(2_500_000), **LOSSLESS.get(form, {}))
    assert np.array_equal(
        read_picture(with_profile), read_picture(saved(quadrants(), form, **LOSSLESS.get(form, {})))
    )


def test_a_damaged_exif_is_no_turn():
    media = saved(quadrants(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff", quality=95)
    assert read_picture(media).shape == (48, 80, 3) and picture_size(media) == (48, 80)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF", *MODERN])
def test_of_an_animation_the_first_frame_is_shown(form):
    frames = [Image.fromarray(np.full((40, 40, 3), level, np.uint8)) for level in (200, 20)]
    media = saved(frames[0], form, save_all=True, append_images=frames[1:])
    assert np.abs(read_picture(media).astype(int) - 200).max() < 3


def test_transparency_is_put_on_white():
    """Alpha, grey with alpha, a transparent colour of a palette, of grey, and of RGB."""
    clear = np.zeros((8, 8, 4), np.uint8)
    clear[:, 4:] = 10, 20, 30, 255
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 255, 10, 20, 30])
    palette.paste(1, (4, 0, 8, 8))
    for media in (
        saved(clear),
        saved(clear, "WEBP", lossless=True),
        saved(clear, "TIFF"),
        saved(palette, transparency=0),
        saved(palette, transparency=bytes([0, 255])),
        saved(palette, "GIF", transparency=0),
        saved(Image.fromarray(clear[..., :3]), transparency=(0, 0, 0)),
    ):
        got = read_picture(media)
        assert (got[:, :4] == 255).all() and (got[:, 4:] == (10, 20, 30)).all()
    assert (read_picture(saved(np.full((4, 4, 4), (0, 0, 0, 128), np.uint8))) == 127).all()
    grey = read_picture(saved(Image.fromarray(np.full((4, 4), 51, np.uint8)), transparency=51))
    assert (grey == 255).all()


def test_sixteen_bits_are_scaled():
    levels = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    for media in (saved(levels), saved(levels, "TIFF"), saved(levels.astype(np.int32), "TIFF")):
        assert np.array_equal(read_picture(media), (levels // 257).astype(np.uint8)[..., None].repeat(3, 2))
    between = np.uint16([[128, 129, 257 * 7 - 129, 257 * 7 - 128]])  # rounded to the nearer
    assert read_picture(saved(between))[0, :, 0].tolist() == [0, 1, 6, 7]


def test_colours_that_have_no_rgb_are_named():
    floats = saved(np.full((8, 8), 0.5, np.float32), "TIFF")
    with pytest.raises(Unreadable, match="^its colours are of the kind F, not RGB"):
        read_picture(floats)
    with pytest.raises(Unreadable, match="kind LAB"):
        read_picture(saved(Image.new("LAB", (8, 8)), "TIFF"))


@pytest.mark.parametrize("form", ["EPS", "PDF", "DDS", "SPIDER", "ICO", "ICNS", "TGA", "PCX", "IM", "SGI"])
def test_other_formats_are_not_tried(form):
    image = Image.new("F" if form == "SPIDER" else "RGB", (64, 64))
    with pytest.raises(Unreadable, match="^it is of no known format$"):
        read_picture(saved(image, form))


def test_postscript_starts_no_program(tmp_path, monkeypatch):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    binary = struct.pack("<IIIIIII", 0xC6D3D0C5, 30, 99, 0, 0, 0, 0) + b"\xff\xff"
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"
    for media in (text, binary + text, b"\n" + text):
        with pytest.raises(Unreadable, match="no known format"):
            read_picture(media)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "media",
    [
        black_png(13_000, 6_000), black_png(1, 70_000), tiny_gif(13_000, 13_000), tiny_gif(65_535, 1025),
        black_png(70_000, 1),
    ],
)  # fmt: skip
def test_what_is_too_large_is_refused_before_it_is_decoded(media, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("it was decoded"))
    assert len(media) < 100_000
    for use in (read_picture, picture_size):
        with pytest.raises(Unreadable, match=r"^\d+ x \d+ is more than (67 megapixels|65536 pixels a side)$"):
            use(media)


def test_a_header_of_pillows_own_limits_is_no_warning(recwarn):
    for side in (11_000, 60_000):  # from 89 megapixels on Pillow warns, from 179 on it refuses
        with pytest.raises(Unreadable, match="more than 67 megapixels"):
            picture_size(tiny_gif(side, side))
    assert not recwarn.list


def test_large_pictures_are_shrunk_for_the_library(tmp_path):
    pixels = np.zeros((4200, 4200, 3), np.uint8)
    pixels[:2100, :2100] = 250, 10, 10
    Image.fromarray(pixels).save(tmp_path / "large.png")
    image = read_image(tmp_path / "large.png")
    assert image.shape == (1, 3, 2100, 2100)  # 4200 x 4200 is more than 2^24
    assert image[0, 0, :1050, :1050].min() > 0.95 and image[0, 0, 1050:].max() < -0.99
    assert read_picture(tmp_path / "large.png").shape == pixels.shape


@pytest.mark.slow
@pytest.mark.parametrize("form", [form for form in FORMATS if form != "PPM"])
def test_the_largest_picture_takes_a_bounded_memory(tmp_path, form):
    """8192 x 8192 with opacity where there is such: below 2 GB with PyTorch, of which that takes 0.5."""
    if form == "AVIF" and not MODERN:
        pytest.skip("Pillow was built without AVIF")
    make = """
import sys, numpy as np
from PIL import Image
path, form = sys.argv[1:]
ramp = Image.linear_gradient("L").resize((8192, 8192))
image = Image.merge("RGB", [ramp] * 3) if form in ("JPEG", "BMP") else Image.merge("RGBA", [ramp] * 4)
fast = {"PNG": {"compress_level": 1}, "WEBP": {"method": 0, "lossless": True}, "AVIF": {"speed": 10}}
image.save(path, form, **fast.get(form, {}))
"""
    path = tmp_path / "picture"
    subprocess.run([sys.executable, "-c", make, path, form], check=True)
    read = "import sys; from univid.video import read_image; print(read_image(sys.argv[1]).shape)"
    seen, peak = peak_memory(read, path)
    assert "[1, 3, 4096, 4096]" in seen
    assert peak < 2.0


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    (tmp_path / "picture.png").write_bytes(saved(quadrants()))
    (tmp_path / "link.png").symlink_to("picture.png")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link_to_pipe").symlink_to("pipe")
    assert read_picture(tmp_path / "link.png").shape == (48, 80, 3)
    for name, reason in {
        "pipe": "it is a pipe or device, not a file",
        "link_to_pipe": "it is a pipe or device, not a file",
        "/dev/zero": "it is a pipe or device, not a file",
        ".": "it is a folder, not a file",
        "absent.png": "it does not exist",
        "picture.png/x": "it does not exist",
        "empty": "it is empty",
        "loop": "the system does not open it",
        "x" * 300: "the system does not open it",
        "nul\0": "no file can have this name",
    }.items():
        with pytest.raises(Unreadable, match=f"^{reason}"):
            read_picture(tmp_path / name)
        with pytest.raises(ValueError, match=f"cannot be read as a picture: {reason}.*; give a PNG"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("form", FORMATS)
def test_every_damage_is_one_sentence(form):
    """Cut at every length, and with every byte of the header at its highest."""
    if form == "AVIF" and not MODERN:
        pytest.skip("Pillow was built without AVIF")
    media, reasons = saved(quadrants(), form), set()
    hurt = [media[:size] for size in range(1, len(media), max(1, len(media) // 60))]
    hurt += [media[:at] + b"\xff" + media[at + 1 :] for at in range(min(120, len(media)))]
    for damaged in hurt:
        try:
            read_picture(damaged)
        except Unreadable as error:
            reasons.add(str(error))
    known = (
        r"it is damaged or cut short|it is of no known format|\d+ x \d+ is more than .*|its colours are .*"
    )
    assert reasons and all(re.fullmatch(known, reason) for reason in reasons)


def test_a_video_is_no_picture():
    with pytest.raises(Unreadable, match="no known format"):
        read_picture(clip())
    assert MAX_PIXELS == 8192**2
