"""Pictures and videos in and out. Files hold uint8 RGB frames `[t h w 3]`; the library works in -1..1.

Both go through the doors in files/, which are imported when something is read or written: nothing else needs
PyAV, imageio and Pillow.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .files import output
from .files.media import Unreadable
from .messages import shown
from .receipt import IN_FOLDERS

if TYPE_CHECKING:
    from .files.video import Clip
    from .windows import Frames

# By suffix of what can be written: the longest side in pixels that the encoder takes.
LONGEST = {".mp4": 16384, ".webm": 65536, ".gif": 65535}
MAX_PICTURE = 2**24  # pixels; as float32 they take 200 MB
MAX_GIF_FPS = 50  # GIF counts in 1/100 s, and viewers slow a picture shown for less than 2 of them


def to_uint8(video: Tensor) -> np.ndarray:
    """One clip `[1 3 t h w]` in -1..1 as frames `[t h w 3]`; values outside are clipped."""
    if video.dim() != 5 or video.shape[:2] != (1, 3):
        raise ValueError(
            f"expected one clip of shape [1 3 t h w], got {list(video.shape)}; pass clips one by one."
        )
    frames = rearrange(video[0], "c t h w -> t h w c").float().cpu()
    return ((frames + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()


def from_uint8(frames: np.ndarray) -> Tensor:
    """Frames `[t h w 3]` as one clip `[1 3 t h w]` in -1..1, float32."""
    video = rearrange(torch.from_numpy(np.require(frames, requirements="CW")), "t h w c -> 1 c t h w").float()
    return video.div_(127.5).sub_(1)  # in place, as pictures are large


def read_image(path: str | Path) -> Tensor:
    """Read a picture file as `[1 3 h w]` in -1..1.

    The EXIF rotation is applied, transparency is put on white, 16-bit grey is scaled to 8 bits; of an
    animation the first frame counts. One of more than 16 megapixels comes at a half or a third of its size,
    which is more than any model looks at.

    Raises:
        ValueError: the file is missing or no regular file, or it is no picture that can be read.
    """
    from .files import picture as door

    try:
        pixels = door.read_picture(Path(path), most=MAX_PICTURE)
    except Unreadable as error:
        raise ValueError(
            f"{shown(path)} cannot be read as a picture: {error}; give a {door.SPOKEN} file."
        ) from error
    return from_uint8(pixels[None])[:, :, 0]  # [1 3 h w]


def read_mask(path: str | Path, frames: int) -> Tensor:
    """Read a picture as a mask `[1 h w]`, or the first `frames` frames of a video as one each, `[t h w]`.

    White is 1, black 0, a colour the mean of its parts; transparency is put on white.

    Raises:
        ValueError: as `read_image` and `read_video`.
    """
    from .files import picture as door

    moves = False
    try:
        door.picture_size(Path(path))
    except door.NoPicture:
        moves = True
    except Unreadable:
        pass  # read_image says why
    video = read_video(path, frames=frames)[0] if moves else read_image(path)[:, :, None]
    return (video[0].mean(0) + 1) / 2


def read_video(
    path: str | Path, *, frames: int | None = None, size: tuple[int, int] | None = None
) -> tuple[Tensor, float]:
    """Read a video file, or its first `frames` frames: `[1 3 t h w]` in -1..1, and its frames per second.

    Frames are as players show them: upright, with square pixels, what is transparent on white. They are
    evenly spaced in time at the file's usual rate, so a file of varying rate repeats frames where it pauses.

    size: (height, width) to which each frame is cropped and shrunk as it comes, as by `fit`; None = its own.

    Raises:
        ValueError: the file is missing or no regular file, it holds no video that can be read, or more
            frames than fit into 8 GB.
    """
    with _opened(path) as clip:
        timeline, chosen, fps = clip.evenly(frames, size)
        pictures = clip.pictures(timeline, chosen, size)
        if size:
            video = torch.empty(len(chosen), 3, *size)
            for frame, pixels in zip(video, pictures, strict=True):
                frame[...] = fit(from_uint8(pixels[None]), *size)[0, :, 0]
            return rearrange(video, "t c h w -> 1 c t h w"), fps
        return from_uint8(_stacked(pictures, len(chosen))), fps


@contextlib.contextmanager
def open_video(path: str | Path) -> Iterator["OpenVideo"]:
    """A video file whose frames come one at a time, as `read_video` gives them all at once.

    Raises:
        ValueError: as `read_video`, but for their number.
    """
    with _opened(path) as clip:
        timeline, chosen, fps = clip.evenly(None, None, at_once=False)
        frames = _alike(clip.pictures(timeline, chosen, None))
        yield OpenVideo(len(chosen), fps, clip.sounds, frames)


class OpenVideo(NamedTuple):
    """frames: uint8 `[h w 3]`, once. sounds: whether the file has any."""

    number: int
    fps: float
    sounds: bool
    frames: Iterator[np.ndarray]


def check_video(path: str | Path) -> None:
    """Refuse, before any work is done, a file that `read_video` could not open.

    Raises:
        ValueError: as `read_video`; frames that are damaged are found only when they are read.
    """
    with _opened(path):
        pass


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator["Clip"]:
    """An open video file; what is wrong with it is a ValueError."""
    from .files import video as door

    try:
        with door.open_clip(Path(path)) as clip:
            yield clip
    except Unreadable as error:
        raise ValueError(
            f"{shown(path)} cannot be read as a video: {error}; give an {door.SPOKEN} file."
        ) from error


def _stacked(pictures: Iterator[np.ndarray], number: int) -> np.ndarray:
    """Pictures `[h w 3]` of one size as `[t h w 3]`, each copied as it comes."""
    alike = _alike(pictures)
    first = next(alike)
    frames = np.empty((number, *first.shape), np.uint8)
    for frame, pixels in zip(frames, chain([first], alike), strict=True):
        frame[...] = pixels
    return frames


def _alike(pictures: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The pictures `[h w 3]`, as long as they have one size.

    Raises:
        Unreadable: they have several.
    """
    shape = None
    for picture in pictures:
        shape = shape or picture.shape
        if picture.shape != shape:
            raise Unreadable("its frames have several sizes")
        yield picture


