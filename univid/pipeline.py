"""From words and pictures to a video: the whole flow in `generate`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from . import memory, samplers, travel
from .asked import Clip, Picture, Sampling, Source, check_size, over_steps, pictures_of, tile_cells
from .biased import BiasedNoise, biased_mode
from .coding import encode, pieces
from .conditioning import Conditioning, check_weights
from .config import KNOWN, SamplingProfile, UNetConfig
from .diffusion import NoiseSchedule
from .guidance import Joint, Nested, Separate
from .joined import joined_latents, picture_latents
from .known import check_known
from .layers import centers_by_level
from .model import UniVid
from .noise import FRESH, LowBand
from .steer import Masks
from .steer.run import Run, check_steering
from .tiles import Tile, blended

Guider = Joint | Separate | Nested
Progress = Callable[[str, int, int], None]  # (stage, steps done, steps in all); raising cancels


@torch.no_grad()
def generate(
    model: UniVid,
    prompt: str | list[str] = "",
    image: Tensor | Sequence[Picture] | None = None,
    *,
    negative: str = "",
    text_weight: float = 1.0,
    image_weight: float = 1.0,
    guidance: Guider | None = None,
    seed: int = 0,
    clip: Clip = Clip(),  # noqa: B008 (it is frozen, as the next two)
    source: Source = Source(),  # noqa: B008
    sampling: Sampling = Sampling(),  # noqa: B008
    masks: Masks = Masks(),  # noqa: B008
    callback: Progress | None = None,
) -> Tensor:
    """Make clips `[b 3 t h w]` in -1..1, float32 on the CPU, from text, a picture, or both.

    Args:
        prompt: text, or a list with one text a clip; a text may change along the clip, see `travel`. Empty
            text with a picture animates the picture (I2V).
        image: picture `[1 3 h w]` of any size in -1..1, for all clips, or `[b 3 h w]`, one a clip; or
            several, each with its share of lambda_v.
        negative: what guidance leads away from; empty = no condition.
        text_weight, image_weight: the modality weights lambda_t, lambda_v; without a picture lambda_v is 0.
        guidance: None = the profile's.
        seed: of the first clip; clip i uses seed + i.
        masks: where in the frames text and picture count, for all clips.
        callback: called as (stage, done, total) for the stages "encode", "sample", "decode"; raising cancels.

    Raises:
        ValueError: a value out of range, a part that the checkpoint lacks, or too much for the memory.
        FloatingPointError: a stage gave nan or infinite values.
    """
    profile, prompts = model.profile, [prompt] if isinstance(prompt, str) else list(prompt)
    check_weights(text_weight, image_weight)
    text_weight, image_weight = (
        weight * on for weight, on in zip((text_weight, image_weight), masks.counts(), strict=True)
    )
    pictures, alone = pictures_of(image), isinstance(image, Tensor)
    if not pictures and not any(prompt.strip() for prompt in (*prompts, negative)):
        text_weight = 0.0  # nothing is said, so guidance has nothing to compare with
    images = [picture.image for picture in pictures]
    _check_inputs(model, prompts, images, source, seed, masks)
    _check_relatives(model, images, source.last_image, clip.fps_number)
    image = images[0] if images else None
    t, h, w = _size(model, clip, source.video)
    masks.check(t)
    shares = [] if alone else [picture.share(t) for picture in pictures]
    if shares and not any(share.any() for share in shares):
        image_weight = 0.0
    check_known(model, source, image, t)
    factor = model.config.vae.factor
    tile = tile_cells(sampling.tile, factor)
    guider = guidance or profile_guider(profile)
    device = next(model.unet.parameters()).device
    denoiser, how = model.denoiser(model.unet.dtype), sampling.by(profile)
    how.steering.check(t)
    check_steering(how.steering, model.config.unet)
    _check_low_band(how.low_band, image, source, denoiser.schedule)
    if how.references:
        _check_references(model.config.unet, how.references)
        references = centers_by_level(how.references, how.steering.referable(t), device)
        looking = partial(denoiser.network, reference_frames=references)
        denoiser = dataclasses.replace(denoiser, network=looking)
    sample = samplers.get_sampler(how.sampler, denoiser.schedule, how.eta)
    noisy = how.sampler if samplers.adds_noise(how.sampler, how.eta) else None
    mode = biased_mode(profile, how.biased_noise, noisy)
    sigmas = samplers.sigma_schedule(how.sigma_schedule, denoiser.schedule, how.steps, source.denoise)
    report = callback or (lambda stage, done, total: None)
    seen = image is not None and model.config.unet.image_stream is not None
    over_time = how.steering.temporal_guidance > 0
    branches = guider.branches(text_weight > 0, seen and image_weight > 0, over_time)
    _check_memory(model, len(prompts), len(branches), (t, h, w), device, sampling)

    cond, uncond = encode_conditions(
        model, prompts, images, negative, text_weight, image_weight, range(clip.start, clip.start + t)
    )
    seeds = [seed + number for number in range(len(prompts))]
    shape = (len(prompts), model.config.vae.latent_channels, t, h // factor, w // factor)
    noise = how.noise(seeds, clip.start)
    first = noise(shape).to(device)
    numbers = _numbers(model, clip, source)
    # No branch of guidance is without these two, as in the sources.
    extras = {
        "concat": joined_latents(
            model, image, source, numbers.get("noise", 0.0) / 1000, (t, h, w), first, tile
        ),
        "numbers": {
            name: torch.full((len(prompts),), float(value), device=device) for name, value in numbers.items()
        },
    }
    cond, uncond = (dataclasses.replace(c, **extras) for c in (cond, uncond))
    maps = masks.maps(t, h // factor, w // factor, shares)
    if maps is not None:
        maps = maps.to(device).expand(len(prompts), *maps.shape[1:])
        cond = dataclasses.replace(cond, maps=maps)
    if profile.inputs.null_image == "grey":
        denoiser = dataclasses.replace(denoiser, null_image=grey_tokens(model))
    start = None if source.known else source.video
    latents = None if start is None else encode(model, start, tile)
    if latents is None and profile.start.biased_noise is not None:
        latents = cond.concat  # the picture in every frame
    for name, tokens in (
        ("text encoder", cond.text),
        ("image encoder", cond.image),
        ("image encoder", denoiser.null_image),
        ("VAE encoder", cond.concat),
        ("VAE encoder", latents),
    ):
        _check_finite(tokens, f"the {name}", model)
    report("encode", 1, 1)

    kept = None if source.kept is None else encode(model, source.kept, tile).to(device)
    low_band = how.low_band
    picture = picture_latents(model, image, (h, w), len(prompts), tile) if low_band.picture else None

    def on_step(step: int, total: int, x: Tensor, denoised: Tensor) -> None:
        _check_finite(denoised, f"the U-Net in step {step + 1} of {total}", model)
        report("sample", turn * total + step + 1, low_band.runs * total)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        now, temporal = acting.at(sigma)
        shown = acting.shown(cond, sigma)

        def part(tile: Tile) -> Tensor:
            return guider(now, tile.of(x), sigma, shown.within(tile), uncond.within(tile), temporal)

        denoised = blended(part, *x.shape[-2:], tile)
        return denoised if kept is None else torch.cat([kept, denoised[:, :, kept.shape[2] :]], 2)

    if mode == "consistent":
        denoise = BiasedNoise(profile.start.biased_noise, denoiser.schedule).consistent(denoise, latents)
    report("sample", 0, low_band.runs * (len(sigmas) - 1))
    x = picture  # where the next run's low band comes from
    for turn in range(low_band.runs):
        acting = Run(denoiser, how.steering, over_steps(pictures))  # one keeps nothing of another
        start = first
        if x is not None:
            fresh = how.noise([each + (turn + 1) * FRESH for each in seeds], clip.start)(shape)
            start = low_band.start(x, first, fresh, denoiser.schedule).to(device)
        x = samplers.initial_x(start, sigmas[0], denoiser.schedule, latents)  # [b c t h w]
        x = sample(denoise, x, sigmas, noise=noise, callback=on_step)

    report("decode", 0, len(prompts) * t)
    found = pieces(model, "decode", len(prompts), (t, h, w), tile)
    result = model.vae.decode(
        x, chunk=found.chunk, tile=found.tile, callback=lambda done, total: report("decode", done, total)
    )
    _check_finite(result, "the VAE decoder", model)
    result = result.float().clamp_(-1, 1).cpu()
    if source.known and not numbers.get("noise"):
        result[:, :, list(source.known)] = source.video[:, :, list(source.known)].float().cpu()
    if kept is not None:
        result[:, :, : kept.shape[2]] = source.kept.float().cpu()
    return result


def profile_guider(profile: SamplingProfile) -> Guider:
    """The guider that a sampling profile describes.

    Raises:
        ValueError: an unknown kind, or a scale that is negative or not finite.
    """
    given = profile.guidance
    if given.kind == "joint":
        return Joint(given.scale, given.rescale)
    if given.kind == "separate":
        return Separate(given.text, given.image, given.rescale)
    if given.kind == "nested":
        return Nested(given.text, given.image, given.rescale)
    raise ValueError(f"guidance must be 'joint', 'separate' or 'nested', got {given.kind!r}.")


def encode_conditions(
    model: UniVid,
    prompts: list[str],
    images: list[Tensor],
    negative: str,
    text_weight: float,
    image_weight: float,
    frames: range,
) -> tuple[Conditioning, Conditioning]:
    """What guidance needs for `b` prompts: all conditions, and none (the negative text, weights (1, 0)).

    frames: which of those that prompts may be keyed to.
    """
    clips = len(prompts)
    text, none = (
        travel.encode(model.text_encoder, given, len(frames), frames.start) for given in (prompts, [negative])
    )
    none = none.expand(clips, *none.shape[1:])
    tokens, seen = None, bool(images) and model.config.unet.image_stream is not None
    if seen:
        tokens = torch.cat([model.image_encoder(image).expand(clips, -1, -1) for image in images], 1)
    pair = [text_weight, image_weight if seen else 0.0]
    weights = torch.tensor([pair]).expand(clips, -1)
    cond = Conditioning(text=text, image=tokens, weights=weights)
    uncond = Conditioning(text=none, image=None, weights=weights.new_tensor([[1.0, 0.0]]).expand(clips, -1))
    return cond, uncond


def grey_tokens(model: UniVid) -> Tensor:
    """Image tokens `[1 m d]` of a grey picture."""
    side = model.config.vision.image_size
    return model.image_encoder(torch.zeros(1, 3, side, side))


def _numbers(model: UniVid, clip: Clip, source: Source) -> dict[str, float]:
    """What the U-Net is told of each of its numbers: what was asked for, else the profile's."""
    told = {number.name: number.value for number in model.profile.inputs.numbers}
    if clip.fps_number is not None:
        told["fps"] = clip.fps_number
    if source.known_noise is not None:
        told["noise"] = 1000 * source.known_noise
    return told


