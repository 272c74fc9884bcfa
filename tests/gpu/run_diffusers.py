"""The relatives' U-Net beside diffusers' own on the same weights, eager and compiled: tests/bench_unet.py."""

import dataclasses

import torch

from tests import bench_unet
from univid.presets import FAMILY

from . import networks
from .compiling import without_compiler
from .section import Section, need
from .timing import GIB, seconds

TIME, MEMORY = ("<=", 0.67), ("<=", 0.8)  # of theirs


def run(section: Section) -> None:
    need("diffusers")
    torch.set_default_dtype(section.dtype)
    size = networks.size_of(section.small)
    config = bench_unet.config_of(16 if section.small else FAMILY.unet.model_channels)
    if section.small:
        config = dataclasses.replace(config, num_res_blocks=1)
    section.says(f"building both, width {config.model_channels}, {section.dtype}, the same weights")
    cases = bench_unet.cases_of(config, size, section.device, compiled=True)
    outputs = [cases[name].run() for name in ("univid", "diffusers")]
    difference = (outputs[0] - outputs[1]).abs().max().item()
    del outputs
    section.result("largest difference", difference, bound=("<", bench_unet.TOLERANCE[section.dtype]))
    compare(section, cases, "")
    without_compiler(section)
    with section.part("compiled"):
        for name in ("univid compiled", "diffusers compiled"):
            section.says(f"compiling {name.split()[0]}")
            section.result(f"{name}, the first call", seconds(cases[name].run, section.device), "s")
        compare(section, cases, " compiled")


def compare(section: Section, cases: dict, kind: str) -> None:
    """Time, taking turns, and memory."""
    ours, theirs = (f"{name}{kind}" for name in ("univid", "diffusers"))
    pair = {name: cases[name] for name in (ours, theirs)}
    took = bench_unet.medians(pair, section.rounds, section.device)
    for name in pair:
        section.result(name, 1e3 * took[name], "ms")
    section.result(f"ratio of time{kind}", took[ours] / took[theirs], goal=TIME)
    peaks = {name: bench_unet.peak_memory(case, section.device) for name, case in pair.items()}
    for name in pair:
        section.result(f"{name}, peak", peaks[name] / GIB, "GiB")
    section.result(f"ratio of memory{kind}", peaks[ours] / peaks[theirs], goal=MEMORY)
