"""The paper's U-Net at full size, bf16, 24 frames of 576 x 320: time, memory, and where the time goes."""

import torch

from univid.presets import PAPER

from . import networks, parts
from .compiling import compiled, without_compiler
from .section import Section
from .timing import GIB, graphed, launch_milliseconds, milliseconds, peak_bytes, product_rate


def run(section: Section) -> None:
    device, dtype = section.device, section.dtype
    config = networks.preset(PAPER, section.small).unet
    size = networks.size_of(section.small)
    unet = networks.unet_of(config, device, dtype)
    both, one = (networks.inputs_of(config, size, device, dtype, clips).call(unet) for clips in (2, 1))
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    section.says(
        f"{parameters / 1e6:,.1f} M parameters, {dtype}, latents 2 x {' x '.join(map(str, size))}, inference"
    )
    rate = section.result("large matrix product", product_rate(device, dtype) / 1e12, "TFLOP/s") * 1e12
    flops = parts.flops_by_part(config, size, clips=2)
    section.result("FLOPs, both branches", flops.total() / 1e12, "TFLOP")

    def timed(name: str, call, goal: float | None = None) -> float:
        took = section.result(
            name, milliseconds(call, device, section.rounds), "ms", goal=goal and ("<=", goal)
        )
        reached = flops.total() / (took / 1e3)
        section.result(f"{name}: rate", reached / 1e12, "TFLOP/s")
        section.result(f"{name}: of the matrix product's rate", reached / rate)
        return took

    def launched(name: str, call, took: float) -> None:
        """The CPU shall not be what the device waits for."""
        own = launch_milliseconds(call, device)
        section.result(f"{name}, until the call returns", own, "ms", goal=("<", took))

    timed("eager, weights channels first", both)
    unet.to(memory_format=torch.channels_last)  # as `load` lays them on an accelerator
    timed("eager, both branches", both, goal=165)
    section.result("eager, peak", peak_bytes(both, device)[0] / GIB, "GiB")
    section.result("eager, until the call returns", launch_milliseconds(both, device), "ms")
    section.result("eager, one branch alone", milliseconds(one, device, section.rounds), "ms")
    with section.part("time by part"):
        times, copies = parts.times_by_part(both, device)
        *lines, last = parts.table(times, copies, flops, rate)
        for line in lines:
            section.says(line)
        section.says(last, milliseconds=times, copying=copies, flops=flops)
    if device.type == "cuda":
        with section.part("CUDA graph"):
            replay = graphed(both, device)
            launched("CUDA graph", replay, timed("CUDA graph, both branches", replay))
            del replay  # it holds memory of its own
    else:
        section.skipped("CUDA graph", "only CUDA devices have it")
    without_compiler(section)
    with section.part("compiled"):
        compiled(unet)
        section.result("compiled, the first call", milliseconds(both, device, 1, 0) / 1e3, "s")
        launched("compiled", both, timed("compiled, both branches", both, goal=130))
        section.result("compiled, peak", peak_bytes(both, device)[0] / GIB, "GiB")