def _check_relatives(
    model: UniVid, images: list[Tensor], last_image: Tensor | None, fps_number: float | None
) -> None:
    """What some models take and others do not."""
    profile, unet = model.profile, model.config.unet
    if not images and profile.inputs.concat not in ("none", *KNOWN):
        raise ValueError("this model animates a picture, got none; give an image.")
    if images and unet.image_stream is None and profile.inputs.concat == "none":
        raise ValueError("this model makes videos from text alone, got a picture too; leave the image out.")
    if len(images) > 1 and profile.inputs.concat != "none":
        raise ValueError(f"this model takes one picture, got {len(images)}; give one.")
    if last_image is not None:
        if profile.inputs.concat not in ("ends", *KNOWN):
            raise ValueError(
                "this model does not go from one picture to another, got a last image; leave it out."
            )
        if last_image.dim() != 4 or last_image.shape[0] not in (1, len(images[0]) if images else 1):
            raise ValueError(
                f"last_image must be [1 3 h w], or one for each image, got {list(last_image.shape)}."
            )
    check_fps_number(model, fps_number)


def check_fps_number(model: UniVid, fps_number: float | None) -> None:
    """Refuse, by a ValueError, what a model is told of its fps embedding, or that it is told nothing."""
    known = "fps" in model.config.unet.numbers
    if fps_number is not None:
        if not known:
            raise ValueError(f"this model was trained without fps_number, got {fps_number:g}; leave it out.")
        if not 0 < fps_number <= 1000:
            raise ValueError(f"fps_number must be above 0 and at most 1000, got {fps_number}.")
    elif known and model.profile.inputs.number("fps") is None:
        raise ValueError("this model needs fps_number, got none; give what it was trained with.")


