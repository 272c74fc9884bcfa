"""Where a forward's time and FLOPs go, by part of the work."""

from collections import Counter
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.utils.flop_counter import FlopCounterMode

from training.plan.meter import flash_attention
from univid.config import UNetConfig
from univid.unet import UNet

from . import networks
from .timing import milliseconds

# Operations by the outermost of them that is known, as the profiler names them.
PARTS = {
    "convolution": "conv2d convolution cudnn_convolution mkldnn_convolution",
    "attention": "scaled_dot_product_attention",
    "Linear": "linear matmul addmm mm bmm",
    "GroupNorm": "group_norm native_group_norm",
    "LayerNorm": "layer_norm native_layer_norm",
    "copies": "copy_ contiguous clone cat to reshape repeat",
    "sums": "add add_ sub sum",
    "products": "mul mul_ div pow",
    "GELU, SiLU": "gelu silu silu_",
    "enlarging": "upsample_nearest2d upsample_nearest_exact2d interpolate",
}
PART_OF = {f"aten::{name}": part for part, names in PARTS.items() for name in names.split()}
REST = "the rest"
COPIES = {"aten::copy_", "aten::clone", "aten::cat"}  # inside another part: a change of layout
FLOPS_OF = {"convolution": "convolution", "mm": "Linear", "addmm": "Linear", "bmm": "attention"}


def flops_by_part(config: UNetConfig, size: tuple[int, int, int], clips: int) -> Counter:
    """FLOPs of one forward, counted on the meta device; a multiplication and an addition are two."""
    with torch.device("meta"):
        unet = UNet(config, attention=flash_attention).eval()
    with FlopCounterMode(display=False) as counter:
        networks.inputs_of(config, size, "meta", clips=clips).call(unet)()
    total = Counter()
    for operation, flops in counter.get_flop_counts()["Global"].items():
        name = operation.__name__.split(".")[-1]
        total[FLOPS_OF.get(name, "attention" if "attention" in name else REST)] += flops
    return total


def times_by_part(call: Callable, device: torch.device) -> tuple[Counter, Counter]:
    """Milliseconds of a forward on the device by part, and how many of them copy to another layout."""
    cpu = device.type == "cpu"
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [] if cpu else [torch.profiler.ProfilerActivity.CUDA]
    milliseconds(call, device, rounds=1)
    with torch.profiler.profile(activities=activities) as profile:
        milliseconds(call, device, rounds=1, warm=0)
    total, copies = Counter(), Counter()
    for event in profile.events():
        if event.device_type != DeviceType.CPU or not event.name.startswith("aten::"):
            continue  # the kernels are counted where they are launched
        took = (event.self_cpu_time_total if cpu else event.self_device_time_total) / 1e3
        part, parent = REST, event
        while parent is not None:
            part = PART_OF.get(parent.name, part)
            parent = parent.cpu_parent
        total[part] += took
        if event.name in COPIES and part != "copies":
            copies[part] += took
    return total, copies


def table(times: Counter, copies: Counter, flops: Counter, rate: float) -> list[str]:
    """Lines of the roofline by part; rate: of the large matrix product, in FLOP/s."""
    lines = [f"{'part':<14}{'ms':>9}{'share':>8}{'copying':>9}{'TFLOP':>9}{'TFLOP/s':>9}{'of product':>12}"]
    for part, took in times.most_common():
        line = f"{part:<14}{took:9.2f}{took / times.total():8.1%}{copies[part]:9.2f}"
        if flops[part]:
            reached = flops[part] / (took / 1e3)
            line += f"{flops[part] / 1e12:9.3f}{reached / 1e12:9.2f}{reached / rate:12.2f}"
        lines.append(line)
    return [*lines, f"{'all':<14}{times.total():9.2f}{'':8}{copies.total():9.2f}{flops.total() / 1e12:9.3f}"]
