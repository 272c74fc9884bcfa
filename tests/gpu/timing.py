"""Seconds and bytes of a call on a device."""

import gc
import statistics
import time
from collections.abc import Callable

import torch

from tests.bench_unet import resident

GIB = 2**30
WARM = 2


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def milliseconds(call: Callable, device: torch.device, rounds: int = 10, warm: int = WARM) -> float:
    """Median of the rounds, by the device's own clock where it has one."""
    for _ in range(warm):
        call()
    synchronize(device)
    if device.type == "cpu":
        return 1e3 * statistics.median(seconds(call, device) for _ in range(rounds))
    marks = []
    for _ in range(rounds):
        marks.append([torch.Event(device, enable_timing=True) for _ in range(2)])
        marks[-1][0].record()
        call()
        marks[-1][1].record()
    synchronize(device)
    return statistics.median(start.elapsed_time(end) for start, end in marks)


def seconds(call: Callable, device: torch.device) -> float:
    """Of one call, until all that it asked of the device is done."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def launch_milliseconds(call: Callable, device: torch.device, rounds: int = 5) -> float:
    """Median until the call returns, the device being idle when it begins: what the CPU needs for it."""
    times = []
    for _ in range(rounds):
        synchronize(device)
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    synchronize(device)
    return 1e3 * statistics.median(times)


def peak_bytes(call: Callable, device: torch.device) -> tuple[int, int]:
    """The most memory while a call runs: all of it, and what it adds to what was there.

    On an accelerator as its allocator counts it; on a CPU of the whole process, as the kernel does.
    """
    release(device)
    if device.type != "cpu":
        before = torch.accelerator.memory_allocated()
        torch.accelerator.reset_peak_memory_stats()
        call()
        synchronize(device)
        most = torch.accelerator.max_memory_allocated()
    else:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        before = resident("VmRSS")
        call()
        most = resident("VmHWM")
    return most, most - before


def release(device: torch.device) -> None:
    """Give back what nobody holds any more, cycles included."""
    gc.collect()
    if device.type != "cpu":
        torch.accelerator.empty_cache()


def product_rate(device: torch.device, dtype: torch.dtype, rounds: int = 5) -> float:
    """FLOP/s of a large square matrix product, the rate that can be reached."""
    side = 1024 if device.type == "cpu" else 16384
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / (1e-3 * milliseconds(lambda: a @ b, device, rounds))


def graphed(call: Callable, device: torch.device) -> Callable:
    """The call as a CUDA graph, to be replayed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
