"""One guided forward of an imported U-Net: time, memory and FLOPs beside diffusers' own, and a GEMM.

    python -m tests.bench_unet                   # CPU, fp32, widths 64 and 128, some minutes
    python -m tests.bench_unet --profile         # and where our time goes, by part
    python -m tests.bench_unet --device DEVICE   # an accelerator: full size in bf16, both compiled too

A UNet3DConditionModel with random weights (all as ZeroScope has it but the width), and ours with the same
weights, imported. Guided: the two branches of classifier-free guidance in one batch.

- GFLOP: torch.utils.flop_counter on the meta device; a multiplication and an addition are two.
- seconds: median of the rounds. In a round every network runs once, then the GEMM, so that a machine that
  slows down slows them all.
- of gemm: the rate beside that of a large square matrix product; the row `gemm` is our FLOPs at that rate.
- peak MB: the weights, and what a second forward adds to a process's resident memory at most: the kernel's
  high-water mark, reset before. Each network has a process of its own for it, in which every tensor has pages
  of its own from the first on (Linux with glibc), so that freed memory is not counted and scratch memory of
  the kernels is. On an accelerator the same of its allocator.

The outputs have to agree (1e-4 in fp32). The last lines, of the last width: `ratio`, our seconds over
diffusers', `memory`, our peak over theirs, and `gemm`, our share of the measured rate; on an accelerator the
first two once more for the compiled networks. There it also says what it is doing: compiling takes minutes.
"""

import argparse
import dataclasses
import gc
import multiprocessing
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.gpu.compiling import compiled as compiled_blocks
from univid.checkpoints.family_names import diffusers_family_unet
from univid.checkpoints.names import fetch, resolve
from univid.conditioning import Conditioning
from univid.config import UNetConfig
from univid.family import DoubleTemporalTransformer, StackLayer
from univid.layers import DualCrossAttention, FeedForward, SelfAttention
from univid.presets import FAMILY
from univid.unet import UNet

CPU = {"widths": (64, 128), "size": (24, 20, 36), "rounds": 3}
ACCELERATOR = {"widths": (FAMILY.unet.model_channels,), "size": (24, 40, 72), "rounds": 10}
TOLERANCE = {
    torch.float32: 1e-4,
    torch.bfloat16: 0.5,
}  # of values of about one; another network's differ more
BRANCHES = 2
# glibc reads these when a process starts: what is freed goes back to the system at once.
OWN_PAGES = {"MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_TRIM_THRESHOLD_": str(2**17)}

PARTS = {
    nn.Conv2d: "Conv2d",
    StackLayer: "temporal stack",
    SelfAttention: "SelfAttn",
    DualCrossAttention: "cross-attention",
    FeedForward: "FeedForward",
    DoubleTemporalTransformer: "temporal transformer",
    nn.GroupNorm: "GroupNorm",
    nn.LayerNorm: "LayerNorm",
}
REST = "the rest (Linear, SiLU, sums)"


def config_of(width: int) -> UNetConfig:
    """The preset `family` at another width; a head and a norm group are never wider than the network.

    The temporal transformer after the first convolution, 8 heads in the sources, shrinks with the others.
    """
    full, head = FAMILY.unet, min(width, FAMILY.unet.head_channels)
    heads = max(1, round(full.temporal.input_heads * width / full.model_channels))
    return dataclasses.replace(
        full,
        model_channels=width,
        head_channels=head,
        norm_groups=min(width, full.norm_groups),
        temporal=dataclasses.replace(full.temporal, input_heads=heads),
    )


def diffusers_unet(config: UNetConfig) -> nn.Module:
    """diffusers' network with random weights, the layers that it starts at zero too."""
    from diffusers import UNet3DConditionModel
    from diffusers.models import TransformerTemporalModel

    network = UNet3DConditionModel(
        block_out_channels=tuple(config.model_channels * mult for mult in config.channel_mult),
        layers_per_block=config.num_res_blocks,
        norm_num_groups=config.norm_groups,
        cross_attention_dim=config.context_dim,
        attention_head_dim=config.head_channels,
    )
    network.transformer_in = TransformerTemporalModel(
        config.temporal.input_heads,
        config.head_channels,
        config.model_channels,
        norm_num_groups=config.norm_groups,
    )
    for name, parameter in network.named_parameters():
        if ".conv4.3.weight" in name:
            nn.init.normal_(parameter, std=0.02)
    return network.eval().requires_grad_(False)


def imported(theirs: nn.Module, config: UNetConfig) -> UNet:
    """Our network on the very tensors of theirs."""
    with torch.device("meta"):
        network, weights = UNet(config).eval(), theirs.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = resolve(diffusers_family_unet(config), shapes, weights)
    state = {name: fetch(source, shapes[name], weights.__getitem__) for name, source in found.items()}
    network.load_state_dict(state, assign=True)
    if next(network.parameters()).device.type not in ("cpu", "meta"):
        network.to(memory_format=torch.channels_last)  # as `load` lays them there
    return network.requires_grad_(False)


class Case:
    """A network and its input: `run()` is one forward.

    call: forward of (x `[b c t h w]`, timesteps `[b]`, text `[b n d]`).
    """

    def __init__(self, network: nn.Module, call: Callable, inputs: tuple[Tensor, Tensor, Tensor]):
        self.network, self.call, self.inputs = network, call, inputs

    @torch.inference_mode()
    def run(self) -> Tensor:
        return self.call(*self.inputs)


