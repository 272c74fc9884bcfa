"""Whether anything steers a clip, and the sentence that a person sees where nothing does."""

import logging
import sys

from comfy_execution.utils import get_executing_context

from ...univid.guidance import Joint, Nested, Separate
from . import conditioning as keys

STEERED = "Prompt or picture steer the clip."

logger = logging.getLogger(__name__)
_told: set[str] = set()  # ids of the nodes on which the interface shows a sentence


def tell_what_steers(
    conditioning: list,
    advice: str,
    guidance: Joint | Separate | Nested | None = None,
    negative: list | None = None,
) -> None:
    """Say, in the log and on the node that runs, that neither text nor picture steers, why, and what to do.

    With `guidance` only where that leaves them out, or the negative prompt: the node that made the
    conditioning has said the rest.
    """
    reasons = _reasons(conditioning)
    if guidance is not None:
        reasons = (None, None) if all(reasons) else _guided(reasons, guidance)
    sentence = None
    if all(reasons):
        why = " and ".join(dict.fromkeys(reasons))
        sentence = f"{why}, so nothing steers the clip; {advice}."
    elif negative and _unheard(negative, reasons, guidance):
        sentence = (
            "guidance of 1 gives the negative prompt no say; raise its scale, or leave the prompt empty."
        )
    if sentence:
        logger.warning("UniVid: %s", sentence)
    _show(sentence)


def _reasons(conditioning: list) -> tuple[str | None, str | None]:
    """Why the text has no say in a conditioning, and why the picture has none; None where it has."""
    text, picture = "the prompt is empty", "there is no picture"
    for _, extras in conditioning:
        text_weight, *image_weights = keys.weights_of(extras).amax((0, 1)).tolist()
        if extras.get(keys.HAS_TEXT, True) and text:  # what other nodes encode has one
            text = None if text_weight else "text_weight is 0"
        if keys.FIRST in extras or keys.KNOWN in extras:  # such latents have a say under any weight
            picture = None
        elif extras.get(keys.HAS_IMAGE, False) and picture:
            picture = None if any(image_weights) else "image_weight is 0"
    return text, picture


def _guided(
    reasons: tuple[str | None, str | None], guidance: Joint | Separate | Nested
) -> tuple[str | None, str | None]:
    text, picture = reasons
    if isinstance(guidance, Joint):
        return (None, None) if guidance.scale else ("guidance_scale is 0",) * 2
    if not guidance.text:
        text = text or "text_guidance is 0"
    if not guidance.image:
        picture = picture or "image_guidance is 0"
    return text, picture


def _unheard(
    negative: list, reasons: tuple[str | None, str | None], guidance: Joint | Separate | Nested
) -> bool:
    """Whether there is a negative prompt, and guidance leads away from nothing."""
    says = any(extras.get(keys.HAS_TEXT, False) for _, extras in negative)
    return says and "e0" not in guidance.plan(*(reason is None for reason in reasons))


def _show(sentence: str | None) -> None:
    """Put a sentence on the node that runs; None replaces the one that is there, which cannot be removed."""
    context, server = get_executing_context(), sys.modules.get("server")
    if context is None or server is None or not (sentence or context.node_id in _told):
        return
    (_told.add if sentence else _told.discard)(context.node_id)
    instance = server.PromptServer.instance
    instance.send_progress_text(sentence or STEERED, context.node_id, instance.client_id)
