"""The network of a run on real data: from its base, as its stage trains it, and at the end into a file."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from training.config import Recipe
from training.lora import add_lora, save_lora
from training.options import DenoiseOptions, JoinedOptions
from training.saved import FINAL, load, take_over
from univid import checkpoints
from univid.config import SamplingProfile, StartProfile
from univid.model import UniVid
from univid.narrowed import narrowed
from univid.unet import UNet
from univid.widened import widened

from . import adapters, animate, finetune, joint, known, t2v, upscale
from .base import load_base, trainable
from .conditions import Mode, Stage, shares_of
from .parts import parameters_of

STAGES: dict[str, Stage] = {
    "t2v": t2v.STAGE,
    "adapters": adapters.STAGE,
    "adapters_kv": adapters.KV,
    "joint": joint.STAGE,
    "animate": animate.STAGE,
    "known": known.STAGE,
    "upscale": upscale.STAGE,
    "full": finetune.FULL,
    "lora": finetune.LORA,
    "distill": finetune.DISTILL,
}
UPSCALING_STEPS = 7  # of ten from all noise, those below timestep 700 (UniVG, 3.4)
ANY_STREAMS = ("known", "full", "lora", "distill")  # stages also of networks that see no pictures


def modes_of(options: DenoiseOptions, base: UniVid) -> Mapping[Mode, float]:
    """How often each mode is shown: as asked, else as the stage says, else as the base can."""
    if options.modes:
        return shares_of(options.modes)
    if options.stage in ANY_STREAMS and base.config.unet.image_stream is None:
        return finetune.TEXT_MODES
    return STAGES[options.stage].modes


def joined(options: DenoiseOptions, base: UniVid) -> JoinedOptions | None:
    """What joins the network's input: as asked, else as the base takes it."""
    concat = base.profile.inputs.concat
    return options.joined or (None if concat == "none" else JoinedOptions(concat))


def load_joined(options: DenoiseOptions, seed: int) -> UniVid:
    """The base, with weights for the latents that shall join its input, as its stage takes it.

    Raises:
        ValueError: no such base, or one that takes other latents.
    """
    base, asked = load_base(options.base, seed), options.joined
    if STAGES[options.stage].upscales:
        base = narrowed(base)
    takes = base.profile.inputs.concat
    if asked is None or takes == asked.concat:
        if asked is not None and asked.noise and "noise" not in base.config.unet.numbers:
            raise ValueError(
                f"{options.base} is told of no noise on known frames, got joined.noise {asked.noise:g}; set "
                "it to 0, or take the base without joined latents."
            )
        return base
    if takes != "none":
        raise ValueError(
            f"{options.base} takes joined latents {takes!r}, got joined.concat {asked.concat!r}."
        )
    return widened(base, asked.concat, 0.0 if asked.noise else None)


def trained_profile(options: DenoiseOptions, base: UniVid) -> SamplingProfile:
    """How the result is sampled: as the base is, from the biased noise, or the noise level, below which it is
    trained; an upscaler at the size and length of its data; what was distilled, in few steps and without
    guidance. A LoRA's result leaves that to the model which it is for.
    """
    biased, asked, profile = options.noise.biased, options.noise.timesteps, base.profile
    start = profile.start
    if biased is not None:
        start = StartProfile(timestep=None, denoise=1.0, biased_noise=biased)
    elif asked is not None and start.biased_noise is None and options.lora is None:
        last = base.config.schedule.num_timesteps - 1 if start.timestep is None else start.timestep
        share = round((asked[1] - 1) / last, len(str(last)))  # which NoiseSchedule.starting makes exact again
        start = dataclasses.replace(start, denoise=min(start.denoise, share))
    if STAGES[options.stage].upscales:
        (height, width), frames = options.data.buckets[0], options.data.max_frames
        profile = dataclasses.replace(
            profile, height=height, width=width, frames=frames, steps=UPSCALING_STEPS,
            guidance=dataclasses.replace(profile.guidance, scale=1.0),  # the video says more than the words
        )  # fmt: skip
    if options.noise.distill is not None:
        profile = few_steps(profile, options.noise.distill.steps)
    return dataclasses.replace(profile, start=start)


