"""Small networks with adapters, for the tests of training/lora.py and of its file."""

import dataclasses

import torch
from reference import RELATIVE, SMALL, randn, randomize

from training.lora import Adapted, LoraConfig, add_lora
from univid.conditioning import Conditioning
from univid.unet import UNet

KINDS = {
    "univid": dataclasses.replace(
        SMALL, model_channels=16, channel_mult=(1, 2, 2, 2), num_res_blocks=1, head_channels=8
    ),
    "family": dataclasses.replace(RELATIVE, model_channels=16),
}
X, TIMESTEPS, TEXT = randn(2, 4, 3, 16, 8), torch.tensor([3, 800]), randn(2, 7, 48, seed=1)
CONFIG = LoraConfig(rank=3, alpha=2.0, parts="all")


def network(kind, seed=0):
    return randomize(UNet(KINDS[kind]), seed)


def cond(kind, x=X):
    """Both streams, where there are two."""
    image = kind == "univid"
    weights = torch.tensor([[1.0, 0.7 if image else 0.0]] * len(x))
    return Conditioning(TEXT[: len(x)], randn(len(x), 6, 40, seed=2) if image else None, weights)


def answer(unet, kind, x=X):
    return unet(x, TIMESTEPS[: len(x)], cond(kind, x))


@torch.no_grad()
def teach(unet, size=0.3):
    """Adapters as after training: both matrices at random."""
    for number, module in enumerate(m for m in unet.modules() if isinstance(m, Adapted)):
        module.lora_B.weight.copy_(size * randn(*module.lora_B.weight.shape, seed=number))
    return unet


def adapted(kind, config=CONFIG, seed=0):
    unet = network(kind, seed)
    add_lora(unet, config, seed=5)
    return teach(unet)


def joined(*parts):
    """Every combination of the parts, one of each."""
    names = [""]
    for part in parts:
        names = [name + end for name in names for end in ([part] if isinstance(part, str) else part)]
    return set(names)
