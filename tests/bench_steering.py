"""What dynamics, temporal guidance and reuse do to the built-in model's clips, read back by its scorer.

    python -m tests.bench_steering --clips 16                             # all of it
    python -m tests.bench_steering --clips 16 --only motion --given picture
    python -m tests.bench_steering --clips 16 --only start --ode

With --ode they are sampled as full-size models are, by a solver of the ODE under guidance, where the first
noise says what a clip will be; else as the model's profile says, by lcm, which draws new noise in every step.

Motion: clips from text alone and from a picture alone, the same noise in every row. Start: clips three times
as long as a window, with each window's noise its own or the same, and clips whose noise has the low bands
of runs before. Reuse: 20 steps beside as many whole steps as cost the same. Costs: of a step that reuses, in
shares of a whole one, by torch's counter of operations on the meta device; those of the full-size network are
at 24 frames of 576 x 320.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from training.tiny import shapes
from training.tiny.evaluate import ROWS, conditions
from training.tiny.scorer import Reading, read
from training.tiny.table import mean, unbounded_mean
from univid import Sampling, generate, load
from univid.conditioning import Conditioning
from univid.config import UNetConfig
from univid.model import UniVid
from univid.noise import LowBand
from univid.pipeline import Clip
from univid.presets import PAPER, TINY
from univid.steer import Dynamics, FrameWindows, Reuse, Steering
from univid.steer.reuse import Kept
from univid.unet import UNet
from univid.video import to_uint8

BATCH = 8
GIVEN = {"text": "T2V, seen", "picture": "I2V"}
MOTION = {
    "as trained": Steering(),
    "sigma 2": Steering(dynamics=Dynamics(2.0)),
    "sigma 1": Steering(dynamics=Dynamics(1.0)),
    "sigma 0.5": Steering(dynamics=Dynamics(0.5)),
    "temporal guidance 0.5": Steering(temporal_guidance=0.5),
    "temporal guidance 1": Steering(temporal_guidance=1.0),
    "temporal guidance 2": Steering(temporal_guidance=2.0),
    "sigma 1, temporal guidance 1": Steering(dynamics=Dynamics(1.0), temporal_guidance=1.0),
}
LONG, WINDOWS = 36, FrameWindows(12, 4)
START = {  # by frames; FreeInit costs a whole run more for each
    LONG: {
        "as it is": Sampling(),
        "windows of 12, stride 4": Sampling(steering=Steering(windows=WINDOWS)),
        "the same with FreeNoise": Sampling(steering=Steering(windows=WINDOWS), free_noise=True),
        "FreeInit, 2 runs": Sampling(low_band=LowBand(runs=2)),
    },
    12: {
        "as it is": Sampling(),
        "FreeInit, 2 runs": Sampling(low_band=LowBand(runs=2)),
        "FreeInit, 3 runs": Sampling(low_band=LowBand(runs=3)),
    },
}
ODE = {"steps": 10, "sampler": "dpmpp_2m"}
GUIDANCE = 3.0
REUSE = [(2, 1), (2, 2), (2, 4), (3, 2)]
STEPS = 20


@dataclass(frozen=True)
class Cost:
    """Operations of a whole call of one clip, and shares of it.

    reusing: of a call that reuses, by its number of blocks from 1 on. alone: of one with every frame alone.
    """

    whole: int
    reusing: list[float]
    alone: float


def built_in(ode: bool) -> UniVid:
    model = load(dtype=torch.float32)
    if ode:
        guidance = dataclasses.replace(model.profile.guidance, scale=GUIDANCE)
        model.profile = dataclasses.replace(model.profile, guidance=guidance, **ODE)
    return model


def cost(config: UNetConfig, size: Sequence[int]) -> Cost:
    """Of latents (t, h, w)."""
    unet = UNet(config, device="meta")
    text = torch.empty(1, 77, config.context_dim, device="meta")
    image = torch.empty(1, 257, config.image_stream.width, device="meta")
    cond = Conditioning(text, image, torch.ones(1, 2))
    x, timesteps = torch.empty(1, 4, *size, device="meta"), torch.empty(1, device="meta")

    def flops(**how) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            unet(x, timesteps, cond, **how)
        return counter.get_total_flops()

    whole, reusing = flops(), []
    for blocks in range(1, len(unet.output_blocks) + 1):
        kept = Kept(Reuse(2, blocks))
        for step in (0, 1):
            kept.begin(step)
            found = flops(kept=kept.ask(["clip"], x))
        reusing.append(found / whole)
    return Cost(whole, reusing, flops(alone=True) / whole)


def readings(
    model: UniVid, name: str, clips: int, sampling: Sampling, frames: int | None = None
) -> list[Reading]:
    """Clips of a row of the evaluation's protocol, or longer ones, as the scorer reads them."""
    row, found = ROWS[name], []
    for start in tqdm(range(0, clips, BATCH), desc=f"{name}, {sampling.steering}", leave=False):
        asked = conditions(row, range(start, min(clips, start + BATCH)), model.profile)
        pictures = None
        if row.given != "text":
            pictures = shapes.to_video(torch.from_numpy(np.stack([c.picture for c in asked]))[:, None])[
                :, :, 0
            ]
        video = generate(
            model,
            [c.text.caption if c.text else "" for c in asked],
            pictures,
            text_weight=row.weights[0],
            image_weight=row.weights[1],
            seed=row.seed + start,
            clip=Clip(frames=frames),
            sampling=sampling,
        )
        found += [read(to_uint8(clip)) for clip in video.split(1)]
    return found


