"""What the commands that make something write down: each setting as it came out, and what was read."""

import argparse
import dataclasses
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from . import __version__, cli_dynamics, cli_steer, samplers
from .asked import Sampling
from .biased import biased_mode
from .cascade import Extend, Interpolate, Stage, Upscale
from .checkpoints.native import ASSETS, BASE, built_in_path
from .cli_shared import device_of, split_strength
from .config import SamplingProfile
from .dtypes import DTYPES
from .files.hashes import noted_sha256, sha256
from .guidance import GUIDERS
from .model import UniVid
from .noise import RULE
from .pipeline import Guider, profile_guider
from .receipt import Given, Receipt, Value

MEDIA = ("image", "last_image", "video", "text_mask", "image_mask")
GUIDANCE = {  # option: field of a guider
    "guidance_scale": "scale",
    "text_guidance": "text",
    "image_guidance": "image",
    "guidance_rescale": "rescale",
}
PACKAGES = ("torch", "numpy", "av", "pillow")


def given_files(
    args: argparse.Namespace, models: Iterable[UniVid], checkpoints: Mapping[str, str]
) -> tuple[Given, ...]:
    """The files that a command reads, with their hashes.

    checkpoints: those that are used, by option. models: which they are.

    Raises:
        ValueError: one cannot be read.
    """
    found = [_weights(option, path) for option, path in checkpoints.items()]
    bases = {model.info.get(BASE) for model in models}  # what an expert's file leaves out lies there
    found += [_weights("base", name) for name in ASSETS if name in bases]
    for given in args.lora:
        path, strength = split_strength(given)
        found.append(dataclasses.replace(_weights("lora", path), strength=strength))
    pictures = {option: getattr(args, option, None) for option in MEDIA}
    several = getattr(args, "pictures", None) or ()
    for picture in several:
        weight = None if picture.weight == 1 else picture.weight
        found.append(Given("image", _name(picture.path), sha256(picture.path), weight))
        if picture.mask is not None:
            found.append(Given("picture_mask", _name(picture.mask), sha256(picture.mask)))
    if several:
        del pictures["image"]
    found += [
        Given(option, _name(path), sha256(path)) for option, path in pictures.items() if path is not None
    ]
    return tuple(found)


def picture_settings(args: argparse.Namespace) -> dict[str, list[str] | None]:
    """In which frames, places and steps each picture counts, where one does not count in all."""
    pictures = args.pictures or ()
    found = {
        "image_frames": [picture.spoken_frames() for picture in pictures],
        "image_places": ["all" if picture.mask is None else "mask" for picture in pictures],
        "image_steps": [picture.steps or "all" for picture in pictures],
    }
    return {name: values if set(values) - {"all"} else None for name, values in found.items()}


def _weights(role: str, path: str) -> Given:
    """A checkpoint or LoRA; one that ships has the name that it is called by."""
    if path in ASSETS:
        return Given(role, path, noted_sha256(built_in_path(path)))
    return Given(role, _name(path), noted_sha256(path))


def _name(path: str | Path) -> str:
    name = Path(path).name or Path(path).resolve().name or "folder"
    return name.replace("\\", "_")  # which parts folders elsewhere


def receipt(
    args: argparse.Namespace,
    command: str,
    settings: Mapping[str, object],
    files: tuple[Given, ...],
    stages: tuple[Mapping[str, object], ...] = (),
) -> Receipt:
    """That of what a command has made; settings that are None had no part."""
    device, dtype = device_of(args)
    short = next(name for name, long in DTYPES.items() if getattr(torch, long) == dtype)
    settings = {**settings, "dtype": short, "compile": args.compile or None}
    said = {name: value for name, value in settings.items() if value is not None}
    return Receipt(command, said, tuple(stages), files, versions(), _machine(device), RULE)


def versions() -> dict[str, str]:
    """Of this package, of Python and of what rounds or encodes."""
    found = {"univid": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # torch of a host that was built by hand
            continue
    return found | {"torch": str(torch.__version__)}


def _machine(device: torch.device) -> dict[str, Value]:
    """What kind it is, as far as rounding depends on that; not which one."""
    found = {
        "system": f"{platform.system()} {platform.machine()}",
        "device": device.type,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
    if device.type != "cpu":
        name = getattr(torch.get_device_module(device), "get_device_name", None)
        found["device_name"] = name(device) if name else device.type
    return found


def sampled(
    profile: SamplingProfile, sampling: Sampling, guider: Guider | None, seed: int
) -> dict[str, Value | None]:
    """By which guidance and steps something was made, by the names of the options."""
    how, guider = sampling.by(profile), guider or profile_guider(profile)
    kind = next(name for name, made in GUIDERS.items() if isinstance(guider, made))
    noisy = how.sampler if samplers.adds_noise(how.sampler, how.eta) else None
    references = [f"{level}={count or 'off'}" for level, count in sorted((how.references or {}).items())]
    return {
        "guidance": kind,
        **{option: getattr(guider, field, None) for option, field in GUIDANCE.items()},
        "steps": how.steps,
        "sampler": how.sampler,
        "schedule": how.sigma_schedule,
        "eta": how.eta if how.sampler == "ddim" else None,
        "biased_noise": biased_mode(profile, how.biased_noise, noisy),
        "references": references or None,
        **cli_steer.said(how),
        **cli_dynamics.settings(how.steering),
        "seed": seed,
    }


def clip_settings(
    args: argparse.Namespace, model: UniVid, told: Mapping, size: Sequence[int]
) -> dict[str, Value | None]:
    """Those of one clip, or of each of a sweep.

    told: as of `cli_shared.common`. size: frames, height, width.
    """
    return {
        "prompt": args.prompt,
        "negative": args.negative or None,
        **dict(zip(("frames", "height", "width"), size, strict=True)),
        "fps_number": fps_number(args.fps_number, model),
        **sampled(model.profile, told["sampling"], told["guidance"], told["seed"]),
    }


def fps_number(asked: float | None, model: UniVid) -> float | None:
    """What the model was told of it."""
    if "fps" not in model.config.unet.numbers or asked is not None:
        return asked
    default = model.profile.inputs.number("fps")
    return None if default is None else default.value


def staged(stage: Stage) -> dict[str, Value | None]:
    """How a stage of a cascade works, by the names of the options."""
    told = stage.told
    found = {
        **sampled(stage.model.profile, stage.sampling, told.guidance, told.seed),
        "window": stage.longest,
        "fps_number": fps_number(told.fps_number, stage.model),
    }
    if isinstance(stage, Interpolate):
        found["factor"] = stage.factor
    if isinstance(stage, Extend):
        found["known"], found["more"] = stage.known, stage.more
    if isinstance(stage, Upscale):
        found |= {"height": stage.height, "width": stage.width, "tile": stage.sampling.tile}
    return found
