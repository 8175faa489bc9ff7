"""Named drawings for the tiny CLIP: icon sets from npm packages, and the Open Clip Art Library.

No emoji is among them, in any style: the demonstration's tasks are made of emoji, so that every drawing, name and label
of theirs is new to the model. Icons and clip art that draw emoji-like faces are left out by name (`EMOJI_LIKE`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mora.data.sources import drawings

PACKAGES = (
    "@iconify-json/game-icons@1.2.4",
    "@iconify-json/material-symbols@1.2.98",
    "@mdi/svg@7.4.47",
    "@phosphor-icons/core@2.1.1",
    "@tabler/icons@3.51.0",
    "bootstrap-icons@1.13.2",
    "lucide-static@1.62.0",
)
CLIP_ART = "openclipart-svg 1:0.18+dfsg-19 (Debian)"
PUBLIC_DOMAIN = {"http://web.resource.org/cc/PublicDomain", "http://creativecommons.org/licenses/publicdomain/"}
LARGEST_DRAWING = 400_000  # bytes of an SVG: larger ones take seconds each
EMOJI_LIKE = re.compile(r"emoji|emoticon|smil(ey|ies)|mood|tango-faces|face-")
STYLE_WORDS = re.compile(r"-(outlined?|rounded|sharp|filled|fill|duotone|variant)(?=-|$)")
NO_WORDS = {"unsorted", "hash", "svg", "clipart", "clip art", "duplicates", "examples", "theme", "icon", "icons"}
SHARED_TITLE = 3  # a title of more drawings than this names a collection, not a drawing
PHOSPHOR = re.compile(
    r'name: "(?P<name>[^"]+)",\s+pascal_name: "[^"]+",\s+categories: \[(?P<categories>[^\]]*)\].*?'
    r"tags: \[(?P<tags>[^\]]*)\]",
    re.DOTALL,
)


class Item(NamedTuple):
    """One drawing and its words."""

    source: str
    name: str
    tags: tuple[str, ...]
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
    yield Item(source, name, tag_words, svg)


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


def clip_art(folder: Path) -> Iterator[Item]:
    """The drawings of the Open Clip Art Library that are marked public domain, as squares of any size."""
    found = []
    for path in sorted(folder.rglob("*.svg")):
        if path.stat().st_size > LARGEST_DRAWING or EMOJI_LIKE.search(str(path.relative_to(folder)).lower()):
            continue
        root = ElementTree.parse(path).getroot()
        title, tags, licence = described(root)
        if licence in PUBLIC_DOMAIN and not EMOJI_LIKE.search(" ".join((title, *tags)).lower()):
            places = [words(part) for part in path.relative_to(folder).parts[:-1]]
            found.append((path, title, [*tags, *places], drawings.framed(root, 64)))
    titles = Counter(title for _, title, _, _ in found)
    for path, title, tags, svg in found:
        stem = re.sub(r"\d+|(__|-by-).*$", " ", path.stem)
        name = words(title if title and titles[title] <= SHARED_TITLE else stem)[:60]
        several = [tag for tag in dict.fromkeys(map(words, tags)) if len(tag) > 2 and not tag.startswith("hash(")]
        kept = tuple(tag for tag in several if tag not in NO_WORDS | {name})
        if len(name) > 1:
            yield Item("openclipart", name, kept, svg)


def described(root: ElementTree.Element) -> tuple[str, list[str], str]:
    """Title, keywords and licence of a drawing's RDF, each empty where there is none."""
    title, tags, licence = "", [], ""
    work = next((entry for entry in root.iter() if entry.tag.endswith("}Work")), None)
    for entry in [] if work is None else work:
        kind = entry.tag.rpartition("}")[2]
        if kind == "title":
            title = (entry.text or "").strip()
        elif kind == "subject":
            tags = [item.text.strip() for item in entry.iter() if item.tag.endswith("}li") and item.text]
        elif kind == "license":
            licence = next(iter(entry.attrib.values()), "")
    return title, tags, licence


def load(icons_folder: Path, clip_art_folder: Path, size: int, cache: Path) -> tuple[list[Item], Tensor]:
    """Items without their SVGs and their pixels, uint8 [N, 3, size, size], drawn once into ``cache``.

    ``icons_folder`` is the ``node_modules`` in which ``npm install`` of ``PACKAGES`` was run, ``clip_art_folder`` the
    folder ``usr/share/openclipart/svg`` of the unpacked ``CLIP_ART``.
    """
    if not cache.exists():
        items, images = [], []
        for item in (*icons(icons_folder), *clip_art(clip_art_folder)):
            try:
                image = drawings.draw(item.svg, size)
            except ValueError:  # a drawing that is no valid SVG
                continue
            if (image != image[:, :1, :1]).any():
                images.append(image)
                items.append(item._replace(svg=""))
        notes = {"items": json.dumps(items)}
        save_file({"images": torch.stack(images)}, cache, metadata=notes)
    with safe_open(cache, framework="pt") as file:
        rows = json.loads(file.metadata()["items"])
        return [Item(r[0], r[1], tuple(r[2]), r[3]) for r in rows], file.get_tensor("images")