def fit(video: Tensor, height: int, width: int) -> Tensor:
    """Crop a clip `[1 3 t h w]` at its centre to the proportions of height x width, and resize it to that."""
    h, w = video.shape[-2:]
    scale = max(height / h, width / w)
    crop_h, crop_w = min(h, round(height / scale)), min(w, round(width / scale))
    top, left = (h - crop_h) // 2, (w - crop_w) // 2
    frames = rearrange(video[..., top : top + crop_h, left : left + crop_w], "1 c t h w -> t c h w")
    resized = F.interpolate(frames, (height, width), mode="bicubic", antialias=True).clamp(-1, 1)
    return rearrange(resized, "t c h w -> 1 c t h w")


def check_output(
    path: str | Path,
    fps: float | None,
    inputs: Iterable[str | os.PathLike | None] = (),
    size: tuple[int, int] | None = None,
) -> None:
    """Refuse, before any work is done, what `write_video` could not write.

    Args:
        fps, size: frames per second, (height, width) in pixels; None is not known yet.
        inputs: files that are read meanwhile, none of which may be replaced.

    Raises:
        ValueError: an unknown suffix, a frame rate or size that the format cannot hold, a folder for frames
            that already holds something, or as `output.check_file`.
    """
    path, name = os.fspath(path), Path(path).name
    suffix = Path(path).suffix.lower()
    if suffix and suffix not in LONGEST:
        known = ", ".join(LONGEST)
        raise ValueError(
            f"expected an output ending in {known}, or no suffix for a folder of frames, got {shown(name)}."
        )
    limit = MAX_GIF_FPS if suffix == ".gif" else 1000
    if fps is not None and not 0.01 <= fps <= limit:
        raise ValueError(f"fps must be from 0.01 to {limit} for {shown(name)}, got {fps}.")
    if size is not None and suffix and max(size) > LONGEST[suffix]:
        raise ValueError(
            f"a {suffix} file holds at most {LONGEST[suffix]} pixels a side, got {size[1]} x {size[0]}; ask "
            "for less, or name a folder of frames."
        )
    if suffix:
        output.check_file(path, inputs)
    else:
        output.check_folder(path)


def write_video(video: Tensor, path: str | Path, fps: float, note: str | None = None) -> None:
    """Write one clip `[1 3 t h w]` in -1..1 as .mp4 (H.264), .webm (VP9), .gif, or a folder of PNG frames.

    Nothing half-written stays behind, and a file that was there before is replaced only by a complete one.
    The size is kept to the pixel: .mp4 is yuv420p, which every player shows, but an odd height or width
    cannot be halved for its colours and is written as yuv444p. A folder holds frame_0001.png and so on.

    fps: frames per second; a .gif rounds each frame's time to 1/100 s.
    note: a text in ASCII that the file carries as its comment, a folder as receipt.json.

    Raises:
        ValueError: see `check_output`; or the operating system refuses to write.
    """
    write_frames(to_uint8(video), path, fps, note)


def write_frames(frames: "Frames", path: str | Path, fps: float, note: str | None = None) -> None:
    """Write frames as `write_video` does, one by one."""
    from .files import encode as door

    check_output(path, fps, size=frames[0:1].shape[1:3])
    suffix = Path(path).suffix.lower()
    if not suffix:
        with output.new_folder(path) as folder:
            door.encode_pictures(frames, folder)
            if note is not None:
                (folder / IN_FOLDERS).write_text(note + "\n", encoding="utf-8")
        return
    try:
        with output.new_file(path) as temporary:
            door.encode_video(frames, temporary, suffix, fps, note)
    except door.Refused as error:
        raise ValueError(
            f"{shown(path)} cannot be encoded ({error.strerror}); name another kind of output."
        ) from error