def few_steps(profile: SamplingProfile, steps: int) -> SamplingProfile:
    """How what was distilled is sampled: in so many steps of one call each, without guidance."""
    alone = dataclasses.replace(profile.guidance, kind="joint", scale=1.0, rescale=0.0)
    return dataclasses.replace(
        profile, sampler="lcm", sigma_schedule="sgm_uniform", steps=steps, eta=0.0, guidance=alone
    )


def starts_from_video(profile: SamplingProfile) -> bool:
    """Whether a model makes a video from another, and not from its picture in every frame."""
    start = profile.start
    return start.from_video and (start.biased_noise is None or profile.inputs.concat != "first")


def timesteps_of(options: DenoiseOptions, base: UniVid) -> range:
    """Which timesteps are drawn: those that were asked for, else all, or all below t_n of biased noise."""
    biased = trained_profile(options, base).start.biased_noise
    end = base.config.schedule.num_timesteps if biased is None else int(biased.t_n)
    asked = range(*options.noise.timesteps or (0, end))
    if asked.stop > end:
        raise ValueError(
            f"expected timesteps below {end}, as the schedule and biased noise have them, got "
            f"noise.timesteps to {asked.stop}; lower it."
        )
    return asked


def build_network(options: DenoiseOptions, base: UniVid, seed: int, root: Path) -> UNet:
    """A network of its own, in float32, with what the stage trains of it marked."""
    unet = trainable(base.unet)
    if options.start is not None:
        _take_over(unet, STAGES[options.stage], base, options, root / options.start / FINAL)
    arrange(unet, options, seed)
    return unet


def arrange(unet: UNet, options: DenoiseOptions, seed: int) -> None:
    """Mark what is trained of a network, and add its adapters.

    Raises:
        ValueError: nothing is left to train.
    """
    among = parameters_of(unet, options.parts)
    if options.lora is not None:
        among = {
            f"{path}.lora_{side}.weight"
            for path in add_lora(unet, options.lora, seed, among)
            for side in "AB"
        }
    trained = {name for name in among if STAGES[options.stage].trains(name)}
    if not trained:
        raise ValueError(
            f"stage {options.stage!r} trains nothing of this network's parts {options.parts!r}; choose other "
            "parts."
        )
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(name in trained)


def _take_over(unet: UNet, stage: Stage, base: UniVid, options: DenoiseOptions, path: Path) -> None:
    """Continue from the averaged weights of a finished run."""
    if not path.exists():
        raise ValueError(
            f"expected the finished run that this one starts from at {path}, got none; train it first, or "
            "set options.start."
        )
    saved = load(path)
    try:
        unet.load_state_dict(saved["ema"])
    except RuntimeError as error:
        raise ValueError(
            f"the network of {path} does not fit {options.base}; set options.base to what that run was "
            "trained on."
        ) from error
    if (saved["recipe"]["options"] or {}).get("stage") == "t2v" and base.image_encoder is not None:
        stage.begin(unet, base.image_encoder)  # stage 1 moved K_t and V_t, from which K_v and V_v start


def write_result(
    recipe: Recipe,
    root: Path,
    state: Mapping[str, Tensor],
    step: int,
    path: Path,
    dtype: torch.dtype = torch.float16,
    beside_built_in: bool = False,
) -> None:
    """Write what a run has made: a native checkpoint with all parts of its base, or the LoRA alone.

    Args:
        state: of the network, as `final.pt` holds it under "ema", or what is trained of it, as a run's
            states do.
        dtype: of all weights in the file.
        beside_built_in: as of `checkpoints.save`.

    Raises:
        ValueError: weights that are not finite in this type, or a file that cannot be written.
    """
    options: DenoiseOptions = recipe.options
    base = load_joined(options, recipe.seed)
    unet = build_network(options, base, recipe.seed, root)
    take_over(unet, unet.state_dict() | dict(state), root / recipe.name)
    words = {"source": f"python -m training: {recipe.name}, {options.stage} of {Path(options.base).name}"}
    if options.lora is not None:
        kept = {key: base.info[key] for key in ("licence",) if key in base.info}
        name = Path(options.base).stem
        save_lora(path, unet, options.lora, base=name, steps=step, info=kept | words, dtype=dtype)
        return
    info = base.info | words | {"training_step": str(step)}
    profile = trained_profile(options, base)
    model = UniVid(base.config, profile, unet, base.vae, base.text_encoder, base.image_encoder, info=info)
    checkpoints.save(path, model, dtype=dtype, beside_built_in=beside_built_in)
