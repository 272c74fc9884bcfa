"""What the graphs load beside what the pack brings: tiny random models for core's own nodes,
and in place of the public models that can be imported."""

import sys

import torch
from host_tests.stand_ins import write_all
from safetensors.torch import save_file


def prepare(server) -> None:
    """Put every file in its place."""
    write_upscaler(server.base / "models/upscale_models/RealESRGAN_x4plus.safetensors")
    write_interpolator(server.base / "models/frame_interpolation/rife_v4.26.safetensors")
    if "univid_pack" in sys.modules:  # on a host that is too old for the pack there is nothing to import
        write_all(server.base / "models")


def write_upscaler(path):
    """A real architecture (SRVGGNetCompact, x4), as small as it gets, with random weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, generator = 4, torch.Generator().manual_seed(0)
    shapes = {"body.0": (width, 3, 3, 3), "body.2": (width, width, 3, 3), "body.4": (48, width, 3, 3)}
    weights = {f"{name}.weight": torch.randn(s, generator=generator) * 0.02 for name, s in shapes.items()}
    weights |= {f"{name}.bias": torch.zeros(s[0]) for name, s in shapes.items()}
    save_file(weights | {f"body.{i}.weight": torch.full((width,), 0.2) for i in (1, 3)}, path)


def write_interpolator(path):
    """RIFE as the host builds it, narrow, with random weights; nothing on a host that has no such node."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        from comfy_extras.frame_interpolation_models.ifnet import IFNet
    except ImportError:
        return
    generator = torch.Generator().manual_seed(0)
    shapes = {name: weight.shape for name, weight in IFNet(channels=(8,) * 5).state_dict().items()}
    save_file({name: torch.randn(s, generator=generator) * 0.02 for name, s in shapes.items()}, path)
