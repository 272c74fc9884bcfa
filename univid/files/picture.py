"""The door for pictures: a file as upright pixels, RGB of 8 bits.

Pillow decodes, and only the formats named here: of those it knows besides, some run a program (EPS), and some
fail in ways of their own. How large a picture is stands in its header, and is looked at before anything is
decoded. What a file holds beside its pixels, such as a workflow as text, never makes it unreadable.
"""

import contextlib
import io
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image

from .media import Media, Unreadable, check_size, open_media

# Pillow's names; a Pillow that was built without AVIF knows the others. JPEG 2000 is left out: decoding takes
# its decoder 30 bytes a pixel.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
SPOKEN = "PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF"
MAX_PIXELS = 2**26  # 8192 x 8192, 200 MB of pixels
ORIENTATION = 0x0112  # the EXIF tag; its upper half lets height and width change places
WIDTH, HEIGHT = 256, 257  # the TIFF tags
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow raises where a file is damaged; OSError is the parent of its UnidentifiedImageError.
ERRORS = (
    OSError, ValueError, TypeError, SyntaxError, LookupError, AttributeError, ArithmeticError, AssertionError,
    MemoryError, RuntimeError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
PNG = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")  # the chunks that decide what is seen

T = TypeVar("T")


class NoPicture(Unreadable):
    """None of the formats that are read; it may be something else."""


def read_picture(media: Media, *, cover: tuple[int, int] | None = None, most: int = MAX_PIXELS) -> np.ndarray:
    """A picture as it is shown, uint8 `[h w 3]`; of an animation the first frame.

    The EXIF rotation is applied, transparency is put on white, 16-bit grey is scaled to 8 bits.

    Args:
        cover: the (height, width) that the picture is for: a larger JPEG is decoded at 1/2, 1/4 or 1/8 of its
            size, which is still at least twice what is needed.
        most: pixels; a larger picture is shrunk by the smallest whole number that leaves no more.

    Raises:
        Unreadable: no regular file, no picture of FORMATS, a damaged one, or one of more than MAX_PIXELS.
    """

    def pixels(image: Image.Image) -> np.ndarray:
        if cover:
            height, width = _upright(image)
            scale = 2 * max(cover[0] / height, cover[1] / width)
            if scale < 1:
                image.draft(None, tuple(int(scale * side) for side in image.size))
        image.load()
        turn = TURNS.get(_orientation(image))
        shown = to_rgb(image)
        if (factor := math.ceil(math.sqrt(shown.width * shown.height / most))) > 1:
            shown = shown.reduce(factor)
        return np.array(shown if turn is None else shown.transpose(turn))

    return _opened(media, pixels)


def picture_size(media: Media) -> tuple[int, int]:
    """(height, width) of a picture as it is shown; its first bytes are enough, as only its header is read.

    Raises:
        Unreadable: as `read_picture`.
    """
    return _opened(media, _upright)


def picture_texts(media: Media) -> dict[str, str]:
    """The texts that a picture holds beside its pixels, by their names; those of a cut one as far as it goes.

    Raises:
        Unreadable: no regular file, or no picture of FORMATS.
    """
    with open_media(media) as file:
        try:
            with _identified(file) as image:
                with contextlib.suppress(*ERRORS):
                    image.load()  # some lie behind the pixels
                return {name: text for name, text in image.info.items() if isinstance(text, str)}
        except ERRORS as error:
            raise Unreadable("it is damaged or cut short") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as RGB: transparency is put on white, 16-bit grey is scaled to 8 bits."""
    if image.mode.startswith("I"):  # Pillow's own conversion clips 16 bits instead of scaling them
        grey = np.asarray(image).clip(0, 65535).astype(np.uint16)
        image = Image.fromarray((grey // 257 + (grey % 257 > 128)).astype(np.uint8))
    if image.mode in ("F", "LAB", "HSV"):
        raise Unreadable(f"its colours are of the kind {image.mode}, not RGB or grey of up to 16 bits")
    if image.has_transparency_data:
        if image.mode != "RGBA":  # conversion copies, and pictures are large
            image = image.convert("RGBA")
        paper = Image.new("RGB", image.size, "white")
        paper.paste(image, mask=image.getchannel("A"))
        return paper
    return image if image.mode == "RGB" else image.convert("RGB")


def _opened(media: Media, use: Callable[[Image.Image], T]) -> T:
    """What `use` makes of an open picture; every error is an Unreadable."""
    with open_media(media) as file:
        try:
            with _identified(file) as image:
                return use(image)
        except ERRORS as error:
            try:
                with _identified(_bare(file)) as image:
                    return use(image)
            except ERRORS:
                raise Unreadable("it is damaged or cut short") from error


@contextlib.contextmanager
def _identified(file: BinaryIO) -> Iterator[Image.Image]:
    """An open picture of which nothing is decoded yet.

    As Pillow's `open`, which warns of large pictures where this refuses them, and says of a damaged header
    that the format is unknown.
    """
    Image.init()
    file.seek(0)
    start = file.read(16)
    for name in FORMATS:
        factory, accepts = Image.OPEN.get(name, (None, None))
        if accepts and accepts(start) is True:
            file.seek(0)
            with factory(file, "") as image:
                check_size(*_stored(image), MAX_PIXELS)
                yield image
            return
    raise NoPicture("it is of no known format")


def _bare(file: BinaryIO) -> io.BytesIO:
    """A PNG with nothing but pixels: Pillow refuses one whose texts or profile are large or damaged."""
    file.seek(0)
    if file.read(len(PNG)) != PNG:
        raise ValueError("only a PNG has chunks")
    kept = io.BytesIO()
    kept.write(PNG)
    while len(head := file.read(8)) == 8:
        size = int.from_bytes(head[:4], "big") + 4  # with its checksum
        if head[4:] in PNG_PIXELS:
            kept.write(head + file.read(size))
        else:
            file.seek(size, io.SEEK_CUR)
    return kept


def _stored(image: Image.Image) -> tuple[int, int]:
    """(height, width) before it is turned. Newer Pillows give a TIFF's as if it were turned already."""
    width, height = image.size
    if image.format == "TIFF":
        width, height = image.tag_v2[WIDTH], image.tag_v2[HEIGHT]
    return height, width


def _upright(image: Image.Image) -> tuple[int, int]:
    height, width = _stored(image)
    return (width, height) if _orientation(image) in (5, 6, 7, 8) else (height, width)


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation, 1 to 8; None where there is none that can be read."""
    try:
        return image.getexif().get(ORIENTATION)
    except ERRORS:
        return None
