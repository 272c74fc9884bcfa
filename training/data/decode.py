"""Pictures and clips as frames: uint8 RGB `[t h w 3]`, upright, with square pixels.

Pillow reads pictures and PyAV reads clips. PyAV because ComfyUI needs it already, it brings its own FFmpeg,
and it shows the time of every packet, so that frames are chosen before one of them is decoded; torchcodec
would be one more binary to match with torch, and decord is no longer maintained.

All functions are pure: what is random is the caller's number. Each works in one thread: loaders have many
workers.
"""

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from training.data.clips import check_size, open_clip, open_media, reason, rgb
from training.data.samples import BadSample, Bucket
from univid.video import to_rgb

# What Pillow may open; EPS is not among them, because reading it runs a program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
ORIENTATION = 0x0112  # the EXIF tag; its upper half lets height and width change places
# What Pillow raises on damaged files; OSError is the parent of its UnidentifiedImageError.
PICTURE_ERRORS = (OSError, ValueError, TypeError, SyntaxError, struct.error, Image.DecompressionBombError)


def decode_image(media: bytes | Path, *, cover: Bucket | None = None) -> Tensor:
    """A picture as uint8 `[1 h w 3]`; of an animation the first frame.

    As in `univid.video.read_image`, the EXIF rotation is applied, transparency is put on white, and 16-bit
    grey is scaled to 8 bits. cover: the bucket (height, width) that the picture is for: a larger JPEG is
    decoded at 1/2, 1/4 or 1/8 of its size, which is still at least twice what the bucket needs.

    Raises:
        BadSample: no picture that Pillow reads, a damaged one, or one of more than MAX_PIXELS.
    """
    with _picture(media) as image:
        if cover:
            height, width = _upright(image)
            scale = 2 * max(cover[0] / height, cover[1] / width)
            if scale < 1:
                image.draft(None, tuple(int(scale * side) for side in image.size))
        pixels = np.array(to_rgb(ImageOps.exif_transpose(image)))
    return torch.from_numpy(pixels)[None]


def decode_clip(
    media: bytes | Path,
    *,
    frames: int,
    fps: float,
    start: float = 0.0,
    end: float | None = None,
    window: float = 0.0,
    cover: Bucket | None = None,
) -> Tensor:
    """Some frames of a clip as uint8 `[t h w 3]`, t = `frames`.

    Frame i is the one shown at the time begin + i / fps, whatever the file's own frame rate and however
    irregular it is. Time 0 is the first frame's. A frame counts if it appears in [start, end) seconds, end
    None = the clip's. window: 0 = begin as early as possible, 1 = as late as possible, in proportion between
    them.

    A clip too short for `frames` at `fps` is taken at the rate at which they just span it, provided that it
    has as many frames: it then plays slower than it was filmed. So a folder of short clips is usable, and no
    frame is invented; `available_frames` tells whom that would not suit.

    cover: the bucket (height, width) that the frames are for: larger frames are halved as often as leaves
    twice what the bucket needs, so that frames of 4K do not fill the memory.

    Interlaced frames stay so, and HDR keeps its flat look: neither is looked for.

    Raises:
        BadSample: no video, a damaged one, too few frames, frames of several sizes or of more than
        MAX_PIXELS.
    """
    if frames < 1 or not fps > 0 or not 0 <= window <= 1:
        raise ValueError(
            f"expected frames >= 1, fps above 0 and window in 0..1, got {frames}, {fps} and {window}."
        )
    with open_clip(media) as clip:
        timeline = clip.timeline(start, end)
        chosen = clip.frames_at(timeline, timeline.choose(frames, fps, window))
        pictures = [rgb(frame, clip.pixel_aspect, cover) for frame in chosen]
    if len({picture.shape for picture in pictures}) > 1:
        raise BadSample("its frames have several sizes")
    return torch.from_numpy(np.stack(pictures))


def available_frames(
    media: bytes | Path, *, fps: float | None = None, start: float = 0.0, end: float | None = None
) -> int:
    """How many frames `decode_clip` can take at `fps` before it slows the clip down; None = at any rate.

    Nothing is decoded, only the packets' times are read.

    Raises:
        BadSample: no video, or no frame in [start, end).
    """
    with open_clip(media) as clip:
        return clip.timeline(start, end).available(fps)


def media_size(media: bytes | Path) -> tuple[int, int]:
    """(height, width) of a picture or a clip as it is shown: upright, with square pixels.

    Of a picture the header is read, so its first bytes are enough; of a clip one frame is decoded, because
    only frames tell how the clip is turned.

    Raises:
        BadSample: neither a picture nor a clip, or larger than MAX_PIXELS.
    """
    try:
        with _picture(media) as image:
            return _upright(image)
    except _NoPicture:
        with open_clip(media) as clip:
            return clip.shown_size()


class _NoPicture(BadSample):
    pass


@contextlib.contextmanager
def _picture(media: bytes | Path) -> Iterator[Image.Image]:
    """An open picture of which nothing is decoded yet; every error until it is closed is a BadSample."""
    try:
        with open_media(media) as file, Image.open(file, formats=FORMATS) as image:
            check_size(image.height, image.width)
            yield image
    except Image.UnidentifiedImageError as error:
        raise _NoPicture("no picture of a known format") from error
    except PICTURE_ERRORS as error:
        raise BadSample(f"not readable as a picture: {reason(error)}") from error


def _upright(image: Image.Image) -> tuple[int, int]:
    """(height, width) after the EXIF rotation."""
    turned = image.getexif().get(ORIENTATION) in (5, 6, 7, 8)
    return image.size if turned else image.size[::-1]
