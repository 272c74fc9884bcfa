"""What the tests of prepared data share; run as a program, it prepares data."""

import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from shards import pictures, read_all, write_tar

from training import distributed
from training.data.config import SourceConfig
from training.data.sources import open_source
from training.prepare import PrepareConfig, prepare
from training.tiny import shapes
from univid.video import write_video

BUCKETS = ((64, 64), (64, 128))
CLIP_FRAMES, FPS = 12, 8


def make_raw(folder):
    """Three tars of four small clips each, and one tar of pictures."""
    for shard in range(3):
        samples = {}
        for number in range(4):
            index = 4 * shard + number
            pixels, scene = shapes.clip(index, seed=0, frames=CLIP_FRAMES, size=64)
            if number % 2:
                pixels = np.concatenate([pixels, pixels], axis=2)
            write_video(shapes.to_video(torch.from_numpy(pixels)[None]), folder / "clip.mp4", FPS)
            height, width = pixels.shape[1:3]
            samples[f"{index:06d}"] = {
                "mp4": (folder / "clip.mp4").read_bytes(),
                "txt": scene.caption,
                "json": {"motion": index / 2, "width": width, "height": height, "caption": "another"},
            }
        write_tar(folder / "clips" / f"part-{shard}.tar", samples)
    write_tar(folder / "pictures" / "00000.tar", pictures(12))
    return folder


def make_config(base, out, clips):
    return PrepareConfig(
        str(base),
        Path(out),
        clips=SourceConfig((str(clips),)),
        buckets=BUCKETS,
        frames=CLIP_FRAMES,
        references=3,
    )


def run(config):
    return prepare(config, progress=False)


def contents(folder):
    """{name: bytes} of all files but the lock."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".lock"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def stored(out, kind, **settings):
    """Everything that can be read of prepared data, as training opens it."""
    return read_all(open_source(SourceConfig((str(out),), **settings), kind, BUCKETS))


def command(config):
    """What runs this file for a config of `make_config`."""
    assert config == make_config(*encoded(config))
    return [__file__, *encoded(config)]


def encoded(config):
    return [config.base, str(config.out), config.clips.paths[0]]


def environment():
    root = Path(__file__).parents[1]
    return os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(root)}


if __name__ == "__main__":
    if "slowly" in sys.argv:
        from training.data import encode

        fast = encode.Encoder.__call__
        encode.Encoder.__call__ = lambda self, samples: (time.sleep(0.05), fast(self, samples))[1]
    with distributed.process_group():
        run(make_config(*sys.argv[1:4]))
