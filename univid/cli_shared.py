"""What several commands do alike: load a model, show progress, read how it is sampled."""

import argparse
import dataclasses
import re
import sys
from pathlib import Path
from typing import NamedTuple

from . import cli_dynamics, cli_steer
from .dtypes import dtype_of


class ProgressBars:
    """A `generate` callback that shows one bar a stage on stderr."""

    def __init__(self, prefix: str = ""):
        self.prefix, self.stage, self.bar = prefix, None, None

    def __call__(self, stage: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if stage != self.stage:
            self.close()
            units = {"sample": "step", "decode": "frame"}
            self.stage = stage
            self.bar = tqdm(
                total=total, desc=f"{self.prefix}{stage}", unit=units.get(stage, ""), file=sys.stderr
            )
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()


def device_of(args: argparse.Namespace):
    """The device and the type of weights that were asked for; type auto: float32 on a CPU, else bfloat16."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    best = accelerator or torch.device("cpu")
    try:
        device = best if args.device == "auto" else torch.device(args.device)
    except RuntimeError as error:
        raise ValueError(f"device must be 'auto', 'cpu' or '{best}', got {args.device!r}.") from error
    if device.type not in ("cpu", best.type):
        raise ValueError(f"this machine has no device {args.device!r}; give 'auto' or '{best}'.")
    best_dtype = "fp32" if device.type == "cpu" else "bf16"
    return device, dtype_of(best_dtype if args.dtype == "auto" else args.dtype)


def load_model(args: argparse.Namespace):
    """The checkpoint with its LoRAs."""
    from .checkpoints import apply_lora, load

    device, dtype = device_of(args)
    model = load(args.checkpoint, device=device, dtype=dtype, compile=args.compile)
    for given in args.lora:
        apply_lora(model, *split_strength(given))
    return model


def split_strength(given: str) -> tuple[str, float]:
    """The file and the strength of FILE[:S]; a colon may also belong to the file's name."""
    path, colon, strength = given.rpartition(":")
    if not colon or Path(given).exists():
        return given, 1.0
    try:
        return path, float(strength)
    except ValueError:
        return given, 1.0


class Shown(NamedTuple):
    """A picture as it is asked for. frames: the first and the last. mask: its file. steps: a curve's text."""

    path: str
    weight: float = 1.0
    frames: tuple[int, int] | None = None
    mask: str | None = None
    steps: str | None = None

    def spoken_frames(self) -> str:
        """As behind the @, or "all"."""
        return "all" if self.frames is None else "{}-{}".format(*self.frames)


def split_picture(given: str) -> Shown:
    """The parts of FILE[:W][@A-B]; a colon and an @ may also belong to the file's name."""
    if Path(given).exists():
        return Shown(given)
    frames, (rest, _, span) = None, given.rpartition("@")
    if matched := re.fullmatch(r"(\d+)(?:-(\d+))?", span) if rest else None:
        given, frames = rest, (int(matched[1]), int(matched[2] or matched[1]))
    return Shown(*split_strength(given), frames)


def read_pictures(args: argparse.Namespace, frames: int = 1):
    """What `generate` is given as its image, for a clip of so many frames; a single one of which nothing else
    is said is a picture alone.
    """
    from . import curves
    from .pipeline import Picture
    from .video import read_image, read_mask

    if args.image is None:
        return None
    asked = args.pictures or [Shown(args.image)]
    if asked == [Shown(args.image)]:
        return read_image(args.image)
    return [
        Picture(
            read_image(one.path),
            one.weight,
            one.frames,
            None if one.mask is None else read_mask(one.mask, frames),
            curves.read("--picture-steps", curves.parse, one.steps or ""),
        )
        for one in asked
    ]


def read_masks(args: argparse.Namespace, frames: int = 1):
    """Those of `generate`, for a clip of so many frames."""
    from .steer import Masks
    from .video import read_mask

    paths = (args.text_mask, args.image_mask)
    return Masks(*(None if path is None else read_mask(path, frames) for path in paths))


def clip_size(args: argparse.Namespace, profile) -> tuple[int, int, int]:
    """Frames, height and width of a clip: as asked, else of the prompt's scenes, else the profile's."""
    from .travel import length

    asked = {name: getattr(args, name) for name in ("frames", "height", "width")}
    asked["frames"] = length(args.prompt) if args.frames is None else args.frames
    return tuple(getattr(profile, name) if value is None else value for name, value in asked.items())


def common(args: argparse.Namespace, profile) -> dict:
    """Guidance, steps, windows and seed, as `generate` takes them."""
    from .pipeline import Sampling, profile_guider

    asked = {
        "kind": ("--guidance", args.guidance),
        "scale": ("--guidance-scale", args.guidance_scale),
        "text": ("--text-guidance", args.text_guidance),
        "image": ("--image-guidance", args.image_guidance),
        "rescale": ("--guidance-rescale", args.guidance_rescale),
    }
    given = {name: value for name, (_, value) in asked.items() if value is not None}
    guidance = dataclasses.replace(profile.guidance, **given)
    for name in ("text", "image") if guidance.kind == "joint" else ("scale",):
        if name in given:
            raise ValueError(f"{asked[name][0]} does nothing with {guidance.kind} guidance; see --guidance.")
    guider = profile_guider(dataclasses.replace(profile, guidance=guidance))
    if args.negative and not any("e0" in guider.plan(True, pictured) for pictured in (False, True)):
        raise ValueError("--negative does nothing under guidance of 1; give --guidance-scale 3 too.")
    if args.eta is not None and (args.sampler or profile.sampler) != "ddim":
        raise ValueError(
            f"--eta does nothing with {args.sampler or profile.sampler}; give --sampler ddim too."
        )
    references = dict(args.references or ())
    if len(references) < len(args.references or ()):
        raise ValueError("--references names a level twice; give each of them once.")
    return {
        "negative": args.negative,
        "guidance": guider,
        "sampling": Sampling(
            args.steps,
            args.sampler,
            args.schedule,
            args.eta,
            references,
            args.biased_noise,
            **cli_steer.asked(args, cli_dynamics.steering(args)),
        ),
        "seed": args.seed,
    }
