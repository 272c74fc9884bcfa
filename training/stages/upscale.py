"""Super-resolution (UniVG's F_SR, 2401.09084 3.3): biased noise leads from a poor copy to the clip.

The copy is nothing but where the noise leads from; of conditions there is the text, dropped with 0.1.
PSTAttn, which at 720p costs as much as all else, is left out of the base.
"""

from . import t2v
from .conditions import Stage

STAGE = Stage(trains=t2v.STAGE.trains, modes=t2v.STAGE.modes, takes=("none",), upscales=True)
