"""Options of clips that are longer than a model's own, and of what their first noise is made of.

Imports no torch, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .steer import Steering

NEEDS = {  # option: those of which it needs one
    "stride": ("windows",),
    "window_references": ("windows",),
    "free_noise": ("windows",),
    "init_cutoff": ("free_init", "frame_init"),
    "init_level": ("free_init", "frame_init"),
    "frame_init": ("image",),
}


def steering(parser: argparse.ArgumentParser) -> None:
    """Windows inside the layers, FreeNoise, FreeInit, FrameInit."""
    group = parser.add_argument_group("longer and steadier clips")
    group.add_argument(
        "--windows",
        type=int,
        metavar="W",
        help="for more --frames than the model was trained on: attention over time sees W of them at a time, "
        "2 or more; the length of training suits",
    )
    group.add_argument(
        "--stride",
        type=int,
        metavar="S",
        help="frames from window to window, 1 to W (default: a quarter of W)",
    )
    group.add_argument(
        "--window-references",
        choices=("window", "clip"),
        help="frames that every frame looks at: of its window, or spread over the clip (default: window)",
    )
    group.add_argument(
        "--free-noise",
        action="store_true",
        help="every window starts from the same noises in another order (FreeNoise); needs --windows",
    )
    group.add_argument(
        "--free-init",
        type=int,
        metavar="N",
        help="make the clip N times, each from the low frequencies of the one before (FreeInit): N times as "
        "long; 2 to 5 are usual",
    )
    group.add_argument(
        "--frame-init",
        action="store_true",
        help="start from the low frequencies of the picture under noise (FrameInit); needs --image",
    )
    group.add_argument(
        "--init-cutoff",
        type=float,
        metavar="D",
        help="for both: where low frequencies end, as a share of the highest (default: 0.25)",
    )
    group.add_argument(
        "--init-level",
        type=float,
        metavar="T",
        help="for both: how much noise clip or picture are under, above 0 to 1, as a share of the timesteps; "
        "less noise keeps more of them (default: 0.85)",
    )


def asked(args: argparse.Namespace, steering: Steering) -> dict:
    """What `pipeline.Sampling` takes of it; of a command without these options nothing but `steering`.

    Raises:
        ValueError: a number out of range, or an option that has no part.
    """
    from .noise import LowBand
    from .steer import FrameWindows

    if not hasattr(args, "windows"):
        return {"steering": steering}
    for name, needed in NEEDS.items():
        if getattr(args, name) not in (None, False) and not any(getattr(args, other) for other in needed):
            wanted = " or ".join(map(_option, needed))
            raise ValueError(f"{_option(name)} does nothing without {wanted}; give that too.")
    given = {"cutoff": args.init_cutoff, "level": args.init_level, "runs": args.free_init}
    low_band = LowBand(
        picture=args.frame_init, **{name: value for name, value in given.items() if value is not None}
    )
    if args.windows is None:
        return {"low_band": low_band, "steering": steering}
    stride = max(1, args.windows // 4) if args.stride is None else args.stride
    windows = FrameWindows(args.windows, stride, args.window_references or "window")
    return {
        "low_band": low_band,
        "steering": dataclasses.replace(steering, windows=windows),
        "free_noise": args.free_noise,
    }


def said(sampling) -> Mapping[str, str | bool | int | float | None]:
    """A `pipeline.Sampling`'s, by the names of the options; None = it had no part."""
    windows, band = sampling.steering.windows, sampling.low_band
    used = band.runs > 1 or band.picture
    return {
        "windows": windows and windows.length,
        "stride": windows and windows.stride,
        "window_references": windows and windows.references,
        "free_noise": sampling.free_noise or None,
        "free_init": band.runs if band.runs > 1 else None,
        "frame_init": band.picture or None,
        "init_cutoff": band.cutoff if used else None,
        "init_level": band.level if used else None,
    }


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
