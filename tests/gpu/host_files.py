"""A UniVid file and a LoRA with random weights, for a host to load."""

from pathlib import Path

import torch

from training.lora import LoraConfig, add_lora, save_lora
from univid.checkpoints.native import meta_modules, save
from univid.model import UniVid
from univid.presets import PRESETS, PROFILES

from . import networks
from .section import Section

MODEL, LORA = "random.safetensors", "random-lora.safetensors"


def write(section: Section, folder: Path) -> None:
    """Both, in fp16: the paper's model, or if `small` one like the built-in, with all their parts."""
    name, device = "tiny" if section.small else "paper", section.device
    config = PRESETS[name]
    parts = {
        part: networks.filled(module.to(torch.float16), device)
        for part, module in meta_modules(config).items()
    }
    save(folder / MODEL, UniVid(config, PROFILES[name], info={"source": "random weights"}, **parts))
    lora = LoraConfig()
    add_lora(parts["unet"], lora, seed=0)
    for name, parameter in parts["unet"].named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(std=0.01)
    save_lora(folder / LORA, parts["unet"], lora, base=MODEL, steps=0)
