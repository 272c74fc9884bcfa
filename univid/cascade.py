"""From one clip to another, window by window: more frames, a longer clip, a larger one.

A stage makes uint8 frames out of uint8 frames, as files hold them. So what is made from frames that were
written and read again is the same to the bit, and a clip is never in memory as a whole.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from . import memory, windows
from .asked import Clip, Sampling, Source, check_size, own_tile, tile_cells
from .model import UniVid
from .pipeline import Guider, Progress, check_fps_number, generate, profile_guider
from .roles import check_role
from .video import fit, from_uint8, to_uint8
from .windows import Frames, Window

COPIED = 32  # frames at a time


@dataclass(frozen=True)
class Told:
    """What every window of a stage is told alike.

    prompt, negative: as of `generate`; both may be empty.
    longest: frames of a window at most; None = as many as the model was trained on.
    fps_number: as of `Clip`.
    """

    prompt: str = ""
    negative: str = ""
    seed: int = 0
    guidance: Guider | None = None
    sampling: Sampling = Sampling()
    longest: int | None = None
    fps_number: float | None = None


class Stage(ABC):
    """Makes a clip, window by window.

    windows: in their order. frames, height, width: of the result. speed: its frames a second to those of the
    clip that it starts from.

    Raises:
        ValueError: windows of a single frame, a size or tile that is no multiple of the VAE's factor, or an
            fps_number for a model without.
    """

    windows: Sequence[Window]
    height: int
    width: int
    speed = 1.0

    def __init__(self, model: UniVid, told: Told):
        self.model, self.told, self.sampling = model, told, told.sampling
        self.longest = model.profile.frames if told.longest is None else told.longest
        if self.longest < 2:
            raise ValueError(f"a window must have at least 2 frames, got {self.longest}; give more.")
        if model.config.vae is None:
            raise ValueError("this checkpoint holds no VAE, which is needed here; load one that does.")
        check_fps_number(model, told.fps_number)

    def _sized(self, height: int, width: int) -> None:
        """Make frames of that size."""
        factor = self.model.config.vae.factor
        check_size(height, width, factor)
        tile_cells(self.sampling.tile, factor)
        self.height, self.width = height, width

    @property
    def frames(self) -> int:
        return self.windows[-1].end

    def needed(self, dtype: torch.dtype, device: torch.device) -> int:
        """Bytes that its longest window takes on a device beside the weights."""
        told, profile = self.told, self.model.profile
        guider = told.guidance or profile_guider(profile)
        branches = len(guider.plan(bool(told.prompt.strip() or told.negative.strip()), self.pictured))
        longest = max(window.frames for window in self.windows)
        return memory.needed(
            self.model.config, clips=1, branches=branches, size=(longest, self.height, self.width),
            dtype=dtype, device=device, tile=self.sampling.tile,
        )  # fmt: skip

    @property
    def pictured(self) -> bool:
        """Whether the image stream is shown something."""
        return False

    @abstractmethod
    def make(self, window: Window, made: Frames, callback: Progress | None = None) -> np.ndarray:
        """The new frames of a window, uint8 `[window.end - window.new h w 3]`.

        made: the result's frames before `window.new`.
        """

    def _generate(
        self, window: Window, source: Source, callback: Progress | None, clip: Clip = Clip(), **more  # noqa: B008
    ) -> np.ndarray:  # fmt: skip
        told = self.told
        video = generate(
            self.model, told.prompt, negative=told.negative, guidance=told.guidance, seed=told.seed,
            clip=replace(clip, start=window.start, fps_number=told.fps_number), source=source,
            sampling=self.sampling, callback=callback, **more,
        )  # fmt: skip
        return to_uint8(video[:, :, window.new - window.start :])


class Begin(Stage):
    """A clip from words, a picture, or both, in one window: what a chain begins with.

    image: `[1 3 h w]` in -1..1, as of `generate`.
    """

    def __init__(
        self, model: UniVid, told: Told = Told(), *, clip: Clip = Clip(), image: Tensor | None = None,  # noqa: B008
        text_weight: float = 1.0, image_weight: float = 1.0,
    ):  # fmt: skip
        super().__init__(model, told)
        profile = model.profile
        size = {name: getattr(clip, name) or getattr(profile, name) for name in ("frames", "height", "width")}
        self.clip = replace(clip, **size)
        self._sized(size["height"], size["width"])
        self.steered = {"image": image, "text_weight": text_weight, "image_weight": image_weight}
        self.windows = (Window(0, size["frames"], 0),)

    @property
    def pictured(self) -> bool:
        return self.steered["image"] is not None and self.steered["image_weight"] > 0

    def make(self, window: Window, made: Frames, callback: Progress | None = None) -> np.ndarray:
        return self._generate(window, Source(), callback, self.clip, **self.steered)


class Following(Stage):
    """A stage that starts from the frames of a clip.

    Raises:
        ValueError: a clip without frames, or a model of another role.
    """

    role: str

    def __init__(self, model: UniVid, source: Frames, told: Told):
        super().__init__(model, told)
        name = type(self).__name__.lower()
        check_role(model.profile, self.role, name)
        if not len(source):
            raise ValueError(f"{name} needs a clip of at least 1 frame, got none; give another video.")
        self.source, self.before = source, source[0:1].shape[1:3]

    def _around(self, window: Window, known: np.ndarray, callback: Progress | None) -> np.ndarray:
        """The frames of a window that is made around its known ones."""
        places = [frame - window.start for frame in window.known]
        video = np.zeros((window.frames, self.height, self.width, 3), np.uint8)
        video[places] = known
        return self._generate(window, Source(from_uint8(video), known=tuple(places)), callback)


class Interpolate(Following):
    """`factor - 1` new frames between each two (Show-1 3.4); the source's are unchanged.

    Raises:
        ValueError: a factor below 2, or another kind of model. A single frame stays one.
    """

    role = "known"

    def __init__(self, model: UniVid, source: Frames, told: Told = Told(), *, factor: int = 4):  # noqa: B008
        super().__init__(model, source, told)
        if factor < 2:
            raise ValueError(f"factor must be a whole number of at least 2, got {factor}.")
        self._sized(*self.before)
        self.factor, self.speed = factor, float(factor)
        between = windows.interpolation(len(source), factor, self.longest)
        self.windows = tuple(between) or (Window(0, 1, 0, (0,)),)

    def make(self, window: Window, made: Frames, callback: Progress | None = None) -> np.ndarray:
        first, last = (window.known[place] // self.factor for place in (0, -1))
        known = self.source[first : last + 1]
        return known if window.frames == 1 else self._around(window, known, callback)


class Extend(Following):
    """The source, and `more` frames after it, each window from the last `known` ones before it.

    more, known: None = as of `windows.carried`.

    Raises:
        ValueError: no more frames, as many known ones as a window has, or another kind of model.
    """

    role = "known"

    def __init__(
        self, model: UniVid, source: Frames, told: Told = Told(), *,  # noqa: B008
        more: int | None = None, known: int | None = None,
    ):  # fmt: skip
        super().__init__(model, source, told)
        self.known, self.more = windows.carried(self.longest, known, more)
        self._sized(*self.before)
        there = len(source)
        copies = (range(a, min(there, a + COPIED)) for a in range(0, there, COPIED))
        self.windows = (
            *(Window(part.start, part.stop, part.start, tuple(part)) for part in copies),
            *windows.extension(there, self.more, self.known, self.longest),
        )

    def make(self, window: Window, made: Frames, callback: Progress | None = None) -> np.ndarray:
        if len(window.known) == window.frames:
            return self.source[window.start : window.end]
        return self._around(window, made[window.start : window.new], callback)


class Upscale(Following):
    """The source enlarged to (height, width) and refined (UniVG 3.2, Show-1 3.6).

    All frames share one field of noise; larger frames than the model was trained on are made in tiles, unless
    `told.sampling` says which. Each window goes on from the last frames of the one before.

    Raises:
        ValueError: a size below the source's, or another kind of model.
    """

    role = "upscale"

    def __init__(
        self, model: UniVid, source: Frames, told: Told = Told(), *, size: tuple[int, int] | None = None  # noqa: B008
    ):  # fmt: skip
        super().__init__(model, source, told)
        profile, factor = model.profile, model.config.vae.factor
        height, width = size or (profile.height, profile.width)
        if height < self.before[0] or width < self.before[1]:
            raise ValueError(
                f"expected a size of at least the video's {self.before[1]} x {self.before[0]}, got {width} x "
                f"{height}; ask for more."
            )
        self._sized(height, width)
        if self.sampling.tile is None:
            self.sampling = replace(self.sampling, tile=own_tile(profile, height, width, factor))
        self.windows = tuple(windows.sliding(len(source), self.longest))

    def make(self, window: Window, made: Frames, callback: Progress | None = None) -> np.ndarray:
        small = self.source[window.start : window.end]
        video = torch.empty(1, 3, len(small), self.height, self.width)
        for place, frame in enumerate(small):
            video[:, :, place] = fit(from_uint8(frame[None]), self.height, self.width)[:, :, 0]
        kept = from_uint8(made[window.start : window.new]) if window.known else None
        return self._generate(window, Source(video, kept=kept), callback)


def whole(stage: Stage, callback: Progress | None = None) -> np.ndarray:
    """All frames of a stage, uint8 `[t h w 3]`, in memory."""
    result = np.empty((stage.frames, stage.height, stage.width, 3), np.uint8)
    for window in stage.windows:
        result[window.new : window.end] = stage.make(window, result, callback)
    return result
