"""Encoded images to pixels: formats that cannot run anything, Pillow's size limit on, an error for what is broken."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from mora.data.modality import BrokenInputError, Modality
from mora.system.machine import need

if TYPE_CHECKING:
    from PIL import Image

# Pillow hands EPS to Ghostscript and reads dozens of formats nobody has pictures in: they stay closed.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
Item = TypeVar("Item")
# CLIP's preprocessing resizes the short side to 224 pixels: of a strip of one row, which no picture is, that makes
# gigabytes.
LARGEST_RATIO = 1000
LARGEST_IMAGE = 1 << 28  # bytes of an encoded image
# Pixels of an image that is kept whole, of one that was larger, and of a strip in which that one is made smaller.
LARGEST_WHOLE, LARGEST_REDUCED, STRIP = 1 << 26, 1 << 24, 1 << 22
SHORTEST_REDUCED = 1024  # pixels
# An image is of nearly one colour when all but this share of its pixels lie within so many of 256 levels.
OUTLIERS, NEARLY = 0.001, 8


class BrokenImageError(BrokenInputError):
    """An image that cannot be read; the message names it."""


class Images(Modality):
    """Pictures, RGB, on white where they are transparent."""

    name, plural, largest = "image", "images", LARGEST_IMAGE

    def decode(self, data: bytes, where: str) -> Image.Image:
        """As `decode`."""
        return decode(data, where)

    def read(self, given: Any) -> Image.Image:
        """A file, bytes, or a PIL image of any mode, as RGB."""
        found = super().read(given)
        return found if found is not given else to_rgb(found)

    def remark(self, value: Image.Image) -> str:
        """Whether it is of nearly one colour."""
        return "of nearly one colour" if is_plain(value) else ""

    def probes(self) -> list[Image.Image]:
        """Images of noise, of several shapes."""
        import numpy
        from PIL import Image

        draw = numpy.random.Generator(numpy.random.PCG64(0))
        sizes = ((97, 61), (224, 224), (40, 123))  # width, height
        return [
            Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=numpy.uint8)) for width, height in sizes
        ]


def decode(data: bytes, where: str) -> Image.Image:
    """The first frame of an encoded image as RGB, on white where it is transparent.

    An opaque image becomes what `convert("RGB")`, CLIP's own preprocessing, makes of it. EXIF rotation is not applied:
    CLIP's preprocessing does not. An image of more than `LARGEST_WHOLE` pixels is made smaller, by the mean of squares
    of whole pixels, to `LARGEST_REDUCED` or so.

    Raises:
        BrokenImageError: `data` is no image, is cut off, has pixels whose meaning a file does not tell (floating
            point), is larger than `LARGEST_IMAGE` bytes or than `PIL.Image.MAX_IMAGE_PIXELS` allows, or one of
            its sides is more than `LARGEST_RATIO` times the other; the message starts with `where`.
    """
    need("PIL.Image", "reading images")
    from PIL import Image

    try:
        if len(data) > LARGEST_IMAGE:
            raise ValueError(f"it is of {len(data):,} bytes, expected at most {LARGEST_IMAGE:,}")
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            refuse_strip(*image.size)
            _widen_key(image)
            image.load()
            return to_rgb(image)
    except Exception as error:  # decoders of damaged files raise a dozen kinds, from SyntaxError to struct.error
        reason = "it is empty" if not data else str(error) or repr(error)
        if "cannot identify" in reason:
            drawing = b"<svg" in data[:4096]
            reason = "it is an SVG: save it as PNG" if drawing else f"it is none of {', '.join(_formats())}"
        raise BrokenImageError(f"{where}: the image cannot be read: {reason}") from error


def refuse_strip(width: int, height: int) -> None:
    """ValueError when one side is more than `LARGEST_RATIO` times the other."""
    if max(width, height) > LARGEST_RATIO * min(width, height):
        raise ValueError(f"it is {width:,} x {height:,} pixels, expected sides within a factor of {LARGEST_RATIO:,}")


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of Pillow can open."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _widen_key(image: Image.Image) -> None:
    """Pillow widens grey pixels of two and four bits to eight, but not the grey that a PNG calls transparent."""
    raw = image.tile[0][3] if image.format == "PNG" and image.tile else ""  # type: ignore[attr-defined]
    key = image.info.get("transparency")
    if isinstance(key, int) and raw in ("L;2", "L;4"):
        image.info["transparency"] = key * {"L;2": 85, "L;4": 17}[raw]
    if key is not None and raw == "RGB;16B":
        raise ValueError("it names a transparent colour of 16 bits a channel: save it with an alpha channel")


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB, on white where it is transparent; more than eight bits are scaled to eight.

    Raises ValueError for pixels that are floating point or out of sixteen bits: where black and white are is not told.
    """
    shift = _surplus_bits(image)
    pixels = image.width * image.height
    if pixels <= LARGEST_WHOLE:
        return _opaque(image, shift)
    factor = math.ceil(math.sqrt(pixels / LARGEST_REDUCED))
    return _reduced(image, shift, max(1, min(factor, min(image.size) // SHORTEST_REDUCED)))


def _surplus_bits(image: Image.Image) -> int | None:
    """By how many bits grey pixels are deeper than eight; None where they are not; ValueError as in `to_rgb`."""
    if image.mode == "F":
        raise ValueError("its pixels are floating point, of which no file tells what is white: save it as 8-bit PNG")
    if not image.mode.startswith("I"):
        return None
    tags: Any = getattr(image, "tag_v2", {})  # of a TIFF
    if tags.get(262) == 0:
        raise ValueError("its pixels are deeper than 8 bits and 0 is white: save it as 8-bit PNG")
    if image.mode != "I":
        return 4 if tags.get(258) in (12, (12,)) else 8
    low, high = image.getextrema()
    if low < 0 or high > 65535:  # type: ignore[operator]
        raise ValueError(f"its pixels go from {low:,} to {high:,}, expected at most 16 bits: save it as 8-bit PNG")
    return 8 if high > 255 or image.format == "PPM" else 0  # type: ignore[operator]


def _opaque(image: Image.Image, shift: int | None) -> Image.Image:
    from PIL import Image

    if shift is not None:  # convert() would clip sixteen bits to white instead of scaling them
        import numpy

        pixels = numpy.asarray(image)
        grey = (pixels >> shift).clip(0, 255).astype(numpy.uint8)
        key = image.info.get("transparency")
        if isinstance(key, int):
            grey[pixels == key] = 255
        image = Image.fromarray(grey)
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        if layers.getchannel("A").getextrema() != (255, 255):
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), layers)
    return image.convert("RGB")


def _reduced(image: Image.Image, shift: int | None, factor: int) -> Image.Image:
    """`_opaque`, each square of `factor` pixels a side become their mean; in strips, which take little memory."""
    from PIL import Image

    width, height = image.size
    rows = max(1, STRIP // width // factor) * factor
    made = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    for top in range(0, height, rows):
        strip = _opaque(image.crop((0, top, width, min(top + rows, height))), shift)
        made.paste(strip.reduce(factor), (0, top // factor))
    return made


def is_plain(image: Image.Image) -> bool:
    """Whether an RGB image is of nearly one colour, as a picture that was decoded wrong often is."""
    counts = image.histogram()
    few = OUTLIERS / 2 * image.width * image.height
    return all(_spread(counts[start : start + 256], few) <= NEARLY for start in (0, 256, 512))


def _spread(counts: Sequence[int], few: float) -> int:
    """The levels between the lowest and the highest one, `few` pixels at each end aside."""
    ends = []
    for levels in (range(256), range(255, -1, -1)):
        seen, end = 0, 0
        for level in levels:
            seen += counts[level]
            if seen > few:
                end = level
                break
        ends.append(end)
    return ends[1] - ends[0]


class Found(NamedTuple):
    """What stands out about an input: why it cannot be read, or what `Modality.remark` says of it."""

    row: int
    broken: str | None
    remark: str


def survey(read: Callable[[int], Any], rows: Sequence[int], modality: Modality) -> Iterator[Found]:
    """Call `read` for each of `rows` on a few threads; yield those that stand out."""

    def look(row: int) -> Found:
        try:
            return Found(row, None, modality.remark(read(row)))
        except BrokenInputError as error:
            return Found(row, str(error), "")

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoders work outside the interpreter's lock
        for found in progress(pool.map(look, rows), len(rows), f"reading {modality.plural}"):
            if found.broken is not None or found.remark:
                yield found


def progress(items: Iterable[Item], total: int, label: str) -> Iterable[Item]:
    """`items`, counted by a progress bar in a terminal once that takes more than two seconds."""
    from tqdm import tqdm

    return tqdm(items, desc=label, total=total, unit="image", leave=False, disable=None, delay=2)
