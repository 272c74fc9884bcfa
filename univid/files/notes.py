"""The door for what a file says beside its pixels: the texts in a video's container, or in a PNG."""

from pathlib import Path

from .media import open_media
from .picture import PNG, picture_texts
from .video import open_clip


def read_notes(path: Path) -> dict[str, str]:
    """The texts of a PNG or a video, by their names in small letters.

    Raises:
        Unreadable: neither of them.
    """
    with open_media(path) as file:
        is_picture = file.read(len(PNG)) == PNG
    if is_picture:
        texts = picture_texts(path)
    else:
        with open_clip(path) as clip:
            texts = dict(clip.container.metadata)
    return {name.lower(): text for name, text in texts.items()}
