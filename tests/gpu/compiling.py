"""The compiled network."""

import torch

from univid.unet import UNet


def compiled(network: UNet) -> UNet:
    """The same network; its blocks are compiled when it is called."""
    torch._dynamo.config.recompile_limit = 128  # blocks of a kind share their code, but not their widths
    for block in network.blocks():
        block.compile()
    return network
