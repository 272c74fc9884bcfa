"""How a call of the network runs under the `Steering` of a MODEL, as its transformer options have it."""

from collections.abc import Callable, Hashable

from torch import Tensor

from ...univid.steer import Steering

STEERING = "univid_steering"  # transformer option: a Steering
ALONE = "univid_alone"  # transformer option: whether every frame is a clip of its own in this call
KEPT = "univid_kept"  # transformer option: the Kept of the run that is on


def steering_of(options: dict) -> Steering:
    """That of transformer options."""
    return options.get(STEERING, Steering())


def acting(options: dict, progress: Tensor) -> Callable[[Tensor], dict]:
    """How the network runs on a part of the frames, as its keyword arguments.

    progress: of the sampling, one for every frame of the call.
    """
    steering, kept, alone = steering_of(options), options.get(KEPT), options.get(ALONE, False)
    if steering.dynamics is not None:  # else nothing waits for the device
        steering = steering.at(progress[0].item())
    if kept is None:
        return lambda x: {"steering": steering, "alone": alone}
    kept.begin(options["sigmas"][0].item())
    clips = _clips(options, alone)
    return lambda x: {"steering": steering, "alone": alone, "kept": kept.ask(clips, x)}


def _clips(options: dict, alone: bool) -> list[Hashable]:
    """What each clip of a call is, the same in every step: its branch, its window, who patches the network.

    Guidance that runs a branch once more under a patch (PAG) asks another question.
    """
    window = options.get("context_window")
    frames = None if window is None else tuple(window.index_list)
    patches = [(kind, *map(id, found)) for kind, found in options.get("patches", {}).items()]
    for kind, found in options.get("patches_replace", {}).items():
        patches += [(kind, place, id(patch)) for place, patch in found.items()]
    branches = options.get("uuids") or options["cond_or_uncond"]
    return [(branch, frames, alone, tuple(patches)) for branch in branches]
