"""Partial corruption: black patches on images, words dropped from texts; a row is damaged the same way every time."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Corruption:
    """How much of what is there is damaged.

    Attributes:
        patches: share of the cells of an image that go black, in [0, 1).
        grid: cells along each side of an image, whatever its size; a cell is a patch.
        word_drop: chance of each word of a text to be dropped, in [0, 1); at least one word stays, for a text without
            words would be a missing text.
        images: share of the images that are damaged at all, in [0, 1].
        texts: share of the texts that are damaged at all, in [0, 1].
        seed: decides, with a sample's id, which cells and words go.
    """

    patches: float = 0.0
    grid: int = 8
    word_drop: float = 0.0
    images: float = 1.0
    texts: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("patches", "word_drop"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a share from 0 to below 1")
        for name in ("images", "texts"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a share between 0 and 1")
        if self.grid < 1:
            raise ValueError(f"grid: got {self.grid}, expected at least 1 cell along a side")

    def image(self, image: Image.Image, sample: str) -> Image.Image:
        """A copy of an RGB image with `int(patches * grid * grid)` of its cells black; `sample` is the id."""
        from PIL import ImageDraw

        draw = random.Random(f"{self.seed}/image/{sample}")
        if draw.random() >= self.images:
            return image
        damaged, (width, height), side = image.copy(), image.size, self.grid
        canvas = ImageDraw.Draw(damaged)
        for cell in draw.sample(range(side * side), int(self.patches * side * side)):
            row, column = divmod(cell, side)
            left, right = column * width // side, (column + 1) * width // side
            top, bottom = row * height // side, (row + 1) * height // side
            if right > left and bottom > top:  # a cell of an image smaller than the grid may hold no pixel
                canvas.rectangle((left, top, right - 1, bottom - 1), fill=(0, 0, 0))
        return damaged

    def text(self, text: str, sample: str) -> str:
        """`text` without the words that are dropped, one blank between the others; `sample` is the id."""
        draw = random.Random(f"{self.seed}/text/{sample}")
        words = text.split()
        if draw.random() >= self.texts or self.word_drop == 0 or not words:
            return text
        kept = [word for word in words if draw.random() >= self.word_drop]
        return " ".join(kept or [draw.choice(words)])
