"""UniVid for ComfyUI. The host loads this folder as a pack, pytest imports it: nothing happens here."""

WEB_DIRECTORY = "./nodes/web"  # help pages, and previews that play in the classic look


async def comfy_entrypoint():
    """The pack's nodes; none, and one line in the log, where the host or its Python lacks what they need."""
    import logging

    from comfyui_version import __version__

    from .nodes.host import version

    if problem := version.problem(__version__):
        logging.getLogger(__name__).error(problem)
        from comfy_api.latest import ComfyExtension

        class NoNodes(ComfyExtension):
            async def get_node_list(self) -> list:
                return []

        return NoNodes()
    from .nodes import UniVidExtension

    return UniVidExtension()
