"""One guided forward of the U-Net: time, memory and FLOPs beside diffusers' UNet3DConditionModel and a GEMM.

    python -m tests.bench_unet                   # CPU, fp32, widths 64 and 128, about three minutes
    python -m tests.bench_unet --profile         # and where our time goes, by part
    python -m tests.bench_unet --device DEVICE   # an accelerator: full size in bf16, torch.compile off and on

Guided: the two branches of classifier-free guidance in one batch, text alone, because the peer has no image
stream. All is as in the preset `paper` but the width; the weights are random.

- GFLOP: torch.utils.flop_counter on the meta device; a multiplication and an addition are two.
- seconds: median of the rounds. In a round every network runs once, then the GEMM, so that a machine that
  slows down slows them all.
- gemm: the rate of a large square matrix product, and the seconds in which that rate would do our FLOPs.
- peak MB: what building a network and its first forward add to this process's resident memory at most, from
  the kernel's high-water mark, reset before (Linux); on an accelerator the same of its allocator, warm.

The last lines, of the last width: `ratio`, our seconds over the second network's (diffusers, or ours
compiled), and `gemm`, our share of the measured peak.
"""

import argparse
import ctypes
import dataclasses
import gc
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from univid.blocks import TemporalTransformer
from univid.conditioning import Conditioning
from univid.config import PAPER, UNetConfig
from univid.layers import DualCrossAttention, FeedForward, PSTAttention, PSTConv, SelfAttention
from univid.unet import UNet

Built = tuple[
    nn.Module, Callable
]  # a network, and its forward of (x [b c t h w], timesteps [b], text [b n d])
Build = Callable[[int], Built]  # of a width

CPU = {"widths": (64, 128), "size": (24, 20, 36), "rounds": 3}
ACCELERATOR = {"widths": (PAPER.unet.model_channels,), "size": (24, 40, 72), "rounds": 10}

PARTS = {
    nn.Conv2d: "Conv2d",
    PSTConv: "PSTConv",
    SelfAttention: "SelfAttn",
    PSTAttention: "PSTAttn",
    DualCrossAttention: "CrossAttn_Dual",
    FeedForward: "FeedForward",
    TemporalTransformer: "TemAttn",
    nn.GroupNorm: "GroupNorm",
    nn.LayerNorm: "LayerNorm",
}
REST = "the rest (Linear, SiLU, sums)"


def config_of(width: int) -> UNetConfig:
    """The preset `paper` at another width; a head and a norm group are never wider than the network."""
    head, groups = min(width, PAPER.unet.head_channels), min(width, PAPER.unet.norm_groups)
    return dataclasses.replace(PAPER.unet, model_channels=width, head_channels=head, norm_groups=groups)


def univid_unet(width: int) -> Built:
    network, weights = UNet(config_of(width)).eval(), torch.tensor([[1.0, 0.0]] * 2, device="cpu")
    return network, lambda x, timesteps, text: network(x, timesteps, Conditioning(text, None, weights))


def compiled_unet(width: int) -> Built:
    network, forward = univid_unet(width)
    network.compile()
    return network, forward


def diffusers_unet(width: int) -> Built:
    """The peer with the same widths and heads.

    Its first temporal transformer has 8 heads at any width, which at width 64 would be 40 % of all FLOPs;
    here that layer shrinks with the others.
    """
    from diffusers import UNet3DConditionModel
    from diffusers.models import TransformerTemporalModel

    config = config_of(width)
    network = UNet3DConditionModel(
        block_out_channels=tuple(width * mult for mult in config.channel_mult),
        layers_per_block=config.num_res_blocks,
        norm_num_groups=config.norm_groups,
        cross_attention_dim=config.context_dim,
        attention_head_dim=config.head_channels,
    )
    heads, head = max(1, round(8 * width / PAPER.unet.model_channels)), config.head_channels
    network.transformer_in = TransformerTemporalModel(heads, head, width, norm_num_groups=config.norm_groups)
    return network.eval(), network


class Case:
    """A network at one width and its input: `run()` is one forward of two branches."""

    def __init__(self, build: Build, width: int, size: tuple[int, int, int], device):
        with torch.device(device):
            self.network, self.forward = build(width)
            x = torch.randn(2, PAPER.unet.in_channels, *size)
            text = torch.randn(2, PAPER.text.context_length, PAPER.unet.context_dim)
            self.inputs = x, torch.full((2,), 500), text

    @torch.inference_mode()
    def run(self) -> None:
        self.forward(*self.inputs)


class Gemm:
    """A square matrix product, large enough for the rate that the machine can reach."""

    def __init__(self, device: torch.device):
        size = 3072 if device.type == "cpu" else 16384
        self.a, self.b, self.out = (torch.randn(size, size, device=device) for _ in range(3))
        self.flops = 2 * size**3

    def run(self) -> None:
        torch.mm(self.a, self.b, out=self.out)


