"""The network of a run on real data: from its base, as its stage trains it, and at the end into a file."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from training.config import Recipe
from training.data.samples import MODALITIES
from training.lora import add_lora, save_lora
from training.options import DenoiseOptions, JoinedOptions
from training.saved import FINAL, load, take_over
from univid import checkpoints
from univid.config import KNOWN, SamplingProfile, StartProfile, check_start
from univid.model import UniVid
from univid.unet import UNet
from univid.widened import widened

from . import adapters, finetune, joint, t2v
from .base import load_base, trainable
from .conditions import Mode, Stage, shares_of

STAGES: dict[str, Stage] = {
    "t2v": t2v.STAGE,
    "adapters": adapters.STAGE,
    "adapters_kv": adapters.KV,
    "joint": joint.STAGE,
    "full": finetune.FULL,
    "lora": finetune.LORA,
}
FINETUNING = ("full", "lora")


def modes_of(options: DenoiseOptions, base: UniVid) -> Mapping[Mode, float]:
    """How often each mode is shown: as asked, else as the stage says, else as the base can."""
    if options.modes:
        return shares_of(options.modes)
    if options.stage in FINETUNING and base.config.unet.image_stream is None:
        return finetune.TEXT_MODES
    return STAGES[options.stage].modes


def joined(options: DenoiseOptions, base: UniVid) -> JoinedOptions | None:
    """What joins the network's input: as asked, else as the base takes it."""
    concat = base.profile.inputs.concat
    return options.joined or (None if concat == "none" else JoinedOptions(concat))


def load_joined(options: DenoiseOptions, seed: int) -> UniVid:
    """The base, with weights for the latents that shall join its input.

    Raises:
        ValueError: no such base, or one that takes other latents.
    """
    base, asked = load_base(options.base, seed), options.joined
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
    """How the result is sampled: as the base is, from the biased noise that it is trained on."""
    biased, profile = options.noise.biased, base.profile
    if biased is None:
        return profile
    start = StartProfile(timestep=None, denoise=1.0, biased_noise=biased)
    return dataclasses.replace(profile, start=start)


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


def _check_biased(options: DenoiseOptions, base: UniVid) -> None:
    profile = trained_profile(options, base)
    check_start(base.config, profile)
    if profile.start.biased_noise is None:
        return
    if profile.inputs.concat != "first":
        raise ValueError(
            f"biased noise leads to a clip from the picture in its every frame, which {options.base} is not "
            'given; take a base with concat latents "first".'
        )
    if options.lora is not None and profile.start != base.profile.start:
        raise ValueError(
            f"a LoRA cannot change where sampling starts, got biased noise that {options.base} lacks; leave "
            "noise.biased out, or take another stage."
        )


def check(recipe: Recipe, base: UniVid) -> None:
    """Refuse what a base cannot learn, or not from such data.

    Raises:
        ValueError: in one sentence.
    """
    options, unet, inputs = recipe.options, base.config.unet, base.profile.inputs
    held = [modality for modality, size in recipe.batch.items() if size]
    if unknown := [modality for modality in held if modality not in MODALITIES]:
        raise ValueError(f"the modalities of a batch are {', '.join(MODALITIES)}, got {', '.join(unknown)}.")
    if not any(options.loss_weights.get(modality, 1.0) for modality in held):
        raise ValueError(
            f"expected a step with samples whose loss counts, got a batch of {dict(recipe.batch)} and "
            f"loss_weights {dict(options.loss_weights)}; raise either."
        )
    pictures = any(mode[1][1] for mode in modes_of(options, base))
    if pictures and unet.image_stream is None:
        raise ValueError(
            f"stage {options.stage!r} shows pictures, and {options.base} has no image stream; give it one "
            "with `python -m univid import --extend`, or set options.modes to shares of none and text."
        )
    for part, needed in (
        ("text_encoder", True),  # for the empty prompt, also where the data is prepared
        ("image_encoder", inputs.null_image == "grey"),
    ):
        if needed and getattr(base, part) is None:
            raise ValueError(
                f"expected a base with a {part.replace('_', ' ')}, got {options.base} without; take a "
                "checkpoint that holds all parts."
            )
    if unet.temporal.kind == "family" and (stills := [m for m in held if m != "video"]):
        raise ValueError(
            f"the temporal layers of {options.base} take part in single frames too, so these cannot train "
            f"its spatial layers alone; set {' and '.join(f'batch.{m}' for m in stills)} to 0."
        )
    if inputs.concat not in ("none", *KNOWN) and options.data.reference != "first":
        raise ValueError(
            f"{options.base} animates a clip's first frame, got data.reference {options.data.reference!r}; "
            'set it to "first".'
        )
    _check_biased(options, base)


def build_network(options: DenoiseOptions, base: UniVid, seed: int, root: Path) -> UNet:
    """A network of its own, in float32, with what the stage trains of it marked."""
    stage, unet = STAGES[options.stage], trainable(base.unet)
    if options.start is not None:
        _take_over(unet, stage, base, options, root / options.start / FINAL)
    if options.lora is not None:
        add_lora(unet, options.lora, seed)
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(stage.trains(name))
    return unet


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
) -> None:
    """Write what a run has made: a native checkpoint with all parts of its base, or the LoRA alone.

    Args:
        state: of the network, as `final.pt` holds it under "ema", or what is trained of it, as a run's
            states do.
        dtype: of all weights in the file.

    Raises:
        ValueError: weights that are not finite in this type, or a file that cannot be written.
    """
    options: DenoiseOptions = recipe.options
    base = load_joined(options, recipe.seed)
    unet = build_network(options, base, recipe.seed, root)
    take_over(unet, unet.state_dict() | dict(state), root / recipe.name)
    words = {"source": f"python -m training: {recipe.name}, {options.stage} of {options.base}"}
    if options.lora is not None:
        kept = {key: base.info[key] for key in ("licence",) if key in base.info}
        name = Path(options.base).stem
        save_lora(path, unet, options.lora, base=name, steps=step, info=kept | words, dtype=dtype)
        return
    info = base.info | words | {"training_step": str(step)}
    profile = trained_profile(options, base)
    model = UniVid(base.config, profile, unet, base.vae, base.text_encoder, base.image_encoder, info=info)
    checkpoints.save(path, model, dtype=dtype)
