"""An open video file: the times of its frames, and the decoding of those that are wanted."""

import contextlib
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import Colorspace, Interpolation
from einops import rearrange

from training.data.samples import BadSample, Bucket

MAX_PIXELS = 2**26  # of a picture or a frame: 8192 x 8192, 200 MB in every worker
MIN_OWN_RATE = 0.9  # of the wanted frame rate; a slower clip would show too many frames twice
SD_HEIGHT = 576  # in a file that does not name its colour matrix, higher frames are BT.709 and others BT.601
UNSPECIFIED = 2  # FFmpeg's colour matrix of such a file
SEEK_MARGIN = (
    1.0  # seconds: files are searched by the time of decoding, which is earlier than that of showing
)
# LookupError: PyAV's, of a file in which a stream begins late
CLIP_ERRORS = (av.error.FFmpegError, OSError, LookupError)
# PyAV 17 brought conversion in as many threads as there are cores; before it, there was one
ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}


@dataclass(frozen=True)
class Timeline:
    """The frames of a clip that count.

    times: when each appears, in seconds after the clip's first frame, ascending `[n]`, n > 0. tolerance: how
    much later than meant a time may stand there, in seconds. origin: the first frame's timestamp. keys: the
    times of key frames and the timestamps that find them, ascending; without any, frames are counted from
    the file's beginning, and `skipped` of them come before times[0].
    """

    times: np.ndarray
    tolerance: float
    origin: int = 0
    keys: tuple[tuple[float, int], ...] = ()
    skipped: int = 0

    @property
    def span(self) -> float:
        """Seconds from the first frame to the last."""
        return float(self.times[-1] - self.times[0])

    @property
    def rate(self) -> float:
        """Frames per second; infinite if there is but one frame."""
        return (len(self.times) - 1) / self.span if len(self.times) > 1 else math.inf

    def available(self, fps: float | None) -> int:
        """How many frames there are at `fps`; None = all."""
        if fps is None:
            return len(self.times)
        if self.rate < MIN_OWN_RATE * fps:
            return 1
        return min(len(self.times), math.floor((self.span + self.tolerance) * fps) + 1)

    def choose(self, frames: int, fps: float, window: float) -> np.ndarray:
        """Indices into `times` of the frames that `decode_clip` shows `[frames]`, ascending.

        Raises:
            BadSample: too few frames.
        """
        if len(self.times) < frames:
            raise BadSample(f"{len(self.times)} frames in {self.span:.2f} s, {frames} are needed")
        if frames > 1 and self.rate < MIN_OWN_RATE * fps:
            raise BadSample(f"{self.rate:.3g} frames per second, {fps:g} are needed")
        span = min((frames - 1) / fps, self.span)
        # from a frame on, so that at the clip's own rate the grid of times lies on its frames
        begin = self.times[self._shown_at(self.times[0] + window * (self.span - span))]
        return self._shown_at(begin + np.linspace(0, span, frames))

    def _shown_at(self, times: np.ndarray) -> np.ndarray:
        """Indices of the frames shown at these times."""
        return np.searchsorted(self.times, times + self.tolerance, side="right") - 1


@contextlib.contextmanager
def open_clip(media: bytes | Path) -> Iterator["Clip"]:
    """An open clip; every error of the libraries until it is closed is a BadSample."""
    with contextlib.ExitStack() as stack:
        try:
            yield Clip(media, stack)
        except CLIP_ERRORS as error:
            raise BadSample(f"not readable as a clip: {reason(error)}") from error


def open_media(media: bytes | Path) -> BinaryIO:
    """A sample's bytes or file, open for reading.

    Raises:
        BadSample: nothing is in it.
    """
    file = io.BytesIO(media) if isinstance(media, bytes) else media.open("rb")
    if not file.read(1):
        file.close()
        raise BadSample("zero bytes")
    file.seek(0)
    return file


def reason(error: Exception) -> str:
    """What a library says of a file, in few words."""
    text = str(getattr(error, "strerror", None) or error or type(error).__name__)
    return " ".join(text.split())[:120]


def check_size(height: int, width: int) -> None:
    """Refuse what is too large to decode."""
    if height * width > MAX_PIXELS:
        raise BadSample(f"{width} x {height} is more than {MAX_PIXELS / 1e6:.0f} megapixels")