def _check_references(unet: UNetConfig, counts: Mapping[int, int]) -> None:
    if not unet.temporal.segment_frames:
        raise ValueError(
            "this model has no PSTAttn, as imported ones that are not extended; leave the references out."
        )
    if unknown := sorted(set(counts) - set(unet.factors)):
        raise ValueError(
            f"expected references for levels among {unet.factors}, as this model has, got {unknown}; "
            "leave those out."
        )
    for factor, count in counts.items():
        if not isinstance(count, int) or count < 0:
            raise ValueError(
                f"expected a number of reference frames from 0 (off) on, got {count} for level {factor}; "
                "leave it out for the model's own."
            )


def _check_low_band(low_band: LowBand, image: Tensor | None, source: Source, schedule: NoiseSchedule) -> None:
    if low_band.runs == 1 and not low_band.picture:
        return
    if source.video is not None or source.kept is not None or not schedule.from_noise:
        raise ValueError(
            "FreeInit and FrameInit are for clips that start from noise alone, got a video; leave one out."
        )
    if low_band.picture and image is None:
        raise ValueError("FrameInit needs a picture, got none; give an image.")


def _check_inputs(
    model: UniVid, prompts: list[str], images: list[Tensor], source: Source, seed: int, masks: Masks
) -> None:
    follows = source.video is not None and (source.known or model.profile.start.from_video)
    said = follows or images or all(prompt.strip() for prompt in prompts)
    if not prompts or not said:
        raise ValueError("expected a prompt, an image or both, got neither; say what the video shall show.")
    needed = {"unet": "U-Net", "vae": "VAE", "text_encoder": "text encoder"}
    if model.config.unet.image_stream is not None and (images or model.profile.inputs.null_image == "grey"):
        needed["image_encoder"] = "image encoder"
    if not images and masks.image is not None:
        raise ValueError("the image_mask needs a picture, got none; give an image, or leave the mask out.")
    for image in images:
        if image.dim() != 4 or image.shape[0] not in (1, len(prompts)) or image.shape[1] != 3:
            raise ValueError(f"image must be [1 3 h w], or one for each prompt, got {list(image.shape)}.")
    for part, words in needed.items():
        if getattr(model, part) is None:
            raise ValueError(f"this checkpoint holds no {words}, which is needed here; load one that does.")
    video = source.video
    if video is not None and (video.dim() != 5 or video.shape[:2] != (1, 3)):
        raise ValueError(f"video must be one clip [1 3 t h w], got {list(video.shape)}.")
    if video is None and source.denoise != 1:
        raise ValueError(
            f"denoise needs a video to start from, got denoise {source.denoise} without one; give a video."
        )
    start = model.profile.start
    animates = start.biased_noise is not None and model.profile.inputs.concat == "first"
    start.check_source(video is not None or animates, source.denoise)
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be a whole number from 0 to 2^63 - 1, got {seed}.")


