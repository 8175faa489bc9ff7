"""The three published data sets: names, classes, sizes, metrics, and how their files are called."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

GENRES = (
    "Drama", "Comedy", "Romance", "Thriller", "Crime", "Action", "Adventure", "Horror", "Documentary", "Mystery",
    "Sci-Fi", "Fantasy", "Family", "Biography", "War", "History", "Music", "Animation", "Musical", "Western", "Sport",
    "Short", "Film-Noir",
)  # fmt: skip


class Published(NamedTuple):
    """A published data set; `counts` are its images in train, validation and test before anything is left out.

    `folder` is its root in the official layout, `aliases` the names it goes by elsewhere; `classes` is empty where
    only a file that comes with the data names them.
    """

    folder: str
    aliases: tuple[str, ...]
    counts: tuple[int, int, int]
    num_classes: int
    classes: tuple[str, ...]
    metric: str
    multi_label: bool
    texts: str


PUBLISHED = {
    "mmimdb": Published("mmimdb", ("mm-imdb",), (15552, 2608, 7799), 23, GENRES, "macro_f1", True, "plots"),
    "food101": Published(
        "Food101", ("food-101", "upmc-food101"), (61142, 6846, 22716), 101, (), "accuracy", False, "text"
    ),
    "hateful_memes": Published(
        "hateful_memes", ("hatememes", "hatefulmemes", "hateful-memes"), (8500, 500, 1000), 2,
        ("not hateful", "hateful"), "auroc", False, "text",
    ),
}  # fmt: skip

SPLIT_NAMES = {"train": ("train",), "validation": ("val", "validation", "dev"), "test": ("test",)}


def published_name(word: str) -> str | None:
    """`"mmimdb"`, `"food101"` or `"hateful_memes"` for a name it goes by, in any case; None for any other word."""
    for name, data in PUBLISHED.items():
        if word.lower() in (name, data.folder.lower(), *data.aliases):
            return name
    return None


@lru_cache(maxsize=256)
def split_name(word: str) -> str | None:
    """`"train"`, `"validation"` or `"test"` for what files call it; None for any other word."""
    return next((split for split, words in SPLIT_NAMES.items() if word.lower() in words), None)
