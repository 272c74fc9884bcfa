"""The list of nodes that the host gets. A node is one class in one file and one line here."""

import functools

from comfy_api.latest import ComfyExtension

from ..univid.messages import clean
from .cascade import UniVidExtend, UniVidInterpolate, UniVidUpscale
from .decode import UniVidDecodeVideo
from .dynamics import UniVidLivelierMotion
from .encode import UniVidEncodeDualPrompt
from .guide import UniVidGuiderNode
from .host.files import provide_samples
from .known import UniVidBiasedNoise, UniVidKnownFrames
from .latents import UniVidEmptyLatent
from .load import UniVidLoad
from .longer import UniVidFreeInit, UniVidFreeNoise
from .options import UniVidPSTOptions
from .picture import UniVidAddPicture
from .reuse import UniVidReuseSteps
from .sample import UniVidPSTSampler
from .sweep import UniVidModalitySweep
from .weights import UniVidModalityWeights

NODES = [
    UniVidLoad,
    UniVidEncodeDualPrompt,
    UniVidModalityWeights,
    UniVidEmptyLatent,
    UniVidPSTSampler,
    UniVidGuiderNode,
    UniVidPSTOptions,
    UniVidDecodeVideo,
    UniVidModalitySweep,
    UniVidInterpolate,
    UniVidExtend,
    UniVidUpscale,
    UniVidKnownFrames,
    UniVidBiasedNoise,
    UniVidFreeNoise,
    UniVidFreeInit,
    UniVidAddPicture,
    UniVidLivelierMotion,
    UniVidReuseSteps,
]


def shown_safely(node: type) -> type:
    """The node, with errors that a terminal and the interface can show: they hold names and text of files."""
    execute = node.execute.__func__

    @functools.wraps(execute)
    def executed(cls, *args, **kwargs):
        try:
            return execute(cls, *args, **kwargs)
        except (ValueError, FloatingPointError) as error:
            clean(error)
            raise

    node.execute = classmethod(executed)
    return node


class UniVidExtension(ComfyExtension):
    async def on_load(self) -> None:
        provide_samples()

    async def get_node_list(self) -> list:
        return [shown_safely(node) for node in NODES]
