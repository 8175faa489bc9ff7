"""Encoded images to pixels: formats that cannot run anything, Pillow's size limit on, an error for what is broken."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from PIL import Image

# Pillow hands EPS to Ghostscript and reads dozens of formats nobody has pictures in: they stay closed.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
Item = TypeVar("Item")
INSTALL = "pip install 'mora-kernels[train]'"


class BrokenImageError(ValueError):
    """An image that cannot be read; the message names it."""


def decode(data: bytes, where: str) -> Image.Image:
    """The first frame of an encoded image as RGB, on white where it is transparent.

    An opaque image becomes what `convert("RGB")`, CLIP's own preprocessing, makes of it. EXIF rotation is not applied:
    CLIP's preprocessing does not.

    Raises:
        BrokenImageError: `data` is no image, is cut off, or is larger than `PIL.Image.MAX_IMAGE_PIXELS` allows; the
            message starts with `where`.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"reading images needs pillow: {INSTALL}") from error
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            image.load()
            return to_rgb(image)
    except Exception as error:  # decoders of damaged files raise a dozen kinds, from SyntaxError to struct.error
        reason = "it is empty" if not data else str(error) or repr(error)
        if "cannot identify" in reason:
            drawing = b"<svg" in data[:4096]
            reason = "it is an SVG: save it as PNG" if drawing else f"it is none of {', '.join(_formats())}"
        raise BrokenImageError(f"{where}: the image cannot be read: {reason}") from error


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of Pillow can open."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB, on white where it is transparent; sixteen bits are scaled to eight."""
    from PIL import Image

    if image.mode.startswith("I"):  # convert() would clip sixteen bits to white instead of scaling them
        import numpy

        pixels = numpy.asarray(image)
        deep = image.mode != "I" or pixels.max() > 255
        image = Image.fromarray((pixels >> 8 if deep else pixels).clip(0, 255).astype(numpy.uint8))
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        if layers.getchannel("A").getextrema() != (255, 255):
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), layers)
    return image.convert("RGB")


def broken_images(read: Callable[[int], object], rows: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Call `read` for each of `rows` on a few threads; yield (row, message) for each that raised `BrokenImageError`."""

    def message(row: int) -> str | None:
        try:
            read(row)
        except BrokenImageError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes outside the interpreter's lock
        for row, found in zip(rows, progress(pool.map(message, rows), len(rows), "reading images"), strict=True):
            if found is not None:
                yield row, found


def progress(items: Iterable[Item], total: int, label: str) -> Iterable[Item]:
    """`items`, counted by a progress bar in a terminal once that takes more than two seconds."""
    from tqdm import tqdm

    return tqdm(items, desc=label, total=total, unit="image", leave=False, disable=None, delay=2)
