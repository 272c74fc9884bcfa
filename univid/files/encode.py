"""The door by which frames, uint8 `[t h w 3]`, leave: what encodes them is imported with this file.

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

from .frames import tag, to_yuv

# suffix: (container, encoder, options). A constant rate factor of 10 is visually lossless.
ENCODERS = {
    ".mp4": ("mp4", "libx264", {"crf": "10", "preset": "slow"}),
    ".webm": ("webm", "libvpx-vp9", {"crf": "10", "b": "0", "cpu-used": "4"}),
    ".gif": ("gif", "gif", {}),
}
Refused = av.FFmpegError  # by an encoder, which says why in its `strerror`


def encode_pictures(frames: np.ndarray, folder: Path) -> None:
    """Write frame_0001.png and so on."""
    digits = max(4, len(str(len(frames))))
    for number, frame in enumerate(frames, start=1):
        iio.imwrite(folder / f"frame_{number:0{digits}d}.png", frame, plugin="pillow")


def encode_video(frames: np.ndarray, path: Path, suffix: str, fps: float) -> None:
    """Write a video of the kind that `suffix` names, whatever the path's own.

    Raises:
        Refused: the encoder takes no such frames.
    """
    container, codec, options = ENCODERS[suffix]
    height, width = frames.shape[1:3]
    # FFmpeg would take a name for an address; a file that is open has none.
    with open(path, "wb") as raw, av.open(raw, "w", format=container) as file:
        stream = file.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width = height, width
        if suffix == ".gif":
            stream.pix_fmt, pictures = "pal8", _palette_frames(frames)
        else:
            odd = suffix == ".mp4" and (height % 2 or width % 2)
            stream.pix_fmt = "yuv444p" if odd else "yuv420p"
            tag(stream.codec_context)
            pictures = (to_yuv(frame, stream.pix_fmt) for frame in frames)
        for picture in pictures:
            file.mux(stream.encode(picture))
        file.mux(stream.encode())


def _palette_frames(frames: np.ndarray) -> Iterator[av.VideoFrame]:
    """Frames in one palette of 256 colours, so that nothing flickers from frame to frame."""
    palette = Image.fromarray(rearrange(frames, "t h w c -> (t h) w c")).quantize(256)
    colours = np.frombuffer(bytes(palette.getpalette()), np.uint8).reshape(-1, 3)
    argb = np.zeros((256, 4), np.uint8)
    argb[:, 0] = 255
    argb[: len(colours), 1:] = colours
    for frame in frames:
        indices = np.asarray(Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE))
        yield av.VideoFrame.from_ndarray((indices, argb), format="pal8")
