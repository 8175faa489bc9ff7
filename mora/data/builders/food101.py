"""UPMC Food-101: `split.json`, `class_idx.json`, `images/{train,test}/{class}/`, and `text.json` or `texts/*.csv`."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from mora.data.builders.raw import Raw, RawRow, RawSplit, is_text, need, read_split_file, stays_inside
from mora.system.files import read_json, read_text

PICTURE = re.compile(r"[^,\"]+_\d+\.\w+,")


def read(folder: Path) -> Raw:
    """List every picture with its recipe's title; those without a title are left out and counted, as published."""
    path = folder / "class_idx.json"
    need(path, 'the number of each class, such as {"apple_pie": 0, ...}')
    index = read_json(path)
    if not all(type(number) is int for number in index.values()) or sorted(index.values()) != list(range(len(index))):
        raise ValueError(f"{path}: got {len(index)} classes with other numbers, expected 0 to {len(index) - 1}")
    texts = _texts(folder)
    splits = {
        split: _split(folder, split, names, index, texts)
        for split, names in read_split_file(folder / "split.json").items()
    }
    return Raw(splits, sorted(index, key=index.__getitem__))


def _split(folder: Path, split: str, names: list[str], index: dict[str, int], texts: dict[str, list[str]]) -> RawSplit:
    found = RawSplit(len(names))
    part = "test" if split == "test" else "train"  # validation is a share of the training pictures
    for name in names:
        kind = name.rpartition("_")[0]
        if kind not in index or not stays_inside(name):
            found.problems.append(f"{folder / 'split.json'}: {name!r} is of none of the classes in class_idx.json")
        elif name not in texts:
            found.textless.append(name)
        else:
            image = folder / "images" / part / kind / name
            found.rows.append(RawRow(image, texts[name], index[kind], {"image_id": name}))
    return found


def _texts(folder: Path) -> dict[str, list[str]]:
    """Titles by picture; ValueError or FileNotFoundError when there are none."""
    path = folder / "text.json"
    if path.is_file():
        texts = {name: [text] if isinstance(text, str) else text for name, text in read_json(path).items()}
        wrong = [name for name, several in texts.items() if not is_texts(several)]
        if wrong:
            raise ValueError(f"{path}: got no text for {wrong[0]!r}, expected a text or a list of texts")
        return texts
    files = sorted({*folder.glob("texts/*.csv"), *folder.glob("*titles.csv")})
    if not files:
        raise FileNotFoundError(f"{folder}: got neither text.json nor texts/*.csv, expected the recipes' titles in one")
    texts = {}
    for file in files:
        texts |= _titles(file)
    return texts


def is_texts(value: object) -> bool:
    """Whether this is a list of texts."""
    return isinstance(value, list) and all(isinstance(text, str) and is_text(text) for text in value)


def _titles(file: Path) -> dict[str, list[str]]:
    """Lines of picture, title, class; a title may hold commas that nobody quoted.

    ValueError for a quote that opens in one line and takes the lines of other pictures into its title.
    """
    texts: dict[str, list[str]] = {}
    content = read_text(file)
    lines, done = list(io.StringIO(content, newline="")), 0
    reader = csv.reader(lines)
    try:
        for cells in reader:
            name, last = cells[0].strip() if cells else "", len(cells)
            kind = name.rpartition("_")[0]
            if kind and any(PICTURE.match(line) for line in lines[done + 1 : reader.line_num]):
                raise ValueError(f"{file}: line {done + 1} opens a quote that takes the next lines into its title")
            done = reader.line_num
            last -= last > 2 and cells[-1].strip() == kind
            if title := ",".join(cells[1:last]).strip():
                texts[name] = [title]
    except csv.Error as error:
        raise ValueError(f"{file}: got a file that is not CSV in UTF-8 ({error})") from error
    return texts
