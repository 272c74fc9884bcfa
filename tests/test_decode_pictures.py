import io
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_files import clip, damaged, numbered, numbers
from PIL import Image

from training.data.decode import decode_clip, decode_image, media_size
from training.data.samples import BadSample
from univid.files import frames, video


def picture(pixels, form="PNG", **options):
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, form, **options)
    return file.getvalue()


def photo(height=40, width=60):
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.uint8(np.stack([255 * rows, 255 * columns, 120 + 100 * np.sin(9 * rows * columns)], -1))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "BMP", "PPM"])
def test_pictures_are_decoded_exactly(tmp_path, form):
    media = picture(photo(), form, **({"lossless": True} if form == "WEBP" else {}))
    (tmp_path / "picture").write_bytes(media)
    for given in (media, tmp_path / "picture"):
        got = decode_image(given)
        assert got.dtype == torch.uint8 and np.array_equal(got, photo()[None])
        assert media_size(given) == (40, 60)


UPRIGHT = {
    1: lambda p: p, 2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1), 6: lambda p: np.rot90(p, -1), 7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
    8: np.rot90,
}  # fmt: skip


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_pictures_are_turned_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    media = picture(photo(), exif=exif)
    truth = UPRIGHT[orientation](photo())
    assert np.array_equal(decode_image(media)[0], truth)
    assert media_size(media) == truth.shape[:2]
    for other in set(UPRIGHT) - {orientation}:  # negative control
        assert not np.array_equal(truth, UPRIGHT[other](photo()))


def test_modes_of_pictures():
    ramp = np.uint8(np.linspace(0, 255, 60)[None].repeat(40, 0))
    grey = torch.from_numpy(ramp)[None, ..., None].expand(1, 40, 60, 3)
    assert torch.equal(decode_image(picture(ramp)), grey)
    assert torch.equal(decode_image(picture(ramp.astype(np.uint16) * 257)), grey)  # 16 bits
    assert torch.equal(decode_image(picture(Image.fromarray(ramp).convert("P"))), grey)
    assert decode_image(picture(Image.fromarray(ramp > 99))).unique().tolist() == [0, 255]
    cmyk = decode_image(picture(Image.fromarray(photo()).convert("CMYK"), "JPEG", quality=95))
    assert (cmyk[0].int() - torch.from_numpy(photo()).int()).abs().float().mean() < 3
    layers = np.dstack([photo(), np.full((40, 60), 0, np.uint8)])
    layers[:, :30, 3] = 255
    seen = decode_image(picture(layers))[0]
    assert np.array_equal(seen[:, :30], photo()[:, :30]) and (seen[:, 30:] == 255).all()  # on white
    half = decode_image(picture(np.full((2, 2, 4), (0, 0, 0, 128), np.uint8)))
    assert (half == 127).all()
    animation = [Image.fromarray(numbered(k)) for k in (5, 6)]
    assert numbers(
        decode_image(picture(animation[0], "GIF", save_all=True, append_images=animation[1:]))
    ) == [5]


def test_a_large_jpeg_is_decoded_no_larger_than_needed():
    exif = Image.Exif()
    exif[0x0112] = 6
    media = picture(photo(2000, 1200), "JPEG", exif=exif, quality=95)
    whole = decode_image(media)
    assert whole.shape == (1, 1200, 2000, 3)
    for cover, size in {
        (150, 250): (300, 500),
        (151, 64): (600, 1000),
        (64, 64): (150, 250),
        (700, 9): (1200, 2000),
    }.items():
        small = decode_image(media, cover=cover)
        assert small.shape[1:3] == size
        truth = Image.fromarray(whole[0].numpy()).resize(size[::-1], Image.Resampling.BOX)
        assert (small[0].int() - torch.from_numpy(np.array(truth)).int()).abs().float().mean() < 1.5


def test_a_huge_picture_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("it was decoded"))
    for side in (9000, 60000):
        size = f"{side} x {side} is more than 67 megapixels"
        # a bitmap is its header and rows; here the rows are missing
        header = b"BM" + bytes(8) + (54).to_bytes(4, "little") + (40).to_bytes(4, "little")
        header += (
            side.to_bytes(4, "little") * 2
            + (1).to_bytes(2, "little")
            + (24).to_bytes(2, "little")
            + bytes(24)
        )
        for use in (decode_image, media_size):
            with pytest.raises(BadSample, match=size):
                use(header)


def test_a_huge_clip_is_refused_before_it_is_decoded(monkeypatch):
    media = clip()
    for module in (frames, video):
        monkeypatch.setattr(module, "MAX_PIXELS", 32 * 128 - 1)
    for use in (lambda: decode_clip(media, frames=1, fps=8), lambda: media_size(media)):
        with pytest.raises(BadSample, match="^128 x 32 is more than"):
            use()


@pytest.mark.parametrize(
    "media", [b"", b"GIF89a", b"no picture", picture(photo())[:500], clip(), Path("nowhere.png")]
)
def test_what_is_no_picture_is_a_bad_sample(media):
    with pytest.raises(BadSample) as caught:
        decode_image(media)
    assert 0 < len(str(caught.value)) < 160


def test_sizes_come_from_the_first_bytes_of_pictures():
    media = picture(np.random.default_rng(0).integers(0, 255, (300, 200, 3), np.uint8), "JPEG")
    assert media_size(media[:2000]) == (300, 200)
    with pytest.raises(BadSample):
        decode_image(media[:2000])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_pictures_are_pixels_or_bad_samples(form):
    exif = Image.Exif()
    exif[0x0112] = 6
    media = picture(photo(), form, **({"exif": exif} if form in ("JPEG", "PNG", "WEBP", "TIFF") else {}))
    chance, outcomes = random.Random(2), []
    for _ in range(150):
        hurt = damaged(media, chance)
        for use in (decode_image, media_size, lambda hurt: decode_image(hurt, cover=(8, 8))):
            try:
                use(hurt)
                outcomes.append(True)
            except BadSample:
                outcomes.append(False)
    assert {True, False} == set(outcomes)
