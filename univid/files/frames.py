"""A decoded frame as pixels: upright, square, RGB of 8 bits; and pixels as a frame for an encoder.

Both ways at the levels that players show: the conversions here are FFmpeg's exact ones, and what is written
names its levels, its matrix and its primaries.
"""

from dataclasses import dataclass

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation
from einops import rearrange

from .media import check_size

MAX_PIXELS = 36_000_000  # of a frame: 8192 x 4320; decoders keep up to 17 of them
SD_HEIGHT = 576  # in a file that does not name its colour matrix, higher frames are BT.709 and others BT.601
# FFmpeg's numbers for the matrices of files, and those among them that its converter knows
MATRICES = {
    1: Colorspace.ITU709, 4: Colorspace.FCC, 5: Colorspace.ITU601, 6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M, 9: 9, 10: 9,
}  # fmt: skip
# Without these two FFmpeg takes a short cut from 4:2:0 to RGB, whose pixels are 1 to 1.5 of 255 levels too
# dark. As numbers, because their names are younger than the releases of PyAV that we run with.
EXACT = 0x40000 | 0x2000  # SWS_ACCURATE_RND, SWS_FULL_CHR_H_INT
FULL_INPUT = 0x4000  # SWS_FULL_CHR_H_INP: colours are halved by the mean of two columns, not by the first
# FFmpeg's numbers: levels of 16 to 235 and 0 to 255, primaries and curve of HD, a file's matrix
LIMITED, FULL, BT709 = 1, 2, 1
TAGS = {Colorspace.ITU601: 6, Colorspace.ITU709: 1}
# PyAV 17 brought conversion in as many threads as there are cores; before it, there was one
ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}


@dataclass(frozen=True)
class _Turn:
    """How stored frames become upright: rows and columns change places, then either is reversed."""

    transposed: bool
    rows: int  # 1 or -1
    columns: int


def shown_size(frame: av.VideoFrame, pixel_aspect: float) -> tuple[int, int]:
    """(height, width) of a frame as it is shown.

    Raises:
        Unreadable: more than MAX_PIXELS.
    """
    height, width, turn = _shown(frame, pixel_aspect)
    return (width, height) if turn.transposed else (height, width)


def rgb(frame: av.VideoFrame, pixel_aspect: float, cover: tuple[int, int] | None) -> np.ndarray:
    """A frame as it is shown, uint8 `[h w 3]`; what is transparent becomes white.

    pixel_aspect: width of a pixel by its height. cover: the (height, width) that the frame is for: a larger
    one is halved as often as leaves twice of it.

    Raises:
        Unreadable: more than MAX_PIXELS.
    """
    height, width, turn = _shown(frame, pixel_aspect)
    if cover:
        rows, columns = cover[::-1] if turn.transposed else cover
        while min(height / rows, width / columns) >= 4:
            height, width = height // 2, width // 2
    resized = (height, width) != (frame.height, frame.width)
    matrix = None if frame.format.is_rgb else _matrix(frame)
    clear = frame.format.has_palette or any(component.is_alpha for component in frame.format.components)
    picture = frame.to_ndarray(
        format="rgba" if clear else "rgb24",
        width=width,
        height=height,
        interpolation=(Interpolation.AREA if resized else Interpolation.BILINEAR) | EXACT,
        src_colorspace=matrix,
        src_color_range=_levels(frame),
        # RGB has none; but older PyAVs look at the one above only where the two differ
        dst_colorspace=Colorspace.ITU601 if matrix == Colorspace.ITU709 else Colorspace.ITU709,
        **ONE_THREAD,
    )
    if clear:
        picture = _on_white(picture)
    if turn.transposed:
        picture = rearrange(picture, "h w c -> w h c")
    return picture[:: turn.rows, :: turn.columns]


def tag(codec: av.VideoCodecContext) -> None:
    """Let an encoder name what `to_yuv` makes, so that players need not guess. The height is set before.

    The matrix is the one that players which read no tags guess from the height.
    """
    codec.color_range, codec.color_primaries, codec.color_trc = LIMITED, BT709, BT709
    codec.colorspace = TAGS[_guessed(codec.height)]


def to_yuv(picture: np.ndarray, pixels: str) -> av.VideoFrame:
    """RGB `[h w 3]`, uint8, as a frame in `pixels`, yuv420p or yuv444p."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return frame.reformat(
        format=pixels,
        interpolation=Interpolation.AREA | EXACT | FULL_INPUT,
        dst_colorspace=_guessed(frame.height),
        dst_color_range=LIMITED,
        **ONE_THREAD,
    )


def _shown(frame: av.VideoFrame, pixel_aspect: float) -> tuple[int, int, _Turn]:
    """(height, width) of a frame with square pixels before it is turned, and the turn."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
        a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5] if matrix else (1, 0, 0, 0, 1)
    except ValueError:  # PyAV does not know this kind of side data, and cannot tell mirrored frames
        a, b, c, d = ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))[
            round(frame.rotation / 90) % 4
        ]
    # a pixel (x, y) is shown at (a x + c y, b x + d y)
    transposed = abs(int(b)) > abs(int(a))
    x, y = (c, b) if transposed else (a, d)
    height, width = frame.height, max(1, round(frame.width * pixel_aspect))
    check_size(height, width, MAX_PIXELS)
    return height, width, _Turn(transposed, -1 if y < 0 else 1, -1 if x < 0 else 1)


def _matrix(frame: av.VideoFrame) -> int:
    """The matrix between a frame's colours and RGB; where none is named, the one that players take."""
    return MATRICES.get(frame.colorspace, _guessed(frame.height))


def _levels(frame: av.VideoFrame) -> int | None:
    """Whether colours use all levels or leave room at both ends; None = FFmpeg knows (RGB, grey)."""
    if frame.format.is_rgb or len(frame.format.components) < 3:
        return None
    return FULL if frame.color_range == FULL or frame.format.name.startswith("yuvj") else LIMITED


def _guessed(height: int) -> Colorspace:
    return Colorspace.ITU709 if height > SD_HEIGHT else Colorspace.ITU601


def _on_white(picture: np.ndarray) -> np.ndarray:
    """Pixels with opacity, uint8 `[h w 4]`, on white paper `[h w 3]`."""
    opacity = picture[..., 3:].astype(np.uint16)
    mixed = picture[..., :3] * opacity + 255 * (255 - opacity)
    return ((mixed + 127) // 255).astype(np.uint8)
