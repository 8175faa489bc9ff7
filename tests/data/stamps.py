"""A made copy of the layout of Tux Paint's stamps: pictures, texts and sounds that nobody drew or spoke."""

from __future__ import annotations

import io
from pathlib import Path

import numpy
import soundfile

from tests.data import synthetic

RATE = 16_000
FOLDERS = ("animals/birds", "food/fruit", "town/houses/cartoon")
LANGUAGES = ("", "_fr", "_pt_BR")
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="{0}pt" height="12pt"><rect width="{0}" height="9"/></svg>'


def tone(pitch: float, seconds: float = 0.2, rate: int = RATE, channels: int = 1, loud: float = 0.5) -> numpy.ndarray:
    """A sine [T, channels]."""
    wave = loud * numpy.sin(2 * numpy.pi * pitch * numpy.arange(round(seconds * rate)) / rate)
    return numpy.repeat(wave[:, None], channels, axis=1).astype("float32")


def encoded(samples: numpy.ndarray, rate: int = RATE, kind: str = "OGG") -> bytes:
    """A recording as bytes."""
    data = io.BytesIO()
    soundfile.write(data, samples, rate, format=kind)
    return data.getvalue()


def package(folder: Path, count: int = 6) -> Path:
    """An unpacked package: `count` stamps in each of `FOLDERS`, a folder of three, letters, and what is no stamp."""
    root = folder / "usr/share/tuxpaint/stamps"
    for kind, place in enumerate((*FOLDERS, "vehicles/ship", "symbols/alphabets/english")):
        (root / place).mkdir(parents=True)
        for number in range(3 if place == "vehicles/ship" else count):
            stamp(root / place / f"thing_{number}", kind, number)
    (root / FOLDERS[0] / "thing_0_mirror.png").write_bytes(synthetic.picture(0, 99, "PNG"))
    (root / FOLDERS[0] / "thing_0.ogg").write_bytes(encoded(tone(700)))
    (root / FOLDERS[0] / "stray_desc_fr.ogg").write_bytes(encoded(tone(750)))
    return folder


def stamp(path: Path, kind: int, number: int) -> None:
    """One stamp: an SVG where the number is odd, no recording where it is 4, three languages elsewhere."""
    if number % 2:
        path.with_suffix(".svg").write_text(SVG.format(10 * kind + number))
    else:
        path.with_suffix(".png").write_bytes(synthetic.picture(kind % 4, 100 * kind + number, "PNG"))
    path.with_suffix(".txt").write_text(f"A thing {kind} {number}.\nfr.utf8=Une chose.\n", encoding="utf-8")
    for place, language in enumerate(LANGUAGES if number != 4 else ()):
        kept, rate = ("WAV", 8_000) if language == "_pt_BR" else ("OGG", 44_100)
        samples = tone(200 + 100 * kind + 10 * number + place, rate=rate, channels=1 + number % 2)
        path.with_name(f"{path.name}_desc{language}.{kept.lower()}").write_bytes(encoded(samples, rate, kept))
