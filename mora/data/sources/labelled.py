"""Rows with written labels, as manifests and saved data sets have them: classes, splits and what can be wrong."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mora.data.dataset import SPLITS
from mora.data.published import split_name
from mora.data.sources.division import divide
from mora.data.sources.rows import Task, refuse_vast
from mora.system.messages import listed, rows_of

SEPARATOR = "|"


@dataclass
class Labelled:
    """Every row of a source, as columns of one length.

    `where` names the source in messages; `images` are keys (paths, names) or None; `texts` or None; `labels` one or
    several names; `splits` as written, or None where the source has no split; `classes` in the source's own order, or
    None for their natural order; `several` whether a row may have several labels; `others` the keys or contents of
    further modalities, by name; `modalities` all of them in order, or none where there are image and text alone.
    """

    where: str
    images: list[str | None]
    texts: list[str | None]
    labels: list[tuple[str, ...]]
    splits: list[str] | None
    classes: tuple[str, ...] | None
    several: bool
    others: dict[str, list[str | None]] = field(default_factory=dict)
    modalities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no split can be made of; ValueError that names the rows, counted from 1."""
        if not self.labels:
            raise ValueError(f"{self.where}: got no rows, expected some")
        unlabelled = [row for row, several in enumerate(self.labels, 1) if not several]
        if unlabelled:
            raise ValueError(f"{self.where}: got no label in {rows_of(unlabelled)}, expected one in every row")
        self._refuse_unwritable()
        cells = zip(self.images, self.texts, *self.others.values(), strict=True)
        nothing = [row for row, inputs in enumerate(cells, 1) if not any(one is not None for one in inputs)]
        if nothing:
            names = " nor ".join((", ".join(("image", "text", *self.others)[:-1]), ("text", *self.others)[-1]))
            raise ValueError(f"{self.where}: got neither {names} in {rows_of(nothing)}, expected one at least")

    def _refuse_unwritable(self) -> None:
        """ValueError for what no file, table or tokenizer takes: half of a character, a NUL in a path."""
        labels = ("|".join(several) for several in self.labels)
        for name, values in (
            ("image", self.images),
            ("text", self.texts),
            ("label", labels),
            ("split", self.splits or ()),
            *self.others.items(),
        ):
            for row, value in enumerate(values, 1):
                if value is None or (value.isascii() and "\0" not in value):
                    continue
                try:
                    value.encode()
                except UnicodeEncodeError as error:
                    reason = f"half a character ({value[error.start]!a})"
                    raise ValueError(f"{self.where}: got {reason} in {name} of row {row}, expected text") from error
                if name in ("image", *self.others) and "\0" in value:
                    raise ValueError(f"{self.where}: got a NUL in {name} of row {row}, expected a path: {value[:80]!r}")

    def parts(self, seed: int) -> list[str]:
        """The split of every row, as written or divided by content; ValueError for a word that is no split."""
        if self.splits is None:
            return divide([self._content(row) for row in range(len(self.labels))], self.labels, seed)
        wrong = {word: row for row, word in reversed(list(enumerate(self.splits, 1))) if split_name(word) is None}
        if wrong:
            found = listed(f"{word!r} (row {row})" for word, row in sorted(wrong.items(), key=lambda item: item[1]))
            raise ValueError(f"{self.where}: got the splits {found}, expected train, validation (val, dev) or test")
        return [split_name(word) or "" for word in self.splits]

    def _content(self, row: int) -> str:
        """What rows have in common that stay together: their image, else their text, else the first of the others."""
        image, text = self.images[row], self.texts[row]
        if image is not None:
            return f"image {os.path.normpath(image)}"
        if text is not None or not self.others:
            return f"text {text}"
        return next(f"{name} {cells[row]}" for name, cells in self.others.items() if cells[row] is not None)

    def task(self, name: str, classes: Sequence[str] | None, multi_label: bool | None, least: int = 2) -> Task:
        """Classes in their natural order (numbers by value), or the given ones; one label per row or several.

        `least`: how many classes there have to be, where none are given.
        """
        several = self.several if multi_label is None else multi_label
        crowded = [row for row, labels in enumerate(self.labels, 1) if len(labels) > 1]
        if crowded and not several:
            raise ValueError(f"{self.where}: got several labels in {rows_of(crowded)}, expected one in every row")
        names = tuple(classes) if classes is not None else self.classes or _natural(self.labels)
        known_names = set(names)
        unknown = Counter(label for labels in self.labels for label in labels if label not in known_names)
        if unknown:
            found = listed(f"{label!r} ({count} rows)" for label, count in unknown.items())
            known = f"the {len(names)} known classes: {listed(names)}"
            raise ValueError(f"{self.where}: got the labels {found}, expected {known}")
        if classes is None and len(names) < least:
            raise ValueError(
                f"{self.where}: every row is of one class ({listed(names)}), expected two classes at least"
            )
        if several:
            refuse_vast(self.where, len(self.labels), len(names))
        return Task(name, names, several, "macro_f1" if several else "accuracy")

    def refuse_unseen(self, parts: Sequence[str]) -> None:
        """ValueError for labels in validation or test that no row of train has."""
        seen = {label for labels, part in zip(self.labels, parts, strict=True) if part == "train" for label in labels}
        unseen: dict[str, list[int]] = {}
        for row, (labels, part) in enumerate(zip(self.labels, parts, strict=True), 1):
            for label in labels:
                if part != "train" and label not in seen:
                    unseen.setdefault(label, []).append(row)
        if unseen:
            found = listed(f"{label!r} ({rows_of(rows)})" for label, rows in unseen.items())
            raise ValueError(f"{self.where}: no row of train has the labels {found}, which validation or test have")

    def encode(self, rows: Sequence[int], task: Task) -> Tensor:
        """The labels of `rows`, int64 [N], or multi-hot float32 [N, C]."""
        place = {label: index for index, label in enumerate(task.classes)}
        if not task.multi_label:
            return torch.tensor([place[self.labels[row][0]] for row in rows], dtype=torch.int64)
        hot = torch.zeros(len(rows), len(place))
        for line, row in enumerate(rows):
            hot[line, [place[label] for label in self.labels[row]]] = 1
        return hot

    def choose(self, split: str, parts: Sequence[str]) -> list[int]:
        """The rows of a split, from 0; ValueError when it has none, with what there is."""
        if split == "all":
            return list(range(len(self.labels)))
        chosen = [row for row, part in enumerate(parts) if part == split]
        if not chosen:
            counts = Counter(parts)
            found = listed(f"{part!r} ({counts[part]} rows)" for part in SPLITS if counts[part])
            raise ValueError(f"split: got {split!r}, expected one that {self.where} has: {found} or 'all'")
        return chosen


def _natural(labels: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    names = {label for several in labels for label in several}
    try:
        return tuple(sorted(names, key=lambda name: (int(name), name)))  # "1" and "01" are two classes
    except ValueError:
        return tuple(sorted(names))