class Clip:
    """An open video file, used once: first its timeline, then its frames. `stack` closes what it opens.

    Raises:
        BadSample: no video in it.
    """

    def __init__(self, media: bytes | Path, stack: contextlib.ExitStack):
        self.media, self.stack = media, stack
        self._open()

    def _open(self) -> None:
        """Open the file, or open it again: the next packet is its first one."""
        # Opened here, so that no file name is taken for an address; and without any protocol, so that a list
        # of addresses that calls itself a clip makes FFmpeg fetch none of them.
        file = self.stack.enter_context(open_media(self.media))
        self.container = self.stack.enter_context(
            av.open(file, container_options={"protocol_whitelist": "none"}, metadata_errors="replace")
        )
        streams = [s for s in self.container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:  # the cover of a sound file is not one
            raise BadSample("no video in it")
        self.stream = streams[0]
        if self.stream.codec_context is None:
            raise BadSample("no decoder for its video")
        self.stream.codec_context.thread_count = 1
        self.stream.thread_type = "NONE"
        check_size(self.stream.height, self.stream.width)

    @property
    def pixel_aspect(self) -> float:
        """Width of a pixel by its height."""
        return float(self.stream.sample_aspect_ratio or 1)

    def shown_size(self) -> tuple[int, int]:
        """(height, width) of its first frame as it is shown."""
        for frame in self.container.decode(self.stream):
            height, width, turn = _shown(frame, self.pixel_aspect)
            return (width, height) if turn.transposed else (height, width)
        raise BadSample("no frame in it")

    def timeline(self, start: float, end: float | None) -> Timeline:
        """The frames that appear in [start, end), read off the packets from the key frame before `start` on.

        Raises:
            BadSample: there are none.
        """
        packets = self._packets(start, end)
        base, origin, keys = float(self.stream.time_base), self.stream.start_time, []
        if self._guesses_times() or not _timed(packets):
            times, tick = np.arange(len(packets)) / float(self.stream.average_rate or Fraction(25)), 0.0
        else:
            if origin is None:
                origin = min((packet.pts for packet in packets), default=0)
            times, tick = np.unique([(packet.pts - origin) * base for packet in packets]), base
            # containers search by either timestamp: with the smaller one, what is found never lies behind
            keys = [
                ((p.pts - origin) * base, p.pts if p.dts is None else p.dts) for p in packets if p.is_keyframe
            ]
        gap = np.ptp(times) / max(1, len(times) - 1) if len(times) else 0.0
        tolerance = min(tick, float(gap) / 4) + 1e-6
        counts = np.ones(len(times), bool) if start <= 0 else times >= start - tolerance
        if end is not None:
            counts &= times < end - tolerance
        if not counts.any():
            raise BadSample(f"no frame from {start:g} s to {'the end' if end is None else f'{end:g} s'}")
        return Timeline(times[counts], tolerance, origin or 0, tuple(sorted(keys)), int(counts.argmax()))

    def _guesses_times(self) -> bool:
        """Whether packets have no true times: AVI stores none, and FFmpeg's are wrong where B-frames are."""
        return self.container.format.name == "avi"

    def _packets(self, start: float, end: float | None) -> list[av.Packet]:
        """The packets of all frames that appear in [start, end) and some more; or all, if one has no time."""
        first, base = self.stream.start_time, float(self.stream.time_base)
        if first is not None and not self._guesses_times():
            stop = None if end is None else first + end / base
            if start > 0 and self._seek(first + int((start - SEEK_MARGIN) / base)):
                packets = self._read(stop)
                if packets and _timed(packets) and packets[0].pts <= first + start / base:
                    return packets
                self._open()
            packets = self._read(stop)
            if _timed(packets):
                return packets
            self._open()
        return self._read()

    def _read(self, stop: float | None = None) -> list[av.Packet]:
        """The packets from here to the timestamp `stop`."""
        packets = []
        for packet in self.container.demux(self.stream):
            if stop is not None and packet.dts is not None and packet.dts >= stop:
                break
            if packet.size and not packet.is_discard:
                packets.append(packet)
        return packets

    def _seek(self, timestamp: int) -> bool:
        """Go to a key frame at or before a timestamp; False if the file has no way to find it."""
        try:
            self.container.seek(timestamp, stream=self.stream)
        except av.error.FFmpegError:
            self._open()
            return False
        return True

    def frames_at(self, timeline: Timeline, chosen: np.ndarray) -> Iterator[av.VideoFrame]:
        """The frames of a timeline that have these indices, ascending.

        Raises:
            BadSample: one is damaged or missing.
        """
        decoded = self._decoded(timeline, float(timeline.times[chosen[0]]))
        # a packet may hold half a frame, or one that is never shown: then its neighbour is as good
        slack = timeline.tolerance + (1.5 / timeline.rate)
        now, frame = -math.inf, None
        for time in timeline.times[chosen]:
            while now < time - timeline.tolerance and (found := next(decoded, None)):
                now, frame = found
            if abs(now - time) > slack or frame.is_corrupt:
                raise BadSample(f"damaged at {time:.2f} s")
            yield frame

    def _decoded(self, timeline: Timeline, first: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """Frames in order with their times, from one at or before the time `first` on."""
        if not timeline.keys:
            self._open()
            frames = self.container.decode(self.stream)
            for _ in range(timeline.skipped):
                next(frames, None)
            yield from zip(timeline.times.tolist(), frames, strict=False)
            return
        before = [timestamp for time, timestamp in timeline.keys if time <= first + timeline.tolerance]
        if before and self._seek(before[-1]):
            frames = self._from_key_frame(timeline.origin)
            found = next(frames, None)
            if found and found[0] <= first + timeline.tolerance:
                yield found
                yield from frames
                return
        self._open()
        yield from self._from_key_frame(timeline.origin)

    def _from_key_frame(self, origin: int) -> Iterator[tuple[float, av.VideoFrame]]:
        """Frames and their times from the next key frame on: what comes before it cannot be decoded."""
        base, begun = float(self.stream.time_base), False
        for packet in self.container.demux(self.stream):
            begun = begun or packet.is_keyframe
            for frame in packet.decode() if begun else ():
                if frame.pts is not None:
                    yield (frame.pts - origin) * base, frame


def _timed(packets: list[av.Packet]) -> bool:
    return all(packet.pts is not None for packet in packets)


@dataclass(frozen=True)
class _Turn:
    """How stored frames become upright: rows and columns change places, then either is reversed."""

    transposed: bool
    rows: int  # 1 or -1
    columns: int


def _shown(frame: av.VideoFrame, pixel_aspect: float) -> tuple[int, int, _Turn]:
    """(height, width) of a frame with square pixels before it is turned, and the turn."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
        a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5] if matrix else (1, 0, 0, 0, 1)
    except (
        ValueError
    ):  # side data of a kind that PyAV does not know; what remains cannot tell mirrored frames
        a, b, c, d = ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))[
            round(frame.rotation / 90) % 4
        ]
    # a pixel (x, y) is shown at (a x + c y, b x + d y)
    transposed = abs(int(b)) > abs(int(a))
    x, y = (c, b) if transposed else (a, d)
    height, width = frame.height, max(1, round(frame.width * pixel_aspect))
    check_size(height, width)
    return height, width, _Turn(transposed, -1 if y < 0 else 1, -1 if x < 0 else 1)


def rgb(frame: av.VideoFrame, pixel_aspect: float, cover: Bucket | None) -> np.ndarray:
    """A frame as it is shown, uint8 `[h w 3]`, for the bucket `cover`: see `decode_clip`."""
    height, width, turn = _shown(frame, pixel_aspect)
    if cover:
        rows, columns = cover[::-1] if turn.transposed else cover
        while min(height / rows, width / columns) >= 4:
            height, width = height // 2, width // 2
    resized = (height, width) != (frame.height, frame.width)
    guessed = frame.colorspace == UNSPECIFIED and not frame.format.is_rgb and frame.height > SD_HEIGHT
    picture = frame.to_ndarray(
        format="rgb24",
        width=width,
        height=height,
        interpolation=Interpolation.AREA if resized else None,
        src_colorspace=Colorspace.ITU709 if guessed else None,
        **ONE_THREAD,
    )
    if turn.transposed:
        picture = rearrange(picture, "h w c -> w h c")
    return picture[:: turn.rows, :: turn.columns]
