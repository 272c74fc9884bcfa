"""What changes how a model runs, and leaves it the model that was trained: one file each."""

from .dynamics import Dynamics
from .plane import Masks
from .reuse import Reuse
from .steering import Steering
from .windows import FrameWindows

__all__ = ["Dynamics", "FrameWindows", "Masks", "Reuse", "Steering"]
