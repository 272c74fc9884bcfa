"""VideoCrafter2, VideoCrafter1's image-to-video and DynamiCrafter: one file each, in LDM's layout."""

import dataclasses

from ..config import MOST_TIMESTEPS, ImageStreamConfig, ModelConfig
from ..files.tensors import Weights
from . import names, shapes
from .family_names import Dialect, ldm_family_unet
from .foreign import Asked, Foreign, ldm_towers, shapes_below
from .origins import ORIGINS, choose

UNET, IMAGE = "model.diffusion_model.", "image_proj_model."
STRIDE = "framestride_embed."  # what DynamiCrafter's published 256 model calls the fps embedding
SCALES = "scale_arr"  # the schedule's x0 scale at every timestep; it has 400 entries more than timesteps
DROPPED = (*names.LDM_REST, SCALES)


def open_file(weights: Weights, asked: Asked) -> Foreign:
    """`model.ckpt` as published, or pruned: towers that it lacks are absent.

    Raises:
        ValueError: another model, a name or prediction type that does not fit, or several that do.
    """
    found, image = shapes_below(weights, UNET), shapes_below(weights, IMAGE)
    trunk = shapes.ldm_unet(found, asked.head_channels)
    gated = any(name.endswith(".alpha") for name in found)
    fps = STRIDE if f"{STRIDE}0.weight" in found else "fps_embedding."
    candidates = _candidates(weights, trunk.in_channels, bool(image), gated or fps == STRIDE)
    origin = ORIGINS[choose(candidates, asked.name)]
    schedule = origin.schedule
    if asked.prediction not in (None, schedule.prediction):
        raise ValueError(f"predicts {schedule.prediction}, not {asked.prediction}; leave that out.")
    stream = None
    if image:
        resampler = shapes.resampler(image, asked.head_channels, per_frame=trunk.in_channels > 4)
        width = shapes.size(image, "proj_in.weight", 2)[1]
        stream = ImageStreamConfig(width=width, resampler=resampler)
    temporal = shapes.family_temporal(trunk, shapes.size(found, "init_attn.0.proj_in.weight", 2)[0])
    unet = dataclasses.replace(trunk, numbers=("fps",), temporal=temporal, image_stream=stream)
    towers, parts = ldm_towers(weights)
    dialect = Dialect(prefix=UNET, input_temporal="init_attn.0.", down=".0.op.", fps=fps, gated=gated)
    parts = {"unet": (weights, ldm_family_unet(unet, dialect))} | parts
    return Foreign(origin, ModelConfig(unet=unet, schedule=schedule, **towers), parts, DROPPED)


def _candidates(weights: Weights, channels: int, image: bool, stride: bool) -> tuple[str, ...]:
    """The names in ORIGINS that the tensors leave."""
    if channels == 4:
        return ("videocrafter1-i2v",) if image else ("videocrafter2",)
    if channels != 8 or not image:
        raise ValueError(
            f"takes {channels} channels and {'a' if image else 'no'} picture; expected 4, or 8 and "
            "a picture, as VideoCrafter and DynamiCrafter have it."
        )
    if stride:
        return ("dynamicrafter-256",)
    by_v = ("dynamicrafter-512", "dynamicrafter-512-interp", "dynamicrafter-1024")
    if SCALES not in weights.entries:
        return by_v
    found = weights.entries[SCALES]
    if len(found.shape) != 1 or not 1 <= found.shape[0] <= MOST_TIMESTEPS:
        raise ValueError(f"has {SCALES} of shape {found.shape}, expected a list of numbers; take another.")
    scale = weights.read(SCALES)[-1].double().item()
    fitting = tuple(name for name in by_v if abs(ORIGINS[name].schedule.x0_scale - scale) < 0.005)
    if not fitting:
        raise ValueError(f"scales x0 down to {scale:g}, as no known model does; take a published one.")
    return fitting
