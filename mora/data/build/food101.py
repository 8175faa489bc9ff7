"""UPMC Food-101: `split.json`, `class_idx.json`, `images/{train,test}/{class}/`, and `text.json` or `texts/*.csv`."""

from __future__ import annotations

import csv
from pathlib import Path

from mora.data.build.raw import Raw, RawRow, RawSplit, need, read_split_file, stays_inside
from mora.system.files import read_json


def read(folder: Path) -> Raw:
    """List every picture with its recipe's title; those without a title are left out and counted, as published."""
    path = folder / "class_idx.json"
    need(path, 'the number of each class, such as {"apple_pie": 0, ...}')
    index = read_json(path)
    if sorted(index.values(), key=str) != sorted(range(len(index)), key=str):
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
        wrong = [name for name, several in texts.items() if not isinstance(several, list)]
        if wrong:
            raise ValueError(f"{path}: got no text for {wrong[0]!r}, expected a text or a list of texts")
        return texts
    files = sorted({*folder.glob("texts/*.csv"), *folder.glob("*titles.csv")})
    if not files:
        raise FileNotFoundError(f"{folder}: got neither text.json nor texts/*.csv, expected the recipes' titles in one")
    texts = {}
    for file in files:  # lines of picture, title, class; a title may hold commas that nobody quoted
        with file.open(encoding="utf-8", newline="") as stream:
            try:
                for cells in csv.reader(stream):
                    name, last = cells[0].strip() if cells else "", len(cells)
                    last -= last > 2 and cells[-1].strip() == name.rpartition("_")[0]
                    if title := ",".join(cells[1:last]).strip():
                        texts[name] = [title]
            except (UnicodeDecodeError, csv.Error) as error:
                raise ValueError(f"{file}: got a file that is not CSV in UTF-8 ({error})") from error
    return texts
