"""The door for videos: an open file, the times of its frames, and the decoding of those that are wanted.

PyAV decodes, because ComfyUI needs it already, it brings its own FFmpeg, and it shows the time of every
packet, so that frames are chosen before one of them is decoded. FFmpeg is handed an open file and the names
of the containers that are meant: it opens nothing by a name, so no list of addresses leads it anywhere.
"""

import contextlib
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import BinaryIO, NamedTuple

import av
import numpy as np
from av.stream import Disposition

from .boxes import check_boxes, has_boxes
from .frames import MAX_PIXELS, rgb, shown_size
from .media import Media, Unreadable, check_size, open_media
from .timeline import Timeline

# FFmpeg's names of containers: no playlists, no lists of pictures, no devices
CONTAINERS = ("matroska", "avi", "gif", "mpegts", "mpeg", "flv", "asf", "ogg", "h264", "hevc")
BOXES = "mov"  # MP4, MOV, M4V, 3GP
SPOKEN = "MP4, MOV, MKV, WebM, AVI or GIF"
LIMITS = {"max_pixels": str(MAX_PIXELS)}  # of decoders
# Those that FFmpeg looks at streams with, too; given them, PyAV before 18 frees what it never had.
PROBING = {"options": LIMITS} if int(av.__version__.split(".")[0]) >= 18 else {}
MAX_STREAMS = 256  # films have dozens of sounds, subtitles and fonts
MAX_FRAMES = 2**20  # of a file: twelve hours at 24 a second
MAX_BYTES = 2**33  # of a clip's pixels in memory
REORDERED = 64  # packets; frames are stored in another order than they are shown, but closer than this
SEEK_MARGIN = 1.0  # seconds: files are searched by times of decoding, which are earlier than those of showing
# Those of Python are PyAV's, of numbers that it does not know or cannot hold and of streams that begin late.
ERRORS = (av.error.FFmpegError, OSError, LookupError, ValueError, OverflowError, MemoryError)


class _Nameless:
    """An open file without its name, by which FFmpeg would guess a format: `a%03d.png` is a list to it."""

    def __init__(self, file: BinaryIO):
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


class _Packet(NamedTuple):
    """What is kept of a packet: when it is shown and decoded, how long it lasts, if it needs no other."""

    pts: int | None
    dts: int | None
    duration: int
    key: bool


@contextlib.contextmanager
def open_clip(media: Media) -> Iterator["Clip"]:
    """An open clip; every error of the libraries until it is closed is an Unreadable."""
    with contextlib.ExitStack() as stack:
        try:
            yield Clip(media, stack)
        except ERRORS as error:
            raise Unreadable(_reason(error)) from error


def _reason(error: Exception) -> str:
    """What is wrong, in plain words where FFmpeg's are not."""
    if isinstance(error, MemoryError):
        return "decoding it takes more memory than there is"
    if isinstance(error, av.error.DecoderNotFoundError):
        return "there is no decoder for it"
    return "it is damaged, cut short or of no known format"


