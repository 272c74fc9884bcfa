"""The pack's nodes. `UniVidExtension` is imported by the host alone, because it needs `comfy_api`."""

__all__ = ["UniVidExtension"]


def __getattr__(name: str):
    if name != "UniVidExtension":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .extension import UniVidExtension

    return UniVidExtension