def cases_of(
    config: UNetConfig, size: tuple[int, int, int], device, compiled: bool = False
) -> dict[str, Case]:
    """Ours and theirs with the same weights and input; with `compiled` both a second time, compiled."""
    torch.manual_seed(0)
    with torch.device(device):
        theirs = diffusers_unet(config)
        x = torch.randn(BRANCHES, config.in_channels, *size)
        text = torch.randn(BRANCHES, FAMILY.text.context_length, config.context_dim)
        inputs = x, torch.full((BRANCHES,), 500), text
    weights = torch.tensor([[1.0, 0.0]] * BRANCHES, device="cpu")

    def univid(network: UNet) -> Case:
        return Case(network, lambda x, t, text: network(x, t, Conditioning(text, None, weights)), inputs)

    def diffusers(network: nn.Module) -> Case:
        return Case(network, lambda *args: network(*args).sample, inputs)

    cases = {"univid": univid(imported(theirs, config)), "diffusers": diffusers(theirs)}
    if compiled:
        with torch.device("meta"):
            twin = diffusers_unet(config)
        twin.load_state_dict(theirs.state_dict(), assign=True)
        cases["univid compiled"] = univid(compiled_blocks(imported(theirs, config)))
        cases["diffusers compiled"] = diffusers(compiled_layers(twin))
    return cases


def compiled_layers(theirs: nn.Module) -> nn.Module:
    """Their network, layer by layer compiled, as ours is."""
    for block in (*theirs.down_blocks, theirs.mid_block, *theirs.up_blocks):
        for layers in block.children():
            for layer in layers:
                layer.compile(dynamic=False)
    theirs.transformer_in.compile(dynamic=False)
    return theirs


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


def peak_memory(case: Case, device: torch.device) -> int:
    """Bytes of the weights, and of what a second forward adds to them at most."""
    weights = sum(parameter.nbytes for parameter in case.network.parameters())
    if device.type != "cpu":
        before = torch.accelerator.memory_allocated()
        torch.accelerator.reset_peak_memory_stats()
        case.run()
        return weights + torch.accelerator.max_memory_allocated() - before
    case.run()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    case.run()
    return weights + resident("VmHWM") - before


def peak_of_case(name: str, config: UNetConfig, size: tuple[int, int, int], threads: int) -> int:
    torch.set_num_threads(threads)
    return peak_memory(cases_of(config, size, "cpu").pop(name), torch.device("cpu"))


def in_own_process(call: Callable, *args):
    """The result of `call` in a new process whose tensors have pages of their own."""
    with mock.patch.dict(os.environ, OWN_PAGES):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(call, *args).result()


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


def bench(config: UNetConfig, args: argparse.Namespace) -> dict[str, float]:
    """Print one network's tables; the numbers of the closing lines."""
    device = torch.device(args.device)
    compiled = device.type != "cpu"
    say = partial(print, flush=True) if compiled else lambda words: None
    gemm = Gemm(device)
    gemm.run()
    flops = {}
    say("counting FLOPs on the meta device ...")
    for name, case in cases_of(config, args.size, "meta").items():
        with FlopCounterMode(display=False) as counter:
            flops[name] = by_part(case, counter.get_total_flops)
    say(f"building both on {device} ...")
    cases = cases_of(config, args.size, device, compiled)
    outputs = []
    for name, case in cases.items():
        say(f"first run of {name}{', which compiles it' if 'compiled' in name else ''} ...")
        outputs.append(case.run())
    difference = max((out - outputs[1]).abs().max().item() for out in outputs)
    if not difference < TOLERANCE[outputs[0].dtype]:
        raise SystemExit(f"expected equal outputs, got a difference of {difference:.1e}")
    del outputs
    say("timing ...")
    seconds = medians(cases | {"gemm": gemm}, args.rounds, device)
    peaks = {
        name: in_own_process(peak_of_case, name, config, args.size, args.threads)
        if device.type == "cpu"
        else peak_memory(case, device)
        for name, case in cases.items()
    } | {"gemm": 3 * gemm.a.nbytes}
    flops["gemm"] = flops["univid"]
    totals = {name: flops[name.removesuffix(" compiled")].total() for name in peaks}
    peak_rate = gemm.flops / seconds["gemm"]
    seconds["gemm"] = totals["gemm"] / peak_rate
    width, size = config.model_channels, " x ".join(map(str, args.size))
    where = f"{device}, {args.threads} CPU threads"
    print(f"\nwidth {width}, {BRANCHES} x {size} latents, {gemm.a.dtype}, {where}, median of {args.rounds}")
    print(f"outputs differ by at most {difference:.1e}")
    wide = 20 if compiled else 16
    print(f"{'':{wide}}{'GFLOP':>10}{'seconds':>10}{'GFLOP/s':>10}{'of gemm':>10}{'peak MB':>10}")
    for name, total in totals.items():
        rate = total / seconds[name]
        print(f"{name:{wide}}{total / 1e9:10.1f}{seconds[name]:10.3f}{rate / 1e9:10.1f}", end="")
        print(f"{rate / peak_rate:10.2f}{peaks[name] / 1e6:10.0f}")
    if args.profile:
        print_profile(by_part(cases["univid"], lambda: clock(device)), flops["univid"])
    closing = {
        "ratio": seconds["univid"] / seconds["diffusers"],
        "memory": peaks["univid"] / peaks["diffusers"],
        "gemm": seconds["gemm"] / seconds["univid"],
    }
    if compiled:
        ours, theirs = "univid compiled", "diffusers compiled"
        closing["compiled ratio"] = seconds[ours] / seconds[theirs]
        closing["compiled memory"] = peaks[ours] / peaks[theirs]
    return closing


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
    if not on_cpu:
        torch.set_default_dtype(torch.bfloat16)
    for width in args.widths:
        closing = bench(config_of(width), args)
    print()
    for name, value in closing.items():
        print(f"{name} {value:.2f}")


if __name__ == "__main__":
    main()