def path_length(reading: Reading) -> float:
    """How far the shape goes from frame to frame, in sides of the frame, all together."""
    return float(np.nansum(np.linalg.norm(np.diff(reading.positions, axis=0), axis=1)))


def line(name: str, found: Sequence[Reading]) -> str:
    """One row: shares and means with 95 % intervals."""
    steady = mean([reading.steadiness for reading in found])
    path = unbounded_mean([path_length(reading) for reading in found])
    share = np.mean([reading.moves for reading in found])
    return (
        f"| {name} | {100 * np.mean([r.found for r in found]):.0f} | {100 * share:.0f} | {path['value']:.2f} "
        f"[{path['low']:.2f}, {path['high']:.2f}] | {100 * steady['value']:.1f} "
        f"[{100 * steady['low']:.1f}, {100 * steady['high']:.1f}] |"
    )


def head(first: str) -> str:
    return f"| {first} | found | moves | path, sides | consistency |\n| --- | ---: | ---: | ---: | ---: |"


def motion(model: UniVid, clips: int, given: Sequence[str]) -> None:
    for row in (GIVEN[name] for name in given):
        print(head(row))
        for name, steering in MOTION.items():
            print(line(name, readings(model, row, clips, Sampling(steering=steering))), flush=True)


def start(model: UniVid, clips: int) -> None:
    for frames, samplings in START.items():
        print(head(f"{GIVEN['text']}, {frames} frames"))
        for name, sampling in samplings.items():
            print(line(name, readings(model, GIVEN["text"], clips, sampling, frames)), flush=True)


def reuse(model: UniVid, clips: int) -> None:
    profile = model.profile
    shares = cost(TINY.unet, (profile.frames, profile.height // 8, profile.width // 8)).reusing
    plain, row = {}, GIVEN["text"]
    print(head(row))

    def whole(steps: int) -> None:
        if steps not in plain:
            plain[steps] = readings(model, row, clips, Sampling(steps=steps))
        print(line(f"{steps} whole steps", plain[steps]), flush=True)

    whole(STEPS)
    for every, blocks in REUSE:
        first = -(-STEPS // every)
        calls = first + (STEPS - first) * shares[blocks - 1]
        steering = Steering(reuse=Reuse(every, blocks))
        name = f"{STEPS} steps, N {every}, blocks {blocks}: the cost of {calls:.1f}"
        print(line(name, readings(model, row, clips, Sampling(STEPS, steering=steering))), flush=True)
        whole(round(calls))


def costs() -> None:
    for name, config, size in (("paper", PAPER, (24, 40, 72)), ("built-in", TINY, (12, 8, 8))):
        found = cost(config.unet, size)
        print(
            f"{name}: {found.whole / 1e12:.3f} TFLOP a whole call; every frame alone {found.alone:.3f} of it"
        )
        print("blocks, share of a call that reuses, speed at N = 2, 3, 5")
        for blocks, share in enumerate(found.reusing, start=1):
            gains = ", ".join(f"{n / (1 + (n - 1) * share):.2f}" for n in (2, 3, 5))
            print(f"  {blocks:2} {share:.3f}  {gains}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=16, metavar="N")
    parser.add_argument("--only", choices=("motion", "start", "reuse", "costs"))
    parser.add_argument("--given", choices=tuple(GIVEN), nargs="+", default=tuple(GIVEN), help="of motion")
    parser.add_argument("--ode", action="store_true", help="10 steps of dpmpp_2m under guidance of 3")
    args = parser.parse_args()
    if args.only in (None, "costs"):
        costs()
    if args.only in (None, "motion"):
        motion(built_in(args.ode), args.clips, args.given)
    if args.only in (None, "start"):
        start(built_in(args.ode), args.clips)
    if args.only in (None, "reuse"):
        reuse(built_in(args.ode), args.clips)


if __name__ == "__main__":
    main()
