"""UniVid's guidance as a GUIDER of the host: branches over text and picture, all in one call of the model."""

import uuid

import comfy.conds
import comfy.samplers
import torch
from einops import rearrange
from torch import Tensor

from ...univid import curves
from ...univid.guidance import Joint, Nested, Pulls, Separate, pulls
from . import conditioning as keys
from .schedule import x0_scale

Guidance = Joint | Separate | Nested


class UniVidGuider(comfy.samplers.CFGGuider):
    """A CFGGuider whose `predict_noise` combines up to four branches.

    pulls: of each step, what `univid.guidance.pulls` read off the branches; None where they do not show it.
    """

    def __init__(self, model, guidance: Guidance):
        super().__init__(model)
        self.guidance = guidance
        self.pulls: list[Pulls | None] = []
        if isinstance(guidance, Joint):
            self.set_cfg(guidance.scale)

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options=None, seed=None) -> Tensor:
        options = model_options or {}
        positive, negative = (
            [cond for cond in self.conds[name] if _active(cond, timestep)]
            for name in ("positive", "negative")
        )
        progress = keys.progress(options.get("transformer_options", {}), timestep)
        has_text, has_image = _given(positive, progress)
        coefficients = self.guidance.plan(has_text, has_image)
        if not negative and positive:  # its timestep range is over: the conditional answer stands alone
            coefficients = {("T" if has_text else "") + ("I" if has_image else ""): 1.0}
        plain = isinstance(self.guidance, Joint) and not self.guidance.rescale
        if plain and negative and (has_text or has_image):  # the host's own formula, with all its patches
            self.pulls.append(None)
            return super().predict_noise(x, timestep, options, seed)

        branches = {name: _branch(name, positive, negative) for name in coefficients}
        outputs = comfy.samplers.calc_cond_batch(
            self.inner_model, list(branches.values()), x, timestep, options
        )
        answers = {
            name: rearrange(out, "t c h w -> 1 c t h w") for name, out in zip(branches, outputs, strict=True)
        }
        self.pulls.append(pulls(answers))
        denoised = self.guidance.combine(
            answers,
            coefficients,
            rearrange(x, "t c h w -> 1 c t h w"),
            timestep[:1],
            torch.tensor([has_text], device=x.device),
            x0_scale(self.inner_model.model_sampling, timestep[:1]),
        )
        denoised = rearrange(denoised, "1 c t h w -> t c h w")
        for patch in options.get("sampler_post_cfg_function", []):
            denoised = patch(
                {
                    "denoised": denoised,
                    "cond": positive,
                    "uncond": negative,
                    "cond_scale": self.cfg,
                    "model": self.inner_model,
                    "uncond_denoised": outputs[-1],
                    "cond_denoised": outputs[0],
                    "sigma": timestep,
                    "model_options": options,
                    "input": x,
                }
            )
        return denoised


def _active(cond: dict, timestep: Tensor) -> bool:
    """Whether the timestep lies in the cond's range; the host would answer zeros for it outside."""
    sigma = timestep[0].item()
    start, end = cond.get("timestep_start"), cond.get("timestep_end")
    return not ((start is not None and sigma > start) or (end is not None and sigma < end))


def _given(conds: list[dict], progress: float) -> tuple[bool, bool]:
    """Whether any frame has a text weight, and an image weight, at this point of the sampling."""
    weights = [curves.at_progress(keys.weights_of(cond), progress) for cond in conds]
    return tuple(any(bool((w[..., i] != 0).any()) for w in weights) for i in (0, 1))


def _branch(name: str, positive: list[dict], negative: list[dict]) -> list[dict]:
    """The conds of a branch: "TI" is the positive, "e0" the negative, "T" and "I" halves of the positive.

    I shows the picture under the negative's text, whose weight is 1, or 0 where the user has switched the
    text stream off.
    """
    if name == "e0":
        return negative
    if name in ("TI", ""):
        return positive
    return [_half(cond, name, negative) for cond in positive]


def _half(cond: dict, name: str, negative: list[dict]) -> dict:
    conds = dict(cond["model_conds"])
    text, image = conds[keys.WEIGHTS].cond.unbind(-1)
    if name == "T":
        image = torch.zeros_like(image)
    else:
        text = (text > 0).to(text)
        if negative:
            other = negative[0]["model_conds"]
            conds["c_crossattn"] = other["c_crossattn"]
            shared = torch.stack([other[keys.SHARED].cond[:, 0], conds[keys.SHARED].cond[:, 1]], -1)
            conds[keys.SHARED] = comfy.conds.CONDRegular(shared)
    conds[keys.WEIGHTS] = comfy.conds.CONDRegular(torch.stack([text, image], -1))
    # EasyCache keeps its memory by this id, so a branch has the same one in every step.
    return cond | {"model_conds": conds, "uuid": uuid.uuid5(cond["uuid"], name)}
