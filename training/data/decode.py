"""Pictures and clips as frames: uint8 RGB `[t h w 3]`, upright, with square pixels.

They are read through the library's doors; what cannot be read is a bad sample here. torchcodec would be one
more binary to match with torch, and decord is no longer maintained.

All functions are pure: what is random is the caller's number. Each works in one thread: loaders have many
workers. PyAV is imported with the first clip, Pillow with the first picture.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from training.data.samples import BadSample, Bucket
from univid.files.media import Media, Unreadable

if TYPE_CHECKING:
    from univid.files.video import Clip


def decode_image(media: Media, *, cover: Bucket | None = None) -> Tensor:
    """A picture as uint8 `[1 h w 3]`; of an animation the first frame.

    As in `univid.video.read_image`, the EXIF rotation is applied, transparency is put on white, and 16-bit
    grey is scaled to 8 bits. cover: the bucket (height, width) that the picture is for: a larger JPEG is
    decoded at 1/2, 1/4 or 1/8 of its size, which is still at least twice what the bucket needs.

    Raises:
        BadSample: no picture of a known format, a damaged one, or one that is too large.
    """
    from univid.files.picture import read_picture

    with _bad_samples():
        return torch.from_numpy(read_picture(media, cover=cover))[None]


def decode_clip(
    media: Media,
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
    with _bad_samples(), _open_clip(media) as clip:
        timeline = clip.timeline(start, end)
        chosen = timeline.choose(frames, fps, window)
        pictures = list(clip.pictures(timeline, chosen, cover))
    if len({picture.shape for picture in pictures}) > 1:
        raise BadSample("its frames have several sizes")
    return torch.from_numpy(np.stack(pictures))


def available_frames(
    media: Media, *, fps: float | None = None, start: float = 0.0, end: float | None = None
) -> int:
    """How many frames `decode_clip` can take at `fps` before it slows the clip down; None = at any rate.

    Nothing is decoded, only the packets' times are read.

    Raises:
        BadSample: no video, or no frame in [start, end).
    """
    with _bad_samples(), _open_clip(media) as clip:
        return clip.timeline(start, end).available(fps)


def media_size(media: Media) -> tuple[int, int]:
    """(height, width) of a picture or a clip as it is shown: upright, with square pixels.

    Of a picture the header is read, so its first bytes are enough; of a clip one frame is decoded, because
    only frames tell how the clip is turned.

    Raises:
        BadSample: neither a picture nor a clip, or larger than MAX_PIXELS.
    """
    from univid.files.picture import NoPicture, picture_size

    with _bad_samples():
        try:
            return picture_size(media)
        except NoPicture:
            with _open_clip(media) as clip:
                return clip.shown_size()


@contextlib.contextmanager
def _bad_samples() -> Iterator[None]:
    """What the doors cannot read is a bad sample."""
    try:
        yield
    except Unreadable as error:
        raise BadSample(str(error)) from error


@contextlib.contextmanager
def _open_clip(media: Media) -> Iterator["Clip"]:
    from univid.files.video import open_clip

    with open_clip(media) as clip:
        yield clip
