"""Progress of a node that does several things one after another, each with a progress bar of its own."""

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.utils

RESOLUTION = 1000


@contextmanager
def span(start: float, end: float) -> Iterator[None]:
    """Let every progress bar inside go from `start` to `end` of the node's own bar, both in 0..1.

    Bars take the global hook when they are made, so it is put back at once when the block is left.
    """
    hook = comfy.utils.PROGRESS_BAR_HOOK
    if hook is None:
        yield
        return

    def scaled(value, total, *preview, **node) -> None:
        share = start + (end - start) * value / max(total, 1)
        hook(share * RESOLUTION, RESOLUTION, *preview, **node)

    comfy.utils.set_progress_bar_global_hook(scaled)
    try:
        yield
    finally:
        comfy.utils.set_progress_bar_global_hook(hook)