def _size(model: UniVid, clip: Clip, video: Tensor | None) -> tuple[int, int, int]:
    """Frames, height and width: as asked, else the video's, else the profile's."""
    profile, factor = model.profile, model.config.vae.factor
    default = (profile.frames, profile.height, profile.width) if video is None else tuple(video.shape[2:])
    size = tuple(
        d if given is None else given
        for given, d in zip((clip.frames, clip.height, clip.width), default, strict=True)
    )
    if video is not None and size != default:
        raise ValueError(
            f"video has frames, height, width {default}, but {size} were asked for; resize it first."
        )
    if size[0] < 1:
        raise ValueError(f"frames must be at least 1, got {size[0]}.")
    check_size(*size[1:], factor)
    return size


def _check_memory(
    model: UniVid,
    clips: int,
    branches: int,
    size: tuple[int, int, int],
    device: torch.device,
    sampling: Sampling,
) -> None:
    """Refuse what would not fit into the device's memory, or the finished clips into the machine's."""
    t, h, w = size
    what = f"{f'{clips:,} x ' if clips > 1 else ''}{t:,} frames of {w:,} x {h:,} need"
    advice = "ask for fewer frames, or a smaller height and width"
    smaller = f"{advice}, or load the model as bf16" if model.unet.dtype == torch.float32 else advice
    needed = memory.needed(
        model.config, clips=clips, branches=branches, size=size, dtype=model.unet.dtype, device=device,
        tile=sampling.tile, steering=sampling.steering,
    )  # fmt: skip
    memory.check(needed, what, smaller, device)
    if device.type != "cpu":
        memory.check(memory.finished(clips, size), what, advice)


def _check_finite(tensor: Tensor | None, stage: str, model: UniVid) -> None:
    # By the extremes, because isfinite() makes a copy as large as the clip.
    if tensor is not None and not torch.stack(tensor.aminmax()).isfinite().all():
        dtype = str(model.unet.dtype).removeprefix("torch.")
        advice = (
            "the checkpoint is damaged" if dtype == "float32" else "try dtype fp32, or bf16 instead of fp16"
        )
        raise FloatingPointError(f"{stage} gave nan or infinite values in {dtype}; {advice}.")
