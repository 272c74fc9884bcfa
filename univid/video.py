"""Pictures and videos in and out. Files hold uint8 RGB frames `[t h w 3]`; the library works in -1..1.

Reading goes through Pillow and imageio's PyAV plugin. Encoding calls PyAV itself, because that plugin has no
way to set an encoder's quality and its default blurs videos as small as 64 x 64.
"""

import os
import warnings
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import imageio.v3 as iio
import numpy as np
import torch
import torch.nn.functional as F
from av.video.reformatter import Colorspace
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor

from .files import output
from .messages import shown

# suffix: (container, encoder, options). A constant rate factor of 10 is visually lossless.
ENCODERS = {
    ".mp4": ("mp4", "libx264", {"crf": "10", "preset": "slow"}),
    ".webm": ("webm", "libvpx-vp9", {"crf": "10", "b": "0", "cpu-used": "4"}),
    ".gif": ("gif", "gif", {}),
}
LONGEST = {".mp4": 16384, ".webm": 65536, ".gif": 65535}  # side in pixels that the encoder takes
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
    return rearrange(torch.from_numpy(np.array(frames)), "t h w c -> 1 c t h w").float() / 127.5 - 1


def read_image(path: str | Path) -> Tensor:
    """Read a picture file as `[1 3 h w]` in -1..1.

    The EXIF rotation is applied, transparency is put on white, 16-bit grey is scaled to 8 bits; of an
    animation the first frame counts.

    Raises:
        ValueError: the file is missing, or it is no picture that Pillow can read.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns from 89 megapixels on; twice that is its error, which stays
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                rgb = to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise ValueError(f"expected a picture file, but {path} does not exist; check the path.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "unknown format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise ValueError(
            f"{path} cannot be read as a picture ({reason}); give a PNG or JPEG file."
        ) from error
    return from_uint8(np.asarray(rgb)[None])[:, :, 0]  # [1 3 h w]


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as RGB: transparency is put on white, 16-bit grey is scaled to 8 bits."""
    if image.mode.startswith("I"):  # Pillow's own conversion clips 16 bits instead of scaling them
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_video(path: str | Path, *, frames: int | None = None) -> tuple[Tensor, float]:
    """Read a video file, or its first `frames` frames: `[1 3 t h w]` in -1..1, and its frames per second.

    Raises:
        ValueError: the file is missing, or it holds no video that FFmpeg can read.
    """
    if not Path(path).is_file():
        raise ValueError(f"expected a video file, but {path} does not exist or is a folder; check the path.")
    try:
        with iio.imopen(path, "r", plugin="pyav") as file:
            fps = file.metadata()["fps"]
            pictures = list(islice(file.iter(), frames))
    except Exception as error:  # imageio and FFmpeg share no base class for "this is no video"
        raise ValueError(
            f"{path} cannot be read as a video; give a file such as .mp4, .webm or .gif."
        ) from error
    if not pictures:
        raise ValueError(f"{path} holds no frame; give a file such as .mp4, .webm or .gif.")
    return from_uint8(np.stack(pictures)), fps


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
    if suffix and suffix not in ENCODERS:
        known = ", ".join(ENCODERS)
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


def write_video(video: Tensor, path: str | Path, fps: float) -> None:
    """Write one clip `[1 3 t h w]` in -1..1 as .mp4 (H.264), .webm (VP9), .gif, or a folder of PNG frames.

    Nothing half-written stays behind, and a file that was there before is replaced only by a complete one.
    The size is kept to the pixel: .mp4 is yuv420p, which every player shows, but an odd height or width
    cannot be halved for its colours and is written as yuv444p. A folder holds frame_0001.png and so on.

    fps: frames per second; a .gif rounds each frame's time to 1/100 s.

    Raises:
        ValueError: see `check_output`; or the operating system refuses to write.
    """
    check_output(path, fps, size=tuple(video.shape[-2:]))
    suffix, frames = Path(path).suffix.lower(), to_uint8(video)
    if not suffix:
        with output.new_folder(path) as folder:
            digits = max(4, len(str(len(frames))))
            for number, frame in enumerate(frames, start=1):
                Image.fromarray(frame).save(folder / f"frame_{number:0{digits}d}.png")
        return
    try:
        with output.new_file(path) as temporary:
            _encode(frames, temporary, suffix, fps)
    except av.FFmpegError as error:
        raise ValueError(
            f"{shown(path)} cannot be encoded ({error.strerror}); name another kind of output."
        ) from error


def _encode(frames: np.ndarray, path: Path, suffix: str, fps: float) -> None:
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
            stream.codec_context.colorspace = (
                Colorspace.ITU601
            )  # what the conversion from RGB uses, at any size
            pictures = (av.VideoFrame.from_ndarray(np.ascontiguousarray(f), format="rgb24") for f in frames)
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
