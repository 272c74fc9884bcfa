"""Memory of `python -m univid upscale` for a long, large clip, above what weights and libraries take.

    python -m tests.bench_chain                              # 240 frames to 1280 x 720, one step a window
    python -m tests.bench_chain --frames 24 --tile 512       # fewer frames, larger tiles

A model with random weights and the built-in one's widths, without PSTAttn, that starts from biased noise. Two
processes: one loads it and ends, the other upscales a video of a quarter of the size. The last line is by how
much the second one's high-water mark of resident memory is above the first one's.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from univid import checkpoints
from univid.checkpoints.native import meta_modules
from univid.config import BiasedNoiseProfile, StartProfile
from univid.initialization import initialize
from univid.model import UniVid
from univid.presets import PROFILES, TINY
from univid.video import write_frames

LOAD = "import sys, univid.cli_cascade; from univid import load; load(sys.argv[1], device='cpu')"


def write_model(path: Path, tile: int) -> None:
    """The checkpoint; its profile asks for frames of one tile."""
    temporal = dataclasses.replace(TINY.unet.temporal, segment_frames=())
    config = dataclasses.replace(TINY, unet=dataclasses.replace(TINY.unet, temporal=temporal), vision=None)
    config = dataclasses.replace(config, unet=dataclasses.replace(config.unet, image_stream=None))
    parts = meta_modules(config)
    generator = torch.Generator().manual_seed(0)
    for part in parts.values():
        for parameter in part.to_empty(device="cpu").parameters():
            parameter.data.normal_(std=0.02, generator=generator)
    initialize(parts["unet"], 0)
    start = StartProfile(None, 1.0, BiasedNoiseProfile(0, 700))
    profile = dataclasses.replace(PROFILES["tiny"], height=tile, width=tile, start=start)
    checkpoints.save(path, UniVid(config, profile, info={"source": "random weights"}, **parts))


def peak(command: list) -> float:
    """Megabytes of a process at most."""
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"expected status 0, got {status} of {command}")
    return usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=240)
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, video, out = (Path(folder) / name for name in ("model.safetensors", "in.mp4", "out.mp4"))
        write_model(model, options.tile)
        size = (options.height // 4, options.width // 4)
        noise = np.random.default_rng(0).integers(0, 256, (options.frames, *size, 3), np.uint8)
        write_frames(noise, video, 8.0)
        alone = peak(["-c", LOAD, model])
        words = [
            f"--{name}={getattr(options, name)}" for name in ("height", "width", "tile", "window", "steps")
        ]
        started = time.perf_counter()
        most = peak(
            ["-m", "univid", "upscale", "--video", video, "--checkpoint", model, *words, "--out", out]
        )
        seconds = time.perf_counter() - started
    print(f"loaded   {alone:8,.0f} MB")
    size = f"{options.width} x {options.height}"
    print(f"upscaled {most:8,.0f} MB, {options.frames} frames of {size} in {seconds:.0f} s")
    print(f"above    {most - alone:8,.0f} MB")


if __name__ == "__main__":
    main()
