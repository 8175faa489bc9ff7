"""Tiny copies of the three published data sets, raw and in the Arrow layout, and of a user's manifest.

Nothing here uses mora's own code: files are written as the official preparation writes them. Every class has a colour
and a word, so that a model can learn from either modality. Each function returns the folder or file to open.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

GENRES = (
    "Drama", "Comedy", "Romance", "Thriller", "Crime", "Action", "Adventure", "Horror", "Documentary", "Mystery",
    "Sci-Fi", "Fantasy", "Family", "Biography", "War", "History", "Music", "Animation", "Musical", "Western", "Sport",
    "Short", "Film-Noir",
)  # fmt: skip
FOODS = [f"food_{index:03d}" for index in range(101)]
ROOTS = {"mmimdb": "mmimdb", "food101": "Food101", "hateful_memes": "hateful_memes"}
FILES = {"train": "train", "validation": "val", "test": "test"}
COLOURS = ((220, 40, 40), (40, 200, 60), (50, 80, 230), (230, 210, 40))
WORDS = ("apple", "bread", "curry", "donut")
ROWS = (24, 8, 8)


class Row(NamedTuple):
    """One image with all its texts; `kind` counts the four things a row can show."""

    key: str
    kind: int
    image: bytes
    texts: list[str]


def picture(kind: int, seed: int, form: str = "JPEG") -> bytes:
    """An encoded image of 24 x 20 noisy pixels around the colour of `kind`."""
    from PIL import Image

    noise = random.Random(seed)
    pixels = bytes(min(255, max(0, c + noise.randint(-25, 25))) for _ in range(24 * 20) for c in COLOURS[kind])
    buffer = io.BytesIO()
    Image.frombytes("RGB", (24, 20), pixels).save(buffer, form)
    return buffer.getvalue()


def rows_of(name: str, split: str, count: int) -> list[Row]:
    """The rows of one split; deterministic, and different in every split."""
    start = {"train": 0, "validation": 1000, "test": 2000}[split]
    kinds = 2 if name == "hateful_memes" else 4
    rows = []
    for index in range(count):
        kind, seed = index % kinds, start + index
        texts = [f"{WORDS[kind]} number {seed}, telling {n}" for n in range(1 + index % 3 if name == "mmimdb" else 1)]
        key = {"mmimdb": f"{seed:07d}", "food101": f"{FOODS[kind]}_{seed}.jpg", "hateful_memes": f"{seed:05d}"}[name]
        rows.append(Row(key, kind, picture(kind, seed, "PNG" if name == "hateful_memes" else "JPEG"), texts))
    return rows


def genres(kind: int) -> list[str]:
    """One or two genres for each kind of movie."""
    return [["Drama"], ["Comedy", "Romance"], ["Horror"], ["Drama", "Film-Noir"]][kind]


def splits(name: str, counts: Sequence[int]) -> dict[str, list[Row]]:
    """Rows by split, `counts` of them in train, validation and test."""
    return {split: rows_of(name, split, count) for split, count in zip(FILES, counts, strict=True)}


def raw(folder: Path, name: str, counts: Sequence[int] = ROWS) -> Path:
    """The raw folder of a published data set, as it is distributed."""
    root = folder / f"raw_{name}"
    root.mkdir(parents=True)
    {"mmimdb": _raw_mmimdb, "food101": _raw_food101, "hateful_memes": _raw_hateful_memes}[name](
        root, splits(name, counts)
    )
    return root


def _raw_mmimdb(root: Path, parts: dict[str, list[Row]]) -> None:
    for sub in ("images", "labels"):
        (root / sub).mkdir()
    for row in (row for rows in parts.values() for row in rows):
        (root / "images" / f"{row.key}.jpeg").write_bytes(row.image)
        (root / "labels" / f"{row.key}.json").write_text(json.dumps({"plot": row.texts, "genres": genres(row.kind)}))
    names = {"train": "train", "validation": "dev", "test": "test"}
    listing = {names[split]: [row.key for row in rows] for split, rows in parts.items()}
    (root / "split.json").write_text(json.dumps(listing))


def _raw_food101(root: Path, parts: dict[str, list[Row]]) -> None:
    for split, rows in parts.items():
        for row in rows:
            path = root / "images" / ("test" if split == "test" else "train") / FOODS[row.kind] / row.key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row.image)
    (root / "texts").mkdir()
    for file, members in (("train", ("train", "validation")), ("test", ("test",))):
        with (root / "texts" / f"{file}_titles.csv").open("w", newline="") as stream:
            lines = [(row.key, row.texts[0], FOODS[row.kind]) for split in members for row in parts[split]]
            csv.writer(stream).writerows(lines)
    (root / "class_idx.json").write_text(json.dumps({food: index for index, food in enumerate(FOODS)}))
    listing = {FILES[split]: [row.key for row in rows] for split, rows in parts.items()}
    (root / "split.json").write_text(json.dumps(listing))


def _raw_hateful_memes(root: Path, parts: dict[str, list[Row]]) -> None:
    (root / "img").mkdir()
    for split, rows in parts.items():
        lines = []
        for row in rows:
            (root / "img" / f"{row.key}.png").write_bytes(row.image)
            content = {"id": int(row.key), "img": f"img/{row.key}.png", "label": row.kind, "text": row.texts[0]}
            lines.append(json.dumps(content) + "\n")
        (root / f"{'dev' if split == 'validation' else split}.jsonl").write_text("".join(lines))


def arrow(folder: Path, name: str, counts: Sequence[int] = ROWS) -> Path:
    """The folder of Arrow files that the official preparation makes of `raw`."""
    import pyarrow as pa

    root = folder / ROOTS[name]
    root.mkdir(parents=True)
    for split, rows in splits(name, counts).items():
        columns: dict[str, list] = {"image": [row.image for row in rows]}
        columns["plots" if name == "mmimdb" else "text"] = [row.texts for row in rows]
        columns["label"] = [row.kind for row in rows]
        columns["split"] = [FILES[split]] * len(rows)
        if name != "hateful_memes":
            columns["image_id"] = [row.key for row in rows]
        if name == "mmimdb":
            columns["genres"] = [genres(row.kind) for row in rows]
            columns["label"] = [[int(genre in genres(row.kind)) for genre in GENRES] for row in rows]
        table = pa.table(columns)
        with pa.OSFile(str(root / f"{FILES[split]}.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
            file.write_table(table)
    return root


def manifest(
    folder: Path, suffix: str = ".csv", count: int = 40, split: bool = False, multi_label: bool = False
) -> Path:
    """A manifest with its images: rows 0, 7, 14... lack their text, rows 3, 10, 17... their image."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "images").mkdir(exist_ok=True)
    rows = []
    for index in range(count):
        kind = index % 4
        image = "" if index % 7 == 3 else f"images/{index}.png"
        if image:
            (folder / image).write_bytes(picture(kind, index, "PNG"))
        text = "" if index % 7 == 0 else f"{WORDS[kind]}, number {index}"
        label = "|".join(WORDS[: kind + 1]) if multi_label else WORDS[kind]
        part = {"split": ("train", "train", "train", "validation", "test")[index // 4 % 5]} if split else {}
        rows.append({"image": image, "text": text, "label": label, **part})
    path = folder / f"manifest{suffix}"
    write_manifest(path, rows)
    return path


def write_manifest(path: Path, rows: list[dict[str, object]]) -> None:
    """Write rows as CSV, JSONL or Parquet, as the file's name says; empty values are null where the format has null."""
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        return
    rows = [{key: None if value == "" else value for key, value in row.items()} for row in rows]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)
