"""A MODEL that runs under a `Steering`."""

import dataclasses

import comfy.samplers
from comfy.model_patcher import create_model_options_clone
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...univid.steer.reuse import Kept
from ...univid.steer.run import check_steering
from .cfg import AFTER
from .model import profile_of, with_option
from .steered import ALONE, KEPT, STEERING, steering_of

WRAPPER = "univid_reuse"


def changed(model, **changes):
    """A clone of a MODEL whose steering has other values in some fields.

    Raises:
        ValueError: another model than UniVid, or what it has no place for.
    """
    profile_of(model)
    before = steering_of(model.model_options.get("transformer_options", {}))
    steering = dataclasses.replace(before, **changes)
    check_steering(steering, model.model.univid_config.unet)
    clone = with_option(model, STEERING, steering)
    others = [patch for patch in clone.model_options.pop(AFTER, ()) if patch is not temporal_guidance]
    if patches := others + [temporal_guidance] * bool(steering.temporal_guidance):
        clone.model_options[AFTER] = patches
    clone.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, WRAPPER)
    if steering.reuses:
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, WRAPPER, keeping)
    return clone


def temporal_guidance(step: dict) -> Tensor:
    """A patch after guidance: e + s (e_full - e_alone), on the branch of all conditions, by one more call."""
    options = step["model_options"]
    own = options["transformer_options"]
    alone = options | {"transformer_options": own | {ALONE: True}}
    (frames,) = comfy.samplers.calc_cond_batch(
        step["model"], [step["cond"]], step["input"], step["sigma"], alone
    )
    return step["denoised"] + own[STEERING].temporal_guidance * (step["cond_denoised"] - frames)


def keeping(executor, *args, **kwargs) -> Tensor:
    """Around one run: what it keeps of the network's blocks begins and ends with it, however it ends."""
    guider = executor.class_obj
    before = guider.model_options
    guider.model_options = create_model_options_clone(before)
    own = guider.model_options["transformer_options"]
    own[KEPT] = Kept(own[STEERING].reuse)
    try:
        return executor(*args, **kwargs)
    finally:
        guider.model_options = before
