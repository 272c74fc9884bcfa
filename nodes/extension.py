"""The list of nodes that the host gets. A node is one class in one file and one line here."""

from comfy_api.latest import ComfyExtension

from .decode import UniVidDecodeVideo
from .encode import UniVidEncodeDualPrompt
from .guide import UniVidGuiderNode
from .host.files import provide_samples
from .latents import UniVidEmptyLatent
from .load import UniVidLoad
from .options import UniVidPSTOptions
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
]


class UniVidExtension(ComfyExtension):
    async def on_load(self) -> None:
        provide_samples()

    async def get_node_list(self) -> list:
        return NODES
