"""UniVid's guidance as a GUIDER of the host: branches over text and picture, all in one call of the model."""

import functools
import uuid
from collections.abc import Callable

import comfy.conds
import comfy.samplers
import torch
from einops import rearrange
from torch import Tensor

from ...univid import curves
from ...univid.conditioning import streams_on
from ...univid.guidance import Joint, Nested, Pulls, Separate, merge, pulls
from . import cfg
from . import conditioning as keys
from .patches import Notices, owner
from .schedule import x0_scale

Guidance = Joint | Separate | Nested
EVOLVED = "ADGS"  # transformer option by which AnimateDiff-Evolved knows its own sampling


class UniVidGuider(comfy.samplers.CFGGuider):
    """A CFGGuider whose `predict_noise` combines up to four branches.

    pulls: of each call of the last whole run, as the branches show them; None where they do not.
    """

    def __init__(self, model, guidance: Guidance):
        super().__init__(model)
        self.guidance = guidance
        self.pulls: list[Pulls | None] = []
        self._pulls: list[Tensor | None] = []  # of the run that is on, where the model runs
        self.combination = cfg.Combination()
        self.notices = Notices()
        joint = isinstance(guidance, Joint)
        self.own_cfg = guidance.scale if joint else _scale(guidance.plan(True, True))
        self.set_cfg(self.own_cfg)

    def sample(self, *args, **kwargs) -> Tensor:
        self._pulls, self.combination = [], cfg.Combination()
        out = super().sample(*args, **kwargs)
        self.pulls = [None if pull is None else Pulls(*pull.tolist()) for pull in self._pulls]
        return out

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options=None, seed=None) -> Tensor:
        options = model_options or {}
        sigma = functools.cache(lambda: timestep[0].item())  # read, and waited for, where it decides
        positive, negative = (
            [cond for cond in self.conds[name] if _active(cond, sigma)] for name in ("positive", "negative")
        )
        has = _given(positive, lambda: self.inner_model.progress(timestep[:1]).cpu())
        # Another number than ours, which may be as large: CFG Override asks for plain guidance in this step.
        overridden = self.cfg is not self.own_cfg
        guidance = Joint(self.cfg, self.guidance.rescale) if overridden else self.guidance
        plain = isinstance(guidance, Joint) and not guidance.rescale
        if plain and negative and any(has):  # the host's own formula, with all its patches
            self._pulls.append(None)
            return super().predict_noise(x, timestep, options, seed)
        self._check(options)
        return self._combined(guidance, positive, negative, has, x, timestep, options)

    def _combined(
        self,
        guidance: Guidance,
        positive: list,
        negative: list,
        has: tuple[bool, bool],
        x: Tensor,
        timestep: Tensor,
        options: dict,
    ) -> Tensor:
        """The guided x0 `[t c h w]`, with the patches that the host would have called.

        has: whether the text has a weight, and the picture.
        """
        told = merge("TI", *has)
        if negative or not positive:
            none, directions, coefficients = "e0", guidance.directions(*has), guidance.plan(*has)
        else:  # the negative's timestep range is over: the conditional answer stands alone
            none, directions, coefficients = told, (), {told: 1.0}
        combines, ends = cfg.combines(options) and bool(directions), bool(options.get(cfg.AFTER))
        wanted = set(coefficients) | ({none} if options.get(cfg.BOTH) else set())
        if combines:
            wanted |= {none, *(name for d in directions for name in (d.to, d.base))}
        if ends:
            wanted |= {none, told}
        branches = {name: _branch(name, positive, negative) for name in wanted}
        answers = self._answers(branches, told, none, x, timestep, options)
        clips = {name: rearrange(out, "t c h w -> 1 c t h w") for name, out in answers.items()}
        self._pulls.append(pulls(clips))

        step = {"model": self.inner_model, "input": x, "sigma": timestep, "model_options": options}
        planned = {name: clips[name] for name in coefficients}
        view = (
            rearrange(x, "t c h w -> 1 c t h w"),
            timestep[:1],
            torch.tensor([has[0]]),
            x0_scale(self.inner_model.model_sampling, timestep[:1]),
        )
        if combines:
            guided = self.combination(directions, none, branches, answers, step)
            guided = guidance.rescaled(rearrange(guided, "t c h w -> 1 c t h w"), planned, *view)
        else:
            guided = guidance.combine(planned, coefficients, *view)
        denoised = rearrange(guided, "1 c t h w -> t c h w")
        if ends:
            scale = 1.0 if told == none else _scale(coefficients)
            denoised = cfg.after(denoised, told, none, scale, branches, answers, step)
        return denoised

    def _answers(
        self, branches: dict, told: str, none: str, x: Tensor, timestep: Tensor, options: dict
    ) -> dict[str, Tensor]:
        """The x0 `[t c h w]` of each branch, all in one call.

        Patches know the branches by number, as the host has them: 0 = conditional, 1 = no condition. So
        text and picture come first, and no condition second, or nothing in its place.
        """
        rest = sorted(set(branches) - {none}, key=lambda name: (name != told, name != "T"))
        order = [*rest[:1], none, *rest[1:]] if rest else [none]
        outputs = comfy.samplers.calc_cond_batch(
            self.inner_model, [branches.get(name) for name in order], x, timestep, options
        )
        return {name: out for name, out in zip(order, outputs, strict=True) if name in branches}

    def _check(self, options: dict) -> None:
        """Refuse, or name in a warning, what plain guidance alone has a place for."""
        transformer_options = options.get("transformer_options", {})
        mode = type(self.guidance).__name__.lower()
        how = f"mode {mode}" + (" with rescale" if self.guidance.rescale else "")
        if EVOLVED in transformer_options:
            raise ValueError(
                f"AnimateDiff-Evolved's sampling knows one guidance scale, got {how}; take mode joint with "
                "rescale 0, or ComfyUI's Context Windows (Manual) in its place."
            )
        self.notices.begin(transformer_options.get("sample_sigmas"))
        if cfg.BATCH in options:
            self.notices.warn(
                f"{owner(options[cfg.BATCH])} does not act in {how}, because it computes two branches alone; "
                "take mode joint with rescale 0."
            )


