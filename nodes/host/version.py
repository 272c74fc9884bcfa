"""Which hosts the pack works on."""

MINIMUM = (0, 19, 0)


def problem(found: str) -> str | None:
    """Why a host of this version cannot run the pack, in one line; None = it can."""
    parts = found.split(".")[:3]
    if not all(part.isdigit() for part in parts):  # a developer's own build: let it try
        return None
    if tuple(map(int, parts)) >= MINIMUM:
        return None
    needed = ".".join(map(str, MINIMUM[:2]))
    return f"UniVid needs ComfyUI {needed} or newer, but this is {found}; update ComfyUI to use its nodes."
