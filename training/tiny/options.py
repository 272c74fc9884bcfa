"""What the tasks of the built-in model need to know beyond a recipe's own fields."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from training.config import Options
from training.options import check_shift
from training.stages.conditions import Stage

COUNTED = 12  # frames of the clips that a batch counts; of another length a step has as many frames in all


@dataclass(frozen=True)
class VaeOptions(Options):
    task = "vae"
    start = None  # of DecoderOptions
    size = 64  # pixels of a frame's side
    kl_weight: float


@dataclass(frozen=True)
class DecoderOptions(VaeOptions):
    """An autoencoder whose decoder alone learns on, at another size."""

    task = "decoder"
    start: str  # a checkpoint
    size: int


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
    whole_share: float = (
        0.8  # of clips that are spread over all of their source; the others are windows of it
    )
    centered_share: float = 0.0  # of samples whose path leads through the middle ...
    centered_within: float = 0.08  # ... by this many sides


@dataclass(frozen=True)
class ShapesOptions(Options):
    """The U-Net on the procedural set, in one of the stages of stages.py."""

    stage: ClassVar[Stage]
    joined = None  # of an expert, JoinedOptions: what joins the network's input

    preset: str
    vae: str  # runs: the autoencoder, the towers, and the U-Net to start from
    towers: str
    start: str | None
    start_spatial_only: bool
    data_seed: int
    clips: int  # of the set `data_seed`, each with so many moments
    moments: int
    lengths: Mapping[int, float]  # frames of a step's clips, and how often
    loss_weights: Mapping[str, float]  # by modality
    timestep_shift: Mapping[str, float]  # above 1: towards noise
    shown: ShownOptions

    def __post_init__(self):
        if self.clips < 1:
            raise ValueError(f"clips must be at least 1, got {self.clips}.")
        if not self.lengths or not all(1 < frames <= self.moments for frames in self.lengths):
            raise ValueError(
                f"lengths must be frames from 2 to the {self.moments} moments, got {dict(self.lengths)}."
            )
        check_shift("timestep_shift", self.timestep_shift)
