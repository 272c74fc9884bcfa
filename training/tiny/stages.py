"""The stages of the built-in network: the paper's three, two more on pictures, and an expert's."""

from dataclasses import dataclass

from training.options import JoinedOptions
from training.stages import adapters, joint, t2v
from training.stages.conditions import BOTH, IMAGE, IMAGE_ONLY, NONE, TEXT, Stage

from .options import ShapesOptions


class TextToVideo(ShapesOptions):
    """Stage 1."""

    task, stage = "t2v", t2v.STAGE


class Adapters(ShapesOptions):
    """Stage 2."""

    task, stage = "adapters", adapters.STAGE


class Joint(ShapesOptions):
    """Stage 3."""

    task, stage = "joint", joint.STAGE


class Pictures(ShapesOptions):
    """Stage 3 with pictures first: mostly under a picture, and under one alone most of all."""

    task = "pictures"
    stage = Stage(joint.STAGE.trains, {NONE: 0.03, TEXT: 0.12, IMAGE: 0.2, IMAGE_ONLY: 0.4, BOTH: 0.25})


class Steering(ShapesOptions):
    """Stage 3 to the end: a picture alone is shown as often as text alone."""

    task = "steering"
    stage = Stage(joint.STAGE.trains, {NONE: 0.05, TEXT: 0.25, IMAGE: 0.15, IMAGE_ONLY: 0.3, BOTH: 0.25})


@dataclass(frozen=True)
class Known(ShapesOptions):
    """An expert that is shown some frames of a clip and makes the others, under words or none."""

    task = "known"
    stage = Stage(joint.STAGE.trains, {NONE: 0.3, TEXT: 0.4, IMAGE: 0.1, BOTH: 0.2})

    joined: JoinedOptions = JoinedOptions("known")
