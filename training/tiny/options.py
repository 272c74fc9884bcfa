"""What the tasks of the built-in model need to know beyond a recipe's own fields."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from training.config import Options
from training.options import check_shift
from training.stages.conditions import Stage


@dataclass(frozen=True)
class VaeOptions(Options):
    task = "vae"
    kl_weight: float


@dataclass(frozen=True)
class TowersOptions(Options):
    task = "towers"


@dataclass(frozen=True)
class VisionOptions(Options):
    task = "vision"
    start: str  # the run whose towers learn on


@dataclass(frozen=True)
class ShownOptions:
    """Which clips and frames of the procedural set are shown, and how."""

    places: bool = False  # whether a single frame may be shown with its place in the clip
    picture_of_clip: bool = False  # whether such a frame's picture is one of any frame of its clip
    still_share: float = 0.5  # of single frames whose caption leaves out the motion
    centered_share: float = 0.0  # of samples whose path leads through the middle ...
    centered_within: float = 0.08  # ... by this many sides


@dataclass(frozen=True)
class ShapesOptions(Options):
    """The U-Net on the procedural set, in one of the stages of stages.py."""

    stage: ClassVar[Stage]

    preset: str
    vae: str  # runs: the autoencoder, the towers, and the U-Net to start from
    towers: str
    start: str | None
    start_spatial_only: bool
    data_seed: int
    clips: int
    frames: int
    frame_stride: int
    loss_weights: Mapping[str, float]  # by modality
    timestep_shift: Mapping[str, float]  # above 1: towards noise
    shown: ShownOptions

    def __post_init__(self):
        if min(self.clips, self.frames, self.frame_stride) < 1:
            raise ValueError(
                f"clips, frames and frame_stride must be at least 1, got {self.clips}, {self.frames} and "
                f"{self.frame_stride}."
            )
        check_shift("timestep_shift", self.timestep_shift)
