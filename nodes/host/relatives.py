"""What the public relatives take beside text and image tokens: a number for fps, and latents of pictures."""

import comfy.conds
import torch
from einops import rearrange
from torch import Tensor

from ...univid.conditioning import concat_frames
from ...univid.config import KNOWN, ModelConfig, SamplingProfile
from ...univid.known import known_channels, noisy
from ...univid.video import fit
from . import conditioning as keys
from .decode import FACTOR
from .prompts import rgb


def shared_inputs(
    fps_number: float, vae, latent: dict | None, image: Tensor | None, last_image: Tensor | None
) -> dict:
    """What positive and negative conditioning carry alike.

    fps_number: 0 = the model's own. latent: of the clip, for its size; with vae and image it gives the
        latents of the first frame, and with last_image `[1 h w c]` those of the last.

    Raises:
        ValueError: some of vae, latent and image without the others, or numbers out of range.
    """
    if not 0 <= fps_number <= 1000:
        raise ValueError(f"fps_number must be from 0 (the model's own) to 1000, got {fps_number}.")
    extras = {keys.NUMBER["fps"]: float(fps_number)} if fps_number else {}
    given = {"vae": vae, "latent": latent, "image": image}
    missing = [name for name, value in given.items() if value is None]
    if vae is None and latent is None and last_image is None:
        return extras
    if missing:
        raise ValueError(
            f"the first frame's latents need vae, latent and image, got no {' and no '.join(missing)}; "
            "connect all three, or image alone for a model that does not join them to its input."
        )
    height, width = (FACTOR * side for side in latent["samples"].shape[-2:])
    extras[keys.FIRST] = _encode(vae, image[:1], height, width)
    if last_image is not None:
        extras[keys.LAST] = _encode(vae, last_image[:1], height, width)
    return extras


def shared_conds(
    config: ModelConfig, profile: SamplingProfile, scale: float, noise: Tensor, given: dict
) -> dict:
    """The model conds of numbers, null image and concat latents, for those that the model has.

    scale: of the host's latents to the model's. noise: `[t c h w]`. given: what a conditioning carries.

    Raises:
        ValueError: something that the model needs is missing, or it has no place for what is given.
    """
    conds = {}
    for name, key in keys.NUMBER.items():
        known = profile.inputs.number(name)
        if name not in config.unet.numbers:
            if key in given:
                raise ValueError(
                    f"this model was trained without {name}_number, got {given[key]:g}; set it to 0 in "
                    "Encode Dual Prompt."
                )
        elif key in given or known is not None:
            value = given[key] if key in given else known.value
            conds[key] = comfy.conds.CONDRegular(torch.tensor([[value]]))
        else:
            raise ValueError(f"this model needs {name}_number, got none; set it in Encode Dual Prompt.")
    if profile.inputs.null_image == "grey":
        if given.get(keys.NULL) is None:
            raise ValueError(
                "this model animates a picture and got none; connect clip_vision and image of Encode Dual "
                "Prompt, a grey picture for none, and take its negative too."
            )
        conds[keys.NULL] = comfy.conds.CONDRegular(given[keys.NULL])
    concat = profile.inputs.concat
    if concat in KNOWN:
        level = conds[keys.NUMBER["noise"]].cond.item() / 1000 if "noise" in config.unet.numbers else 0.0
        conds[keys.CONCAT] = comfy.conds.CONDRegular(_known(concat, scale, level, noise, given))
    elif concat != "none":
        conds[keys.CONCAT] = comfy.conds.CONDRegular(scale * _concat(concat, noise, given))
    elif keys.FIRST in given:
        raise ValueError(
            "this model does not join a picture's latents to its input; disconnect vae, latent and "
            "last_image of Encode Dual Prompt."
        )
    elif keys.KNOWN in given:
        raise ValueError(
            "this model makes whole clips and takes no known frames; load one that was trained for them, or "
            "remove Known Frames."
        )
    return conds


def _known(kind: str, scale: float, level: float, noise: Tensor, given: dict) -> Tensor:
    """Latents of the known frames, and their mask, `[t c+1 h w]`."""
    frames = dict(given.get(keys.KNOWN, {}))
    frames |= {
        place: given[key] for place, key in ((0, keys.FIRST), (len(noise) - 1, keys.LAST)) if key in given
    }
    latents, mask = torch.zeros_like(noise), torch.zeros(1, len(noise), dtype=torch.bool)
    for place, known in frames.items():
        _check_size(known, noise)
        if place >= len(noise):
            raise ValueError(
                f"frame {place} is known, and the clip has {len(noise)}; connect the same latent to Known "
                "Frames and to the sampler."
            )
        latents[place], mask[0, place] = scale * known[0], True
    latents, noise = (rearrange(x, "t c h w -> 1 c t h w") for x in (latents, noise))
    return rearrange(known_channels(kind, noisy(latents, level, noise), mask), "1 c t h w -> t c h w")


def _concat(kind: str, noise: Tensor, given: dict) -> Tensor:
    """Latents `[t c h w]`, unscaled, that go with the noise `[t c h w]`."""
    first, last = given.get(keys.FIRST), given.get(keys.LAST)
    if first is None:
        raise ValueError(
            "this model joins the picture's latents to its input and got none; connect vae and latent of "
            "Encode Dual Prompt, and take its negative too."
        )
    if last is not None and kind != "ends":
        raise ValueError("this model does not go from one picture to another; disconnect last_image.")
    _check_size(first, noise)
    first, last = (t if t is None else rearrange(t, "1 c h w -> 1 c 1 h w") for t in (first, last))
    return rearrange(concat_frames(kind, first, last, len(noise)), "1 c t h w -> t c h w")


def _check_size(latents: Tensor, noise: Tensor) -> None:
    if latents.shape[-2:] != noise.shape[-2:]:
        clip, shown = (f"{FACTOR * s[-1]} x {FACTOR * s[-2]}" for s in (noise.shape, latents.shape))
        raise ValueError(
            f"expected the picture's latents for {clip}, the size of the clip, got {shown}; connect the same "
            "latent to Encode Dual Prompt and to the sampler."
        )


def _encode(vae, image: Tensor, height: int, width: int) -> Tensor:
    """Latents `[1 c h w]` of a picture `[1 h w c]` in 0..1, cropped at its centre to the clip's shape."""
    clip = fit(2 * rearrange(rgb(image), "1 h w c -> 1 c 1 h w") - 1, height, width)
    return vae.encode((rearrange(clip, "1 c 1 h w -> 1 h w c") + 1) / 2)
