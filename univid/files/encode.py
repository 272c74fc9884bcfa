"""The door by which frames leave: what encodes them is imported with this file.

They are uint8 `[t h w 3]`, an array or anything that gives parts of one by `[a:b]`, and are taken one by one.

imageio writes single pictures; videos are encoded by PyAV itself, because imageio's plugin has no way to set
an encoder's quality, and its default blurs videos as small as 64 x 64.
"""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import imageio.v3 as iio
import numpy as np
from einops import rearrange
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch.backends.cpu import get_cpu_capability

from ..windows import Frames
from .frames import tag, to_yuv

# x264's code for AVX-512 makes other bytes of the same frames now and then: of 2 clips in 100 where it was
# counted, by its "mbtree". That for AVX2, which such processors have too, makes the same ones each time.
STEADY = {"x264-params": "asm=avx2"} if get_cpu_capability().startswith("AVX512") else {}
# suffix: (container, encoder, options). A constant rate factor of 10 is visually lossless.
ENCODERS = {
    ".mp4": ("mp4", "libx264", {"crf": "10", "preset": "slow", **STEADY}),
    ".webm": ("webm", "libvpx-vp9", {"crf": "10", "b": "0", "cpu-used": "4"}),
    ".gif": ("gif", "gif", {}),
}
# WebM names its tracks at random, unless it is told to be the same for the same frames.
CONTAINER_OPTIONS = {".webm": {"fflags": "+bitexact"}}
NOTE = "Comment"  # of all names, the one that every container keeps
LOOP = b"\x21\xff\x0bNETSCAPE2.0"  # of a GIF: the block that browsers want first
PALETTE = 64  # frames at most that a palette is made of
Refused = av.FFmpegError  # by an encoder, which says why in its `strerror`


def one_by_one(frames: Frames) -> Iterator[np.ndarray]:
    """Frames `[h w 3]`."""
    return (frames[place : place + 1][0] for place in range(len(frames)))


def encode_picture(frame: np.ndarray, path: Path) -> None:
    """Write a frame `[h w 3]` as PNG, whatever the path's suffix."""
    iio.imwrite(path, frame, plugin="pillow", extension=".png")


def encode_page(page: Image.Image, path: Path, note: str | None) -> None:
    """Write a picture as PNG, with a note in ASCII."""
    texts = PngInfo()
    if note is not None:
        texts.add_text(NOTE, note)
    page.save(path, format="PNG", pnginfo=texts)


def read_own(path: Path) -> np.ndarray:
    """A frame `[h w 3]` that `encode_picture` wrote.

    Raises:
        OSError: it is damaged or missing.
    """
    with Image.open(path, formats=["PNG"]) as picture:
        return np.asarray(picture.convert("RGB"))


def encode_pictures(frames: Frames, folder: Path) -> None:
    """Write frame_0001.png and so on."""
    digits = max(4, len(str(len(frames))))
    for number, frame in enumerate(one_by_one(frames), start=1):
        encode_picture(frame, folder / f"frame_{number:0{digits}d}.png")


def encode_video(frames: Frames, path: Path, suffix: str, fps: float, note: str | None = None) -> None:
    """Write a video of the kind that `suffix` names, whatever the path's own; it is the same each time.

    note: a text in ASCII that the file carries.

    Raises:
        Refused: the encoder takes no such frames.
    """
    container, codec, options = ENCODERS[suffix]
    height, width = frames[0:1].shape[1:3]
    # FFmpeg would take a name for an address; a file that is open has none.
    told = CONTAINER_OPTIONS.get(suffix, {})
    with open(path, "wb") as raw, av.open(raw, "w", format=container, container_options=told) as file:
        if note is not None:
            file.metadata[NOTE.lower()] = note
        stream = file.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width = height, width
        if suffix == ".gif":
            stream.pix_fmt, pictures = "pal8", _palette_frames(frames)
        else:
            odd = suffix == ".mp4" and (height % 2 or width % 2)
            stream.pix_fmt = "yuv444p" if odd else "yuv420p"
            tag(stream.codec_context)
            pictures = (to_yuv(frame, stream.pix_fmt) for frame in one_by_one(frames))
        for picture in pictures:
            file.mux(stream.encode(picture))
        file.mux(stream.encode())
    if note is not None and suffix == ".gif":  # for which FFmpeg writes none
        _comment(path, note)


def _comment(path: Path, note: str) -> None:
    """Put a comment into a GIF, before its first picture."""
    gif, text = path.read_bytes(), note.encode("ascii")
    place = 13 + (3 * 2 ** (1 + (gif[10] & 7)) if gif[10] & 0x80 else 0)  # behind the size and the palette
    if gif.startswith(LOOP, place):
        place = gif.index(0, place + len(LOOP) + 4) + 1  # a block of one number, and the end of blocks
    parts = (text[start : start + 255] for start in range(0, len(text), 255))
    blocks = b"".join(bytes([len(part)]) + part for part in parts)
    path.write_bytes(gif[:place] + b"\x21\xfe" + blocks + b"\0" + gif[place:])


def _palette_frames(frames: Frames) -> Iterator[av.VideoFrame]:
    """Frames in one palette of 256 colours, so that nothing flickers from frame to frame."""
    shown = frames[:: -(-len(frames) // PALETTE)]
    palette = Image.fromarray(rearrange(shown, "t h w c -> (t h) w c")).quantize(256)
    colours = np.frombuffer(bytes(palette.getpalette()), np.uint8).reshape(-1, 3)
    argb = np.zeros((256, 4), np.uint8)
    argb[:, 0] = 255
    argb[: len(colours), 1:] = colours
    for frame in one_by_one(frames):
        indices = np.asarray(Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE))
        yield av.VideoFrame.from_ndarray((indices, argb), format="pal8")