def by_part(case: Case, meter: Callable[[], float]) -> Counter:
    """What `meter` gains inside each part of the network in one forward. Its hooks stay."""
    total, starts = Counter(), []

    def watch(module: nn.Module) -> None:
        for child in module.children():
            if part := PARTS.get(type(child)):
                child.register_forward_pre_hook(lambda *_: starts.append(meter()))
                child.register_forward_hook(lambda *_, p=part: total.update({p: meter() - starts.pop()}))
            else:
                watch(child)

    watch(case.network)
    before = meter()
    case.run()
    total[REST] = meter() - before - total.total()
    return total


def clock(device: torch.device) -> float:
    """Seconds, once all that was asked of the device is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def load(make: Callable[[], Case], device: torch.device) -> tuple[Case, int]:
    """Build a case, run it once, and say how many bytes that took at most."""
    gc.collect()
    if device.type == "cpu":
        ctypes.CDLL(None).malloc_trim(0)  # what the last case left free has to count when this one takes it
        Path("/proc/self/clear_refs").write_text("5")
        before, case = resident("VmRSS"), make()
        case.run()
        return case, resident("VmHWM") - before
    before, case = torch.accelerator.memory_allocated(), make()
    case.run()  # compiles and tunes
    torch.accelerator.reset_peak_memory_stats()
    case.run()
    return case, torch.accelerator.max_memory_allocated() - before


def resident(field: str) -> int:
    """Bytes of memory of this process: VmRSS now, VmHWM at most since the reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def medians(cases: dict[str, Case | Gemm], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each case's `run`, the cases taking turns."""
    times = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            start = clock(device)
            case.run()
            times[name].append(clock(device) - start)
    return {name: statistics.median(values) for name, values in times.items()}


def bench(builds: dict[str, Build], width: int, args: argparse.Namespace) -> tuple[float, float]:
    """Print one width's tables; seconds of the first network over the second's, and its share of the peak."""
    device = torch.device(args.device)
    gemm = Gemm(device)
    gemm.run()
    cases, flops, peaks = {}, {}, {"gemm": 3 * gemm.a.nbytes}
    for name, build in builds.items():
        with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
            flops[name] = by_part(Case(build, width, args.size, "meta"), counter.get_total_flops)
        cases[name], peaks[name] = load(lambda b=build: Case(b, width, args.size, device), device)
    seconds = medians(cases | {"gemm": gemm}, args.rounds, device)
    (first, second), totals = builds, {name: parts.total() for name, parts in flops.items()}
    peak_rate = gemm.flops / seconds["gemm"]
    totals["gemm"], seconds["gemm"] = totals[first], totals[first] / peak_rate
    size, where = " x ".join(map(str, args.size)), f"{device}, {args.threads} CPU threads"
    print(f"\nwidth {width}, 2 x {size} latents, {gemm.a.dtype}, {where}, median of {args.rounds}")
    print(f"{'':16}{'GFLOP':>10}{'seconds':>10}{'GFLOP/s':>10}{'of gemm':>10}{'peak MB':>10}")
    for name, total in totals.items():
        rate = total / seconds[name]
        print(f"{name:16}{total / 1e9:10.1f}{seconds[name]:10.3f}{rate / 1e9:10.1f}", end="")
        print(f"{rate / peak_rate:10.2f}{peaks[name] / 1e6:10.0f}")
    if args.profile:
        print_profile(by_part(cases[first], lambda: clock(device)), flops[first])
    return seconds[first] / seconds[second], seconds["gemm"] / seconds[first]


def print_profile(seconds: Counter, flops: Counter) -> None:
    print(f"\n{'part':<32}{'seconds':>10}{'share':>8}{'GFLOP':>10}{'GFLOP/s':>10}")
    for part, duration in seconds.most_common():
        print(f"{part:<32}{duration:10.3f}{duration / seconds.total():8.1%}", end="")
        print(f"{flops[part] / 1e9:10.1f}{flops[part] / duration / 1e9:10.1f}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu, or an accelerator as torch names it")
    parser.add_argument("--widths", type=int, nargs="+", help="model_channels of each table")
    parser.add_argument("--size", type=int, nargs=3, metavar=("T", "H", "W"), help="frames, height, width")
    parser.add_argument("--rounds", type=int, help="runs that a median is taken of")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--profile", action="store_true", help="also print the time of each part")
    args = parser.parse_args(argv)

    on_cpu = torch.device(args.device).type == "cpu"
    for name, value in (CPU if on_cpu else ACCELERATOR).items():
        setattr(args, name, getattr(args, name) or value)
    torch.set_num_threads(args.threads)
    builds = {"univid": univid_unet}
    if on_cpu:
        builds["diffusers"] = diffusers_unet
        for build in builds.values():  # the libraries' own pages come in now, not in the first peak
            Case(build, 32, (2, 8, 8), "cpu").run()
    else:
        builds["univid compiled"] = compiled_unet
        torch.set_default_dtype(torch.bfloat16)
    for width in args.widths:
        ratio, share = bench(builds, width, args)
    print(f"\nratio {ratio:.2f}\ngemm {share:.2f}")


if __name__ == "__main__":
    main()