class Clip:
    """An open video file, used once: first its timeline, then its frames. `stack` closes what it opens.

    Raises:
        Unreadable: no video in it.
    """

    def __init__(self, media: Media, stack: contextlib.ExitStack):
        self.media, self.stack = media, stack
        with open_media(media) as file:
            boxes = has_boxes(file)
            if boxes:
                check_boxes(file)
        self.containers = (BOXES,) if boxes else CONTAINERS
        self._open()

    def _open(self) -> None:
        """Open the file, or open it again: the next packet is its first one."""
        file = self.stack.enter_context(open_media(self.media))
        allowed = {
            "protocol_whitelist": "none",
            "format_whitelist": ",".join(self.containers),
            "max_streams": str(MAX_STREAMS),
        }
        self.container = self.stack.enter_context(
            av.open(_Nameless(file), container_options=allowed, metadata_errors="replace", **PROBING)
        )
        aside = Disposition.attached_pic | Disposition.timed_thumbnails
        streams = [stream for stream in self.container.streams.video if not stream.disposition & aside]
        if not streams:  # the cover of a sound file is not one
            raise Unreadable("there is no video in it")
        self.stream = streams[0]
        codec = self.stream.codec_context
        if codec is None:
            raise Unreadable("there is no decoder for its video")
        codec.options = LIMITS
        codec.thread_count = 1  # loaders have many processes, and the same file gives the same pixels
        self.stream.thread_type = "NONE"
        check_size(self.stream.height, self.stream.width, MAX_PIXELS)

    @property
    def pixel_aspect(self) -> float:
        """Width of a pixel by its height."""
        return float(self.stream.sample_aspect_ratio or 1)

    @property
    def declared_rate(self) -> float | None:
        """Frames per second, as the file says or FFmpeg guesses."""
        rate = self.stream.guessed_rate or self.stream.average_rate
        return float(rate) if rate else None

    def shown_size(self) -> tuple[int, int]:
        """(height, width) of its first frame as it is shown."""
        for frame in self.container.decode(self.stream):
            return shown_size(frame, self.pixel_aspect)
        raise Unreadable("there is no frame in it")

    def timeline(self, start: float, end: float | None) -> Timeline:
        """The frames that appear in [start, end), read off the packets from the key frame before `start` on.

        Raises:
            Unreadable: there are none.
        """
        return self._timeline(self._packets(start, end), start, end)

    @property
    def sounds(self) -> bool:
        """Whether there is sound beside the pictures."""
        return bool(self.container.streams.audio)

    def evenly(
        self, frames: int | None, size: tuple[int, int] | None, *, at_once: bool = True
    ) -> tuple[Timeline, np.ndarray, float]:
        """The clip, or its beginning, at an even rate: its frames, which of them are shown, and the rate.

        The rate is the usual one, and each moment has the frame that players show at it: pauses repeat
        frames, so the clip lasts as long as it did.

        Args:
            frames: how many, if there are so many; None = all.
            size: (height, width) that they are kept in; None = their own.
            at_once: whether all of them will be in memory together.

        Raises:
            Unreadable: no frame in it, or more than fit into MAX_BYTES at once.
        """
        timeline, rate = self._beginning(frames)
        number = timeline.length(rate)
        number = number if frames is None else min(frames, number)
        height, width = size or (self.stream.height, self.stream.width * self.pixel_aspect)
        if number > MAX_FRAMES or at_once and 12 * number * height * width > MAX_BYTES:  # float32
            raise Unreadable(
                f"{number} frames of {width:.0f} x {height} are more than the {MAX_BYTES / 1e9:.0f} GB of "
                "pixels that are read at once"
            )
        return timeline, timeline.evenly(number, rate), rate

    def _beginning(self, frames: int | None) -> tuple[Timeline, float]:
        """The frames of as many moments at the usual rate and some more, None = all; and that rate."""
        packets, rate, until = [], None, math.inf
        for packet in self._demuxed():
            if len(packets) == (frames or math.inf) + REORDERED:
                timeline = self._timeline(packets, 0.0, None)
                rate = timeline.usual_rate(self.declared_rate)
                until = timeline.origin + (timeline.times[0] + frames / rate) / self._base
            if packet.dts is not None and packet.dts > until:
                break
            packets.append(packet)
        timeline = self._timeline(packets, 0.0, None)
        return timeline, rate or timeline.usual_rate(self.declared_rate)

    def _timeline(self, packets: list[_Packet], start: float, end: float | None) -> Timeline:
        """The frames of these packets that appear in [start, end)."""
        base, origin, keys, last = self._base, self.stream.start_time, [], 0.0
        if self._guesses_times() or not _timed(packets):
            times, tick = np.arange(len(packets)) / float(self.stream.average_rate or Fraction(25)), 0.0
        else:
            if origin is None:
                origin = min((packet.pts for packet in packets), default=0)
            times, tick = np.unique([(packet.pts - origin) * base for packet in packets]), base
            # containers search by either timestamp: with the smaller one, what is found never lies behind
            keys = [((p.pts - origin) * base, p.pts if p.dts is None else p.dts) for p in packets if p.key]
            if packets:
                last = max(packets, key=lambda packet: packet.pts).duration * base
            declared = self.declared_rate
            if declared and math.isclose(last * declared, 1, rel_tol=0.01):
                last = 0.0  # FFmpeg's guess, made of the rate
        gap = np.ptp(times) / max(1, len(times) - 1) if len(times) else 0.0
        tolerance = min(tick, float(gap) / 4) + 1e-6
        counts = np.ones(len(times), bool) if start <= 0 else times >= start - tolerance
        if end is not None:
            counts &= times < end - tolerance
        if not counts.any():
            until = "the end" if end is None else f"{end:g} s"
            raise Unreadable(f"there is no frame from {start:g} s to {until}")
        skipped = int(counts.argmax())
        return Timeline(times[counts], tolerance, last, origin or 0, tuple(sorted(keys)), skipped)

    @property
    def _base(self) -> float:
        """Seconds of one step of the file's timestamps."""
        return float(self.stream.time_base)

    def _guesses_times(self) -> bool:
        """Whether packets have no true times: AVI stores none, and FFmpeg's are wrong where B-frames are."""
        return self.container.format.name == "avi"

    def _packets(self, start: float, end: float | None) -> list[_Packet]:
        """The packets of all frames that appear in [start, end) and some more; or all, if one has no time."""
        first, base = self.stream.start_time, self._base
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

    def _read(self, stop: float | None = None) -> list[_Packet]:
        """The packets from here to the timestamp `stop`."""
        packets = []
        for packet in self._demuxed():
            if stop is not None and packet.dts is not None and packet.dts >= stop:
                break
            packets.append(packet)
        return packets

    def _demuxed(self) -> Iterator[_Packet]:
        """The packets from here on that hold frames which are shown."""
        number = 0
        for packet in self.container.demux(self.stream):
            if packet.size and not packet.is_discard:
                number += 1
                if number > MAX_FRAMES:
                    raise Unreadable(f"it has more than {MAX_FRAMES} frames")
                yield _Packet(packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe)

    def _seek(self, timestamp: int) -> bool:
        """Go to a key frame at or before a timestamp; False if the file has no way to find it."""
        try:
            self.container.seek(timestamp, stream=self.stream)
        except (av.error.FFmpegError, OverflowError):
            self._open()
            return False
        return True

    def pictures(
        self, timeline: Timeline, chosen: np.ndarray, cover: tuple[int, int] | None
    ) -> Iterator[np.ndarray]:
        """The frames of a timeline that have these indices, ascending, as `frames.rgb`: one at a time.

        Raises:
            Unreadable: one is damaged or missing.
        """
        before = picture = None
        for frame in self.frames_at(timeline, chosen):
            if frame is not before:
                before, picture = frame, rgb(frame, self.pixel_aspect, cover)
            yield picture

    def frames_at(self, timeline: Timeline, chosen: np.ndarray) -> Iterator[av.VideoFrame]:
        """The frames of a timeline that have these indices, ascending.

        Raises:
            Unreadable: one is damaged or missing.
        """
        decoded = self._decoded(timeline, float(timeline.times[chosen[0]]))
        # a packet may hold half a frame, or one that is never shown: then its neighbour is as good
        slack = timeline.tolerance + (1.5 / timeline.rate)
        now, frame = -math.inf, None
        for time in timeline.times[chosen]:
            while now < time - timeline.tolerance and (found := next(decoded, None)):
                now, frame = found
            if abs(now - time) > slack or frame.is_corrupt:
                raise Unreadable(f"it is damaged at {time:.2f} s")
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
        base, begun = self._base, False
        for packet in self.container.demux(self.stream):
            begun = begun or packet.is_keyframe
            for frame in packet.decode() if begun else ():
                if frame.pts is not None:
                    yield (frame.pts - origin) * base, frame


def _timed(packets: list[_Packet]) -> bool:
    return all(packet.pts is not None for packet in packets)
