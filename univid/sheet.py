"""Contact sheets: a clip, or a grid of clips, as one labelled picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .files import output
from .video import to_uint8

PAPER, INK, FAINT, ACCENT = "#f7f6f2", "#26262b", "#83838c", "#d9480f"
MARGIN, GAP, LABEL_HEIGHT = 32, 12, 26
TITLE_SIZE, LABEL_SIZE = 24, 15
TILE = 144  # pixels: tiny frames are enlarged to about this, big ones shrunk to at most twice of it
SWEEP_TILE = 96
LARGE_LABELS = 24  # a grid is this many times wider than its labels are high


@dataclass(frozen=True)
class _Tile:
    picture: Image.Image
    label: str
    accent: bool = False


def contact_sheet(
    video: Tensor,
    *,
    title: str,
    labels: Sequence[str] | None = None,
    columns: int | None = None,
    reference: Tensor | None = None,
) -> Image.Image:
    """Every frame of one clip `[1 3 t h w]` in -1..1 side by side.

    labels: one a frame; None numbers them from 1. columns: frames a row; None chooses.
    reference: the conditioning picture `[1 3 h w]`, shown first and marked.
    """
    frames = [_scaled(frame, TILE) for frame in to_uint8(video)]
    columns = columns or min(len(frames), max(6, round(len(frames) ** 0.5)))
    tiles = [
        _Tile(f, label)
        for f, label in zip(frames, labels or map(str, range(1, len(frames) + 1)), strict=True)
    ]
    width, height = frames[0].size
    left = MARGIN
    picture = None
    if reference is not None:
        picture = _fitted(Image.fromarray(to_uint8(reference.unsqueeze(2))[0]), width, height)
        left += width + 3 * GAP
    page_width = left + columns * (width + GAP) - GAP + MARGIN
    lines = _wrapped(title, page_width - 2 * MARGIN)
    top = MARGIN + _title_height(lines)
    rows = -(-len(tiles) // columns)
    page = _page(page_width, top + rows * (height + LABEL_HEIGHT + GAP) - GAP + MARGIN, lines)
    if picture is not None:
        _place(page, _Tile(picture, "picture", accent=True), MARGIN, top)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        _place(page, tile, left + column * (width + GAP), top + row * (height + LABEL_HEIGHT + GAP))
    return page


def sweep_sheet(
    grid: Sequence[Sequence[Tensor]],
    *,
    title: str,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    frames_shown: int = 4,
    reference: Tensor | None = None,
    large_labels: bool = False,
) -> Image.Image:
    """Clips `[1 3 t h w]` as a grid; each cell shows `frames_shown` frames of its clip, first to last.

    reference: the conditioning picture `[1 3 h w]`, shown in the corner.
    large_labels: labels that grow with the grid, so that they are read where it is shown 300 pixels wide.
    """
    strips = [[_strip(to_uint8(video), frames_shown) for video in row] for row in grid]
    width, height = strips[0][0].size
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    corner = None if reference is None else Image.fromarray(to_uint8(reference.unsqueeze(2))[0])
    grid_width = len(column_labels) * (width + 2 * GAP) - 2 * GAP
    size = max(LABEL_SIZE, grid_width // LARGE_LABELS) if large_labels else LABEL_SIZE
    font, label_height = _font(size), round(size * LABEL_HEIGHT / LABEL_SIZE)
    side = max([draw.textlength(label, font=font) for label in row_labels] + [SWEEP_TILE if corner else 0])
    left = MARGIN + round(side) + 2 * GAP
    page_width = left + grid_width + MARGIN
    lines = _wrapped(title, page_width - 2 * MARGIN)
    head = SWEEP_TILE + GAP if corner else 0
    title_bottom = MARGIN + _title_height(lines)
    top = title_bottom + max(head, label_height) + label_height // 2
    page = _page(page_width, top + len(strips) * (height + GAP) - GAP + MARGIN, lines)
    draw = ImageDraw.Draw(page)
    if corner:
        _place(page, _Tile(_fitted(corner, SWEEP_TILE, SWEEP_TILE), "", accent=True), MARGIN, title_bottom)
    for column, label in enumerate(column_labels):
        center = left + column * (width + 2 * GAP) + width // 2
        draw.text((center, top - GAP), label, font=font, fill=INK, anchor="ms")
    for row, label in enumerate(row_labels):
        y = top + row * (height + GAP)
        draw.text((left - 2 * GAP, y + height // 2), label, font=font, fill=INK, anchor="rm")
        for column, strip in enumerate(strips[row]):
            _place(page, _Tile(strip, ""), left + column * (width + 2 * GAP), y)
    return page


def shown_frames(video: Tensor, count: int = 4) -> Tensor:
    """Of a clip `[1 3 t h w]` the `count` frames, or fewer, that a cell of `sweep_sheet` shows; a copy."""
    return video[:, :, _spread(video.shape[2], count)]


def frame_bytes(height: int, width: int) -> int:
    """Memory that one frame of a contact sheet takes, as its own picture and on the page."""
    return _drawn_bytes(height, width, TILE)


def cell_bytes(height: int, width: int, frames: int) -> int:
    """Memory that one cell of `sweep_sheet` takes: the frames that it shows, their pictures and the page."""
    return min(frames, 4) * (_drawn_bytes(height, width, SWEEP_TILE) + 12 * height * width)


def save_sheet(page: Image.Image, path: str | Path, note: str | None = None) -> None:
    """Write a sheet as PNG, complete or not at all.

    note: a text in ASCII that the file carries as its comment.

    Raises:
        ValueError: the operating system refuses to write there.
    """
    from .files import encode as door

    with output.new_file(path) as temporary:
        door.encode_page(page, temporary, note)


def _font(size: int):
    return ImageFont.load_default(size)  # ships inside Pillow


def _scaled(frame: np.ndarray, size: int) -> Image.Image:
    """Enlarge by whole pixels up to about `size`, or shrink to at most twice of it."""
    picture = Image.fromarray(frame)
    longest = max(picture.size)
    if longest > 2 * size:
        picture.thumbnail((2 * size, 2 * size), Image.Resampling.LANCZOS)
        return picture
    factor = max(1, round(size / longest))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _drawn_bytes(height: int, width: int, size: int) -> int:
    longest = max(height, width)
    scale = 2 * size / longest if longest > 2 * size else max(1, round(size / longest))
    return round(2 * 3 * height * width * scale**2)


def _spread(frames: int, count: int) -> list[int]:
    return [round(i) for i in np.linspace(0, frames - 1, min(count, frames))]


def _fitted(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Scale to fit into the box, keeping the proportions."""
    scale = min(width / picture.width, height / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)


