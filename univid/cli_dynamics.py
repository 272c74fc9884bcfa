"""Arguments of livelier motion and of reused steps. Imports no torch, so that --help answers at once."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .steer import Steering


def add(parser: argparse.ArgumentParser) -> None:
    """The groups of a command that samples."""
    group = parser.add_argument_group("motion (default: as the model was trained)")
    group.add_argument(
        "--dynamics",
        type=float,
        metavar="SIGMA",
        help="livelier: attention over time leans towards frames nearer than so many; 0.5 much, 2 little",
    )
    group.add_argument(
        "--dynamics-share",
        type=float,
        metavar="S",
        help="0 to 1, the share of the sampling in which it does, from its begin (default: 0.3)",
    )
    group.add_argument(
        "--temporal-guidance",
        type=float,
        metavar="S",
        help="away from what each frame would be alone; 0 is none, try 0.5 to 2; for one more call "
        "of the network a step",
    )
    group = parser.add_argument_group("reuse (default: the whole network in every step)")
    group.add_argument("--reuse", type=int, metavar="N", help="run all of it every Nth step only; faster")
    group.add_argument(
        "--reuse-blocks",
        type=int,
        metavar="K",
        help="the last output blocks that run in every step (default: 1)",
    )


def steering(args: argparse.Namespace) -> Steering:
    """What was asked for.

    Raises:
        ValueError: an option that does nothing without another, or a number out of range.
    """
    from .steer import Dynamics, Reuse, Steering

    for option, needed in (("dynamics_share", "dynamics"), ("reuse_blocks", "reuse")):
        if getattr(args, option) is not None and getattr(args, needed) is None:
            raise ValueError(
                f"--{option.replace('_', '-')} does nothing without --{needed}; give both, or neither."
            )
    dynamics = reuse = None
    if args.dynamics is not None:
        share = {} if args.dynamics_share is None else {"share": args.dynamics_share}
        dynamics = Dynamics(args.dynamics, **share)
    if args.reuse is not None:
        reuse = Reuse(args.reuse, **({} if args.reuse_blocks is None else {"blocks": args.reuse_blocks}))
    return Steering(dynamics=dynamics, temporal_guidance=args.temporal_guidance or 0.0, reuse=reuse)


def settings(steering: Steering) -> dict[str, float | int | None]:
    """By the names of the options, for a receipt; None = it had no part."""
    dynamics, reuse = steering.dynamics, steering.reuse
    return {
        "dynamics": dynamics and dynamics.sigma,
        "dynamics_share": dynamics and dynamics.share,
        "temporal_guidance": steering.temporal_guidance or None,
        "reuse": reuse and reuse.every,
        "reuse_blocks": reuse and reuse.blocks,
    }
