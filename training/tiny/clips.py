"""Clips of the built-in world as a user has them: a file, and its caption beside it."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from tqdm import tqdm

from training import distributed
from univid.files.output import new_file

from . import shapes


def write(path: Path, frames: np.ndarray, caption: str, fps: float) -> None:
    """Frames uint8 `[t h w 3]` as `.mkv`, which loses nothing; what is there stays."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    with new_file(path) as temporary, av.open(str(temporary), "w", format="matroska") as file:
        stream = file.add_stream("ffv1", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())


def draw(folder: Path, count: int, *, seed: int, frames: int, size: int, fps: float) -> None:
    """Write clips of the world, shared out among the processes; what is there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    indices = range(count)[distributed.rank() :: distributed.processes()]
    for index in tqdm(indices, desc="clips", mininterval=10, disable=distributed.rank() > 0):
        path = folder / f"{index:05d}.mkv"
        if not path.exists():
            video, scene = shapes.clip(index, seed=seed, frames=frames, size=size)
            write(path, video, scene.caption, fps)
    distributed.barrier()
