"""`check`: everything about a data set that can be known before training on it, and all that training would refuse."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mora.data.dataset import Dataset
from mora.data.open import open_dataset, splits_of
from mora.data.presence import PAIR, Presence
from mora.data.table_files import load_table, read_table
from mora.data.tables import MissingTable, presence_of
from mora.data.trainable import refuse_incomplete, refuse_untrainable
from mora.system.messages import printable

SHOWN_CLASSES = 30


@dataclass(frozen=True)
class Part:
    """One split: what is in it, how many samples of each class, and a message for every image that cannot be read.

    `plain` names the images of nearly one colour, as a picture that was saved or decoded wrong often is. `table` counts
    what samples lack once a missing table has been applied too; None without a table. `missing` and `remarks` are by
    modality: the samples that lack it, and what stands out about inputs that are no images.
    """

    split: str
    samples: int
    images: int
    complete: int
    missing: dict[str, int]
    classes: tuple[int, ...]
    fingerprint: str
    broken: tuple[str, ...]
    plain: tuple[str, ...] = ()
    table: tuple[int, ...] | None = None
    remarks: tuple[str, ...] = ()

    @property
    def counts(self) -> tuple[int, ...]:
        """Samples that are complete, and that lack each modality."""
        return self.complete, *self.missing.values()


@dataclass(frozen=True)
class Check:
    """What `check` found; `str()` is a table. `refused` says what training would refuse, broken images aside."""

    name: str
    classes: tuple[str, ...]
    multi_label: bool
    metric: str
    parts: tuple[Part, ...]
    refused: tuple[str, ...] = ()

    @property
    def pair(self) -> bool:
        """Whether there are image and text alone."""
        return not self.parts or set(self.parts[0].missing) == set(PAIR)

    @property
    def plain(self) -> tuple[str, ...]:
        """The name of every image of nearly one colour, of all splits."""
        return tuple(name for part in self.parts for name in part.plain)

    @property
    def broken(self) -> tuple[str, ...]:
        """A message for every image that cannot be read, of all splits."""
        return tuple(message for part in self.parts for message in part.broken)

    def __str__(self) -> str:
        labels = "several labels per row" if self.multi_label else "one label per row"
        lines = [f"{printable(self.name)}: {len(self.classes)} classes, {labels}, scored by {self.metric}", ""]
        counted = ["complete", *(f"{name} missing" for name in (self.parts[0].missing if self.parts else ()))]
        heads = ["split", "samples", "images", *counted, "broken", "fingerprint"]
        rows = [
            [
                part.split, f"{part.samples:,}", f"{part.images:,}", *(f"{count:,}" for count in part.counts),
                f"{len(part.broken):,}", part.fingerprint[:12],
            ]
            for part in self.parts
        ]  # fmt: skip
        lines += table_lines(heads, rows)
        if any(part.table for part in self.parts):
            heads = ["with the missing table", *counted]
            lines += ["", *table_lines(heads, [[p.split, *(f"{n:,}" for n in p.table)] for p in self.parts if p.table])]
        counts = [
            [printable(name), *(f"{part.classes[index]:,}" for part in self.parts)]
            for index, name in enumerate(self.classes[:SHOWN_CLASSES])
        ]
        lines += ["", *table_lines(["class", *(part.split for part in self.parts)], counts)]
        if len(self.classes) > SHOWN_CLASSES:
            lines.append(f"and {len(self.classes) - SHOWN_CLASSES} more classes")
        for title, found in (
            ("images of nearly one colour", self.plain),
            ("inputs that stand out", tuple(remark for part in self.parts for remark in part.remarks)),
            (f"{'images' if self.pair else 'inputs'} that cannot be read", self.broken),
            ("what mora train refuses", self.refused),
        ):
            if found:
                lines += ["", f"{title} ({len(found):,}):", *map(printable, found)]
        return "\n".join(lines)


def table_lines(heads: list[str], rows: list[list[str]]) -> list[str]:
    """Columns under heads: the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in enumerate(cells)
        ).rstrip()
        for cells in (list(zip(row, widths, strict=True)) for row in (heads, *rows))
    ]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def check(
    source: str | Path,
    *,
    splits: tuple[str, ...] | None = None,
    name: str | None = None,
    metric: str | None = None,
    extra_columns: bool = False,
    seed: int = 0,
    tables: Sequence[str | Path] = (),
) -> Check:
    """Open every split, decode every image, count, and ask what training asks.

    Args:
        source: see `open_dataset`, as `name`, `metric`, `extra_columns` and `seed`.
        splits: which ones; by default all the source has, which then have to be enough to train on.
        tables: files of missing tables, each applied to the split it is for.

    Raises:
        ValueError: what `open_dataset` raises, broken images aside; a table made for other data, for a split that is
            not checked, or for one that another is for.
    """
    there = splits_of(source, extra_columns=extra_columns)
    refused = [] if splits else _refusal(refuse_incomplete, source, there)
    chosen = splits or there
    if not chosen:
        raise ValueError(refused[0])
    files = _by_split(tables, chosen)
    parts, datasets = [], {}
    for split in chosen:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is left out is in the result
            dataset = open_dataset(
                source, split, name=name, metric=metric, extra_columns=extra_columns, seed=seed, on_broken="skip"
            )
        parts.append(_part(dataset, load_table(files[split], dataset) if split in files else None))
        datasets[split] = dataset
    refused += _refusal(refuse_untrainable, datasets)
    return Check(dataset.name, dataset.classes, dataset.multi_label, dataset.metric, tuple(parts), tuple(refused))


def _refusal(refuse: Callable[..., None], *given: object) -> list[str]:
    """What `refuse` says, if it does."""
    try:
        refuse(*given)
    except ValueError as error:
        return [str(error)]
    return []


def _by_split(tables: Sequence[str | Path], splits: Sequence[str]) -> dict[str, str | Path]:
    """Each table's file under the split it is for; ValueError for two of one split, and for one that is not checked."""
    files: dict[str, str | Path] = {}
    for path in tables:
        split = read_table(path).split
        if split in files or split not in splits:
            other = f"another for {split} beside {files[split]}" if split in files else f"one for {split}"
            raise ValueError(f"tables: got {path}, {other}, expected one at most for each of {', '.join(splits)}")
        files[split] = path
    return files


def _part(dataset: Dataset, table: MissingTable | None) -> Part:
    complete, missing = _counts(dataset.present())
    labels = dataset.labels()
    classes = labels.sum(0).long() if dataset.multi_label else torch.bincount(labels, minlength=len(dataset.classes))
    left = _counts(presence_of(table, dataset)) if table else None
    return Part(
        split=dataset.split,
        samples=len(dataset),
        images=dataset.rows,
        complete=complete,
        missing=missing,
        classes=tuple(classes.tolist()),
        fingerprint=dataset.fingerprint,
        broken=dataset.broken,
        plain=dataset.plain,
        table=(left[0], *left[1].values()) if left else None,
        remarks=tuple(remark for remarks in dataset.remarks.values() for remark in remarks),
    )


def _counts(presence: Presence) -> tuple[int, dict[str, int]]:
    """Complete rows, and rows without each modality: text before image, as tables count them."""
    order = ("text", "image") if set(presence.modalities) == set(PAIR) else presence.modalities
    missing = presence.missing
    return presence.complete, {name: missing[name] for name in order}
