"""Badges on OpenMoji's drawings: which of 15 a drawing carries, a colour and a shape, when the drawing itself is new.

A row is an emoji with a small badge in one corner, and its name and keywords with the badge's words among them. The
label is the badge, of which the emoji says nothing; no emoji is in two parts. So a model that knows pictures and words
has to look for an attribute beside what it was trained to name: what products, posts and signs ask for, without people.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch

from mora.data.dataset import SPLITS
from mora.data.sources import drawings, openmoji
from mora.data.sources.openmoji import Drawn, Samples
from mora.data.sources.source import Source

NAME = "openmoji-badges"
COLOURS = {"red": "#d22f27", "yellow": "#fcea2b", "green": "#5c9e31", "blue": "#1e50a0", "purple": "#8967aa"}
SHAPES = {
    "circle": '<circle cx="36" cy="36" r="30"/>',
    "square": '<rect x="9" y="9" width="54" height="54"/>',
    "triangle": '<path d="M36 6 L68 62 L4 62 Z"/>',
}
CLASSES = tuple(f"{colour} {shape}" for colour, shape in product(COLOURS, SHAPES))
CORNERS = ((0, 0), (1, 0), (0, 1), (1, 1))
SIDE = 24  # of a badge, where the drawing has 72
KEYWORDS = 3  # of the emoji's, so that every text is whole in 24 tokens
BADGES = {"train": 1, "validation": 2, "test": 2}  # of every emoji of a part, all different
SALT = "mora-badges-1"


class Badge(NamedTuple):
    """One row: emoji number `copy`, with its badge and the corner that holds it."""

    emoji: openmoji.Row
    copy: int
    label: int
    corner: tuple[int, int]
    place: int

    @property
    def text(self) -> str:
        """ "poodle, green square, dog": the name first, the badge at a place of its own among the keywords."""
        words = self.emoji.text.split(", ")[: 1 + KEYWORDS]
        place = 1 + self.place % len(words)
        return ", ".join([*words[:place], CLASSES[self.label], *words[place:]])

    @property
    def svg(self) -> str:
        """The drawing with the badge over it, 72 x 72 units."""
        colour, shape = CLASSES[self.label].split()
        left, top = ((72 - SIDE) * side for side in self.corner)
        drawing = drawings.openmoji_svg(self.emoji.hexcode)
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72">'
            f"{drawing[drawing.index('<svg') :]}"
            f'<g transform="translate({left} {top}) scale({SIDE / 72:g})" fill="{COLOURS[colour]}" stroke="#ffffff" '
            f'stroke-width="6">{SHAPES[shape]}</g></svg>'
        )


@lru_cache(maxsize=1)
def table() -> tuple[Badge, ...]:
    """Every row of every part: the first drawing of each emoji whose words name no colour or shape of a badge.

    Unicode's components (skin tones as plain squares) are no emoji and left out.
    """
    known = re.compile(rf"\b({'|'.join([*COLOURS, *SHAPES])})", re.IGNORECASE)
    first = {row.base: row for row in reversed(openmoji.table()) if row.split in BADGES}
    rows = []
    for emoji in sorted(first.values(), key=lambda row: row.hexcode):
        if emoji.group == "Component" or known.search(emoji.text):
            continue
        drawn = int(hashlib.sha256(f"{SALT} {emoji.base}".encode()).hexdigest(), 16)
        for copy in range(BADGES[emoji.split]):
            label = (drawn + 7 * copy) % len(CLASSES)  # 7 and 15 have no factor in common: another colour and shape
            corner = CORNERS[(drawn // 15 + copy) % len(CORNERS)]
            rows.append(Badge(emoji, copy, label, corner, drawn // 60 + copy))
    return tuple(rows)


def load(split: str, size: int = 64, cache: str | Path | None = None, progress: bool = False) -> Samples:
    """The pictures, texts and labels of one split; arguments and errors are those of `openmoji.load`."""
    openmoji.check(split, size)
    rows = table()
    index = [position for position, row in enumerate(rows) if row.emoji.split == split]
    folder = Path(cache) if cache else drawings.cache_folder()
    described = repr([(row, SIDE, COLOURS, SHAPES) for row in rows]).encode()
    pixels = drawings.drawn(NAME, described, size, folder, lambda: [row.svg for row in rows], len(rows), progress)
    part = [rows[position] for position in index]
    return Samples(
        images=pixels[index],
        texts=[row.text for row in part],
        labels=torch.tensor([row.label for row in part]),
        classes=CLASSES,
        names=[row.emoji.name for row in part],
        ids=[f"{row.emoji.hexcode}-{row.copy}" for row in part],
    )


SOURCE = Source(
    form=f"'{NAME}'",
    matches=lambda source: source == NAME,
    splits=lambda source, options: SPLITS,
    open=lambda source, split, options: Drawn(NAME, split, load(split, options.size)),
)
