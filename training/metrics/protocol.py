"""How many videos and which of their frames a figure is of; those of two protocols do not compare."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from univid.messages import shown

Kind = Literal["clip", "frame", "all"]
"""clip: the protocol's frames; frame: a random one of them; all: every frame of the video."""


@dataclass(frozen=True)
class Protocol:
    """What is taken of the videos of a folder, each once, in an order drawn by `seed`.

    videos: that count, None = all. inception_videos: those of the Inception score. frames: of each, in order,
    drawn from `window` frames in a row, which begin anywhere in a longer video. fps: at which frames are
    taken, None = the video's own. pad: short videos repeat their last frame, else they are left out.
    size: (height, width) that frames are cropped and shrunk to, None = their own. splits: of the Inception
    score. about: where it comes from.
    """

    name: str
    about: str
    videos: int | None = None
    inception_videos: int | None = None
    frames: int = 16
    window: int = 16
    fps: float | None = None
    pad: bool = False
    size: tuple[int, int] | None = None
    splits: int = 10
    seed: int = 0

    def __post_init__(self):
        if not 1 <= self.frames <= self.window:
            raise ValueError(f"frames must be from 1 to window ({self.window}), got {self.frames}.")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise ValueError(f"fps must be above 0, got {self.fps:g}.")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size must be two numbers above 0, got {self.size[0]} {self.size[1]}.")
        if self.splits < 1:
            raise ValueError(f"splits must be 1 or more, got {self.splits}.")

    def frames_of(self, kind: Kind) -> dict:
        """What decides which frames are taken, and what becomes of them: JSON values."""
        names = ["fps", "size"] if kind == "all" else ["fps", "size", "frames", "window", "pad", "seed"]
        return {"kind": kind} | {name: getattr(self, name) for name in names}

    def choose(self, kind: Kind, number: int, fps: float, content: str) -> np.ndarray:
        """The indices of the frames that are taken of `number` frames.

        fps: of the video; nan = unknown, taken as the protocol's. content: its sha256, by which frames are
        drawn, so that neither its name nor the other videos matter.

        Raises:
            ValueError: it is too short.
        """
        at = np.arange(number)
        if self.fps is not None and not math.isnan(fps):
            at = np.arange(math.ceil(number * self.fps / fps - 1e-6)) * (fps / self.fps)
            at = np.floor(at + 1e-6).astype(int).clip(max=number - 1)
        if kind == "all":
            return at
        if len(at) < self.window:
            if not self.pad:
                raise ValueError(
                    f"it has {len(at)} frames{self._rate()}, and the protocol {shown(self.name)} asks for "
                    f"{self.window}; make longer videos or allow --pad."
                )
            at = np.pad(at, (0, self.window - len(at)), mode="edge")
        rng = np.random.default_rng([self.seed, int(content[:16], 16)])
        start = rng.integers(len(at) - self.window + 1)
        chosen = np.sort(rng.choice(self.window, self.frames, replace=False))
        at = at[start : start + self.window][chosen]
        return at if kind == "clip" else at[rng.integers(self.frames)][None]

    def _rate(self) -> str:
        return "" if self.fps is None else f" at {self.fps:g} a second"

    def json(self) -> dict:
        return dataclasses.asdict(self)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("all", "every video of the folder, 16 frames in a row"),
        Protocol("ucf-101", "StyleGAN-V: FVD of 2,048 clips, IS of 10,000", 2048, 10_000),
        Protocol("ucf-101-10k", "FVD and IS of 10,000 clips", 10_000, 10_000),
        Protocol("msr-vtt", "UniVG: 2,990 prompts, 16 random frames of 24", 2990, 2990, 16, 24),
        Protocol("msr-vtt-2048", "Show-1: 2,048 random videos of the test set", 2048, 2048),
    )
}
