"""CPU against device: the same random weights, small networks of each kind, every precision and sampler."""

import copy
import dataclasses

import torch
from torch import Tensor, nn

from univid import samplers
from univid.conditioning import Conditioning
from univid.config import UNetConfig
from univid.diffusion import Denoiser, NoiseSchedule
from univid.guidance import Joint, Separate
from univid.noise import ClipNoise
from univid.presets import PAPER, TINY

from . import networks
from .section import Section

# Of the largest difference, in standard deviations of what the CPU gives in float32. Measured on an H200 with
# the built-in model, as differences of values of about one: 4e-5, 8e-3, 1.5e-2 and 0.19.
BOUNDS = {"fp32": 1e-4, "tf32": 5e-2, "fp16": 5e-2, "bf16": 0.5}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
CHANGE = 1e-3  # of one weight, by standard deviations of the output: the control
STEPS = 4


def run(section: Section) -> None:
    levels = 2 if section.small else 4
    for name, config in networks.kinds(levels).items():
        with section.part(name):
            check(section, name, networks.unet_of(config, "cpu"), inputs_of(config))
    if section.device.type != "cuda":
        section.skipped("tf32", "only CUDA devices have it")
    control(section, networks.kinds(levels)["paper"])
    check_samplers(section)
    check_vae(section)


def inputs_of(config: UNetConfig) -> networks.Inputs:
    return networks.inputs_of(config, networks.SMALL_CLIP, "cpu")


def moved(network: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy on the device."""
    network = copy.deepcopy(network).to(device, dtype)
    network.dtype = dtype
    return network


def check(section: Section, name: str, network: nn.Module, inputs: networks.Inputs) -> None:
    expected = inputs.call(network)()
    others = {dtype: moved(network, section.device, dtype) for dtype in (torch.float32, *DTYPES.values())}
    for precision, bound in BOUNDS.items():
        if precision == "tf32" and section.device.type != "cuda":
            continue
        dtype = DTYPES.get(precision, torch.float32)
        with TF32(precision == "tf32"):
            out = there(inputs, section.device, dtype).call(others[dtype])()
        section.result(f"{name}, {precision}", difference(out, expected), "of std", bound=("<", bound))


def control(section: Section, config: UNetConfig) -> None:
    """That a small mistake would be seen."""
    network, inputs = networks.unet_of(config, "cpu"), inputs_of(config)
    expected = inputs.call(network)()
    other = moved(network, section.device)
    other.out[-1].bias += CHANGE * expected.std().item()
    with TF32(False):
        out = there(inputs, section.device).call(other)()
    section.result(
        "control: a changed weight, fp32", difference(out, expected), "of std", bound=(">", BOUNDS["fp32"])
    )


def check_samplers(section: Section) -> None:
    """All samplers under both kinds of guidance, in float32."""
    config = dataclasses.replace(TINY, unet=networks.narrow(TINY.unet))
    network = networks.unet_of(config.unet, "cpu")
    other = moved(network, section.device)
    guiders = {name: Joint(3.0) for name in samplers.SAMPLERS} | {"euler, separate": Separate(3.0, 2.0)}
    for name, guider in guiders.items():
        with section.part(f"sampler {name}"), TF32(False):
            expected, found = (sampled(name.split(",")[0], config, guider, n) for n in (network, other))
            bound = ("<", BOUNDS["fp32"])
            section.result(f"sampler {name}, fp32", difference(found, expected), "of std", bound=bound)


@torch.inference_mode()
def sampled(name: str, config, guider, network: nn.Module) -> Tensor:
    """Latents of a clip after a few steps."""
    device = next(network.parameters()).device
    # Random weights answer at random, and from the largest sigmas such errors are all that one sees.
    schedule = NoiseSchedule(config.schedule).until(500)
    denoiser = Denoiser(network, schedule, config.schedule.prediction)
    inputs = networks.inputs_of(config.unet, networks.SMALL_CLIP, device, clips=1)
    empty = Conditioning(inputs.cond.text.flip(1), None, inputs.cond.weights.new_tensor([[1.0, 0.0]]))
    sigmas, noise = samplers.sigma_schedule("normal", schedule, STEPS), ClipNoise([0])
    cond = dataclasses.replace(inputs.cond, places=None)
    x = samplers.initial_x(noise((1, 4, *networks.SMALL_CLIP)).to(device), sigmas[0], schedule)
    sample = samplers.get_sampler(name, schedule)
    return sample(lambda x, sigma: guider(denoiser, x, sigma, cond, empty), x, sigmas, noise=noise)


@torch.inference_mode()
def check_vae(section: Section) -> None:
    config = networks.preset(PAPER, small=True)
    vae = networks.vae_of(config, "cpu")
    generator = torch.Generator().manual_seed(2)
    video = torch.rand(1, 3, 3, 64, 96, generator=generator) * 2 - 1
    latents = torch.randn(1, 4, 3, 8, 12, generator=generator)
    for precision in ("fp32", "fp16", "bf16"):
        dtype = DTYPES.get(precision, torch.float32)
        with section.part(f"VAE, {precision}"), TF32(False):
            other = copy.deepcopy(vae).to(section.device, dtype)
            for name, value in (("encode", video), ("decode", latents)):
                expected = getattr(vae, name)(value)
                out = getattr(other, name)(value.to(section.device, dtype))
                bound = ("<", BOUNDS[precision])
                section.result(f"VAE {name}, {precision}", difference(out, expected), "of std", bound=bound)


def there(inputs: networks.Inputs, device: torch.device, dtype: torch.dtype = torch.float32):
    """The same inputs on a device."""
    return networks.Inputs(
        inputs.x.to(device, dtype),
        inputs.timesteps.to(device),
        inputs.cond.to(device, dtype),
        {factor: frames.to(device) for factor, frames in inputs.reference_frames.items()},
        inputs.streams,
    )


def difference(out: Tensor, expected: Tensor) -> float:
    """The largest, in standard deviations of what is expected."""
    return ((out.float().cpu() - expected.float()).abs().max() / expected.float().std()).item()


class TF32:
    """Matrix products and convolutions of float32 in tf32, or in float32."""

    def __init__(self, on: bool):
        self.on = on

    def __enter__(self) -> None:
        self.before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        self._set(self.on, self.on)

    def __exit__(self, *_) -> None:
        self._set(*self.before)

    def _set(self, matmul: bool, cudnn: bool) -> None:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