def _strip(frames: np.ndarray, count: int) -> Image.Image:
    pictures = [_scaled(frames[i], SWEEP_TILE) for i in _spread(len(frames), count)]
    width, height = pictures[0].size
    strip = Image.new("RGB", (len(pictures) * (width + 2) - 2, height), PAPER)
    for index, picture in enumerate(pictures):
        strip.paste(picture, (index * (width + 2), 0))
    return strip


def _wrapped(text: str, width: int, most: int = 3) -> list[str]:
    """Break a title into lines of at most `width` pixels; what exceeds `most` lines ends in an ellipsis."""
    draw, font = ImageDraw.Draw(Image.new("RGB", (1, 1))), _font(TITLE_SIZE)
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if draw.textlength(joined, font=font) <= width or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(word)
    shortened = lines[:most]
    if len(lines) > most:
        shortened[-1] += " …"
    return [line for line in shortened if line]


def _title_height(lines: list[str]) -> int:
    return len(lines) * round(TITLE_SIZE * 1.35) + (GAP if lines else 0)


def _page(width: int, height: int, lines: list[str]) -> Image.Image:
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    for index, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + index * round(TITLE_SIZE * 1.35)), line, font=_font(TITLE_SIZE), fill=INK)
    return page


def _place(page: Image.Image, tile: _Tile, x: int, y: int) -> None:
    page.paste(tile.picture, (x, y))
    draw = ImageDraw.Draw(page)
    box = (x - 1, y - 1, x + tile.picture.width, y + tile.picture.height)
    draw.rectangle(box, outline=ACCENT if tile.accent else "#d8d7d2", width=1)
    if tile.accent:
        draw.rectangle((box[0] - 2, box[1] - 2, box[2] + 2, box[3] + 2), outline=ACCENT, width=3)
    middle = x + tile.picture.width // 2
    fill = ACCENT if tile.accent else FAINT
    label = _cut(tile.label, tile.picture.width)
    draw.text((middle, y + tile.picture.height + 6), label, font=_font(LABEL_SIZE), fill=fill, anchor="ma")


def _cut(text: str, width: int) -> str:
    """A label of at most `width` pixels; a longer one ends in an ellipsis."""
    draw, font = ImageDraw.Draw(Image.new("RGB", (1, 1))), _font(LABEL_SIZE)
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text.rstrip() + "…"
