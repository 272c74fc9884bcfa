"""The compiled network."""

import torch

from univid.unet import UNet

from .section import Section


def compiled(network: UNet) -> UNet:
    """The same network; its blocks are compiled when it is called."""
    network.compile_blocks()
    return network


def without_compiler(section: Section) -> None:
    """On a CPU, where compiling takes minutes, let what is compiled run as it is, and say so."""
    if section.device.type == "cpu":
        section.skipped("the compiler", "on a CPU it takes minutes; what is compiled runs uncompiled")
        torch.compiler.set_stance("force_eager")