def _scale(coefficients: dict[str, float]) -> float:
    """How far guidance goes away from no condition, as one number."""
    return 1.0 - coefficients.get("e0", 0.0)


def _active(cond: dict, sigma: Callable[[], float]) -> bool:
    """Whether sigma lies in the cond's range; the host would answer zeros for it outside."""
    start, end = cond.get("timestep_start"), cond.get("timestep_end")
    return not ((start is not None and sigma() > start) or (end is not None and sigma() < end))


def _given(conds: list[dict], progress: Callable[[], Tensor]) -> tuple[bool, bool]:
    """Whether any frame has a text weight, and an image weight, at this point of the sampling `[1]`."""
    weights = [keys.weights_of(cond) for cond in conds]
    if any(w.shape[1] > 1 for w in weights):
        now = progress()
        weights = [curves.at_progress(w, now) for w in weights]
    on = [streams_on(w) for w in weights]
    return tuple(any(streams[i] for streams in on) for i in (0, 1))


def _branch(name: str, positive: list[dict], negative: list[dict]) -> list[dict]:
    """The conds of a branch: "TI" is the positive, "e0" the negative, "T" and "I" halves of the positive.

    Where the negative's timestep range is over, the positive stands for it.
    I shows the picture under the negative's text, whose weight is 1, or 0 where the user has switched the
    text stream off.
    """
    if name == "e0":
        return negative or positive
    if name == "TI":
        return positive
    return [_half(cond, name, negative) for cond in positive]


def _half(cond: dict, name: str, negative: list[dict]) -> dict:
    conds = dict(cond["model_conds"])
    weights, shared = conds[keys.WEIGHTS].cond, conds[keys.TOLD].cond[0].shared
    text, image = weights[..., :1], weights[..., 1:]
    maps = conds[keys.MAPS].cond
    if name == "T":
        image = torch.zeros_like(image)
    else:
        text = (text > 0).to(text)
        maps = torch.cat([(maps[:, :1] > 0).to(maps), maps[:, 1:]], 1)
        if negative:
            other = negative[0]["model_conds"]
            conds["c_crossattn"] = other["c_crossattn"]
            shared = other[keys.TOLD].cond[0].shared[0], shared[1]
    weights = torch.cat([text, image], -1)
    conds[keys.WEIGHTS], conds[keys.MAPS] = keys.CONDWeights(weights), keys.CONDMaps(maps)
    conds[keys.TOLD] = keys.CONDTold((keys.Told(shared, streams_on(weights)),))
    # EasyCache keeps its memory by this id, so a branch has the same one in every step.
    return cond | {"model_conds": conds, "uuid": uuid.uuid5(cond["uuid"], name)}
