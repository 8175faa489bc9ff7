"""MM-IMDb: `split.json`, `images/{id}.jpeg`, and `labels/{id}.json` with the movie's plots and genres."""

from __future__ import annotations

from pathlib import Path

from mora.data.builders.raw import Raw, RawRow, RawSplit, is_text, read_split_file, stays_inside
from mora.data.published import GENRES
from mora.system.files import read_json
from mora.system.messages import printable


def read(folder: Path) -> Raw:
    """List every movie; genres outside the 23 are left out, as published."""
    splits = {split: _split(folder, names) for split, names in read_split_file(folder / "split.json").items()}
    return Raw(splits, GENRES)


def _split(folder: Path, names: list[str]) -> RawSplit:
    split = RawSplit(len(names))
    for name in names:
        try:
            plots, genres = _movie(folder, name)
        except (ValueError, OSError) as error:
            split.problems.append(printable(str(error)))
            continue
        label = [int(genre in genres) for genre in GENRES]
        image = folder / "images" / f"{name}.jpeg"
        split.rows.append(RawRow(image, plots, label, {"genres": genres, "image_id": name}))
    return split


def _movie(folder: Path, name: str) -> tuple[list[str], list[str]]:
    path = folder / "labels" / f"{name}.json"
    if not stays_inside(name):
        raise ValueError(f"{folder / 'split.json'}: got the movie {name!r}, expected a name without a path")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    content = read_json(path)
    lists = []
    for key in ("plot", "genres"):
        value = content.get(key)
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(entry, str) and is_text(entry) for entry in value):
            raise ValueError(f"{path}: no list of texts under {key!r}")
        lists.append(value)
    return lists[0], lists[1]
