"""Animation (UniVG's F_A, 2401.09084 3.3): everything learns, the first frame joins the input in every frame.

UniVG drops text and picture with 0.1 each; what joins the input stays.
"""

from .conditions import Stage, shares_of

MODES = shares_of({"none": 0.01, "text": 0.09, "image": 0.09, "both": 0.81})
STAGE = Stage(trains=lambda name: True, modes=MODES, takes=("first",))
