"""Hateful Memes: `img/`, and `train.jsonl`, `dev.jsonl` (or `dev_seen`), `test.jsonl` (or `test_seen`)."""

from __future__ import annotations

from pathlib import Path

from mora.data.builders.raw import Raw, RawRow, RawSplit, is_text, refuse_repeated, stays_inside
from mora.data.published import PUBLISHED
from mora.system.files import parse_json, read_text
from mora.system.messages import printable, shown

FILES = {
    "train": ("train.jsonl",),
    "validation": ("dev_seen.jsonl", "dev.jsonl"),
    "test": ("test_seen.jsonl", "test.jsonl"),
}


def read(folder: Path) -> Raw:
    """List every meme; of two candidates for a split the one that says `seen` is taken, for it has labels."""
    splits = {}
    for split, candidates in FILES.items():
        path = next((folder / name for name in candidates if (folder / name).is_file()), None)
        if path is None:
            raise FileNotFoundError(f"{folder}: got no {' or '.join(candidates)}, expected the memes of {split}")
        splits[split] = _split(folder, path)
    names = {split: [str(row.image.relative_to(folder)) for row in found.rows] for split, found in splits.items()}
    refuse_repeated(folder, names)
    return Raw(splits, PUBLISHED["hateful_memes"].classes)


def _split(folder: Path, path: Path) -> RawSplit:
    lines = [(number, line) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    found = RawSplit(len(lines))
    for number, line in lines:
        try:
            found.rows.append(_row(folder, parse_json(line, "JSON")))
        except ValueError as error:
            found.problems.append(f"{path} line {number}: {printable(str(error))}")
    return found


def _row(folder: Path, content: object) -> RawRow:
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    image, text, label = (content.get(key) for key in ("img", "text", "label"))
    if not isinstance(image, str) or not stays_inside(image):
        raise ValueError(f"img is {shown(image)}, expected a path such as img/01235.png")
    if not isinstance(text, str):
        raise ValueError(f"text is {shown(text)}, expected the text of the meme")
    if not is_text(text):
        raise ValueError(f"text holds half a character: {text!a}")
    if type(label) is not int or label not in (0, 1):
        raise ValueError(
            f"label is {shown(label)}, expected 0 or 1 (the challenge's own test file has none: use test_seen)"
        )
    return RawRow(folder / image, [text], label)
