"""`build`: every split of a raw folder checked and written, each file by rename, with an account of what is done."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mora.data.builders import food101, hateful_memes, mmimdb
from mora.data.builders.description import Description
from mora.data.builders.raw import Raw, RawSplit
from mora.data.builders.write import write_split
from mora.data.dataset import SPLITS, fingerprint
from mora.data.published import PUBLISHED, SPLIT_NAMES
from mora.system.files import write_bytes
from mora.system.messages import listed

BROKEN = "broken.txt"
READERS: dict[str, Callable[[Path], Raw]] = {
    "mmimdb": mmimdb.read,
    "food101": food101.read,
    "hateful_memes": hateful_memes.read,
}


def build(
    name: str,
    raw: str | Path,
    out: str | Path,
    *,
    skip_broken: bool = False,
    accept_counts: bool = False,
    report: Callable[[str], None] = print,
) -> None:
    """Write `{train,val,test}.arrow` and `dataset.json` of a published data set into `out`.

    Every image is decoded once. All files that are missing or broken are named: the first in the error, every one in
    `broken.txt`. Splits without any are written all the same, and a second run keeps those that are done and whose
    source is unchanged.

    Args:
        name: `"mmimdb"`, `"food101"` or `"hateful_memes"`.
        raw: the folder as it is distributed.
        out: where to write.
        skip_broken: leave out samples whose files are missing or broken, instead of refusing their split.
        accept_counts: build though the numbers of images are not the published ones.
        report: called with a line for every split.

    Raises:
        ValueError: unknown name, wrong counts, a sample in two splits, missing or broken files; what is done is said.
        OSError: a listing is missing, or writing failed; what is done is said.
    """
    raw, out = Path(raw), Path(out)
    if name not in READERS:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(READERS)}")
    if not raw.is_dir():
        raise FileNotFoundError(f"raw: got {raw}, no such folder, expected the raw folder of {name}")
    source = READERS[name](raw)
    _check_counts(name, raw, source, accept_counts)
    description = Description.open(out, name, source.classes)
    states: dict[str, str] = dict.fromkeys(SPLITS, "not written")
    broken: dict[str, list[str]] = {}
    try:
        for split in SPLITS:
            states[split], broken[split] = _build_split(split, source.splits[split], description, skip_broken)
            report(f"{split}: {states[split]}")
    except (OSError, KeyboardInterrupt) as error:
        account = "; ".join(f"{split}: {state}" for split, state in states.items())
        if isinstance(error, KeyboardInterrupt):
            report(f"interrupted; {account}; the same command goes on from here")
            raise
        raise OSError(f"{error}; {account}; the same command goes on from here") from error
    _account(out, broken, states, skip_broken)


def _check_counts(name: str, raw: Path, source: Raw, accept: bool) -> None:
    found = tuple(source.splits[split].listed for split in SPLITS)
    published = PUBLISHED[name].counts
    if found != published and not accept:
        numbers = [" / ".join(f"{count:,}" for count in counts) for counts in (found, published)]
        raise ValueError(
            f"{raw}: got {numbers[0]} images in train / validation / test, expected {numbers[1]}, as published; "
            "accept_counts=True (--accept-counts) builds them anyway"
        )


def _build_split(split: str, found: RawSplit, description: Description, skip: bool) -> tuple[str, list[str]]:
    """What became of a split, in words, and the names of its broken files."""
    path = description.folder / f"{SPLIT_NAMES[split][0]}.arrow"
    state = _digest(found, skip)
    done = description.splits.get(split, {})
    rows, left_out = done.get("rows"), done.get("left_out")
    if (
        path.is_file()
        and (done.get("source"), done.get("bytes")) == (state, path.stat().st_size)
        and isinstance(rows, int)
        and isinstance(left_out, list)
    ):
        return f"{rows:,} images, unchanged", left_out
    rows, broken = write_split(path, split, found, PUBLISHED[description.name], keep=skip)
    broken = [*found.problems, *broken]
    if broken and not skip:
        earlier = " (the file of an earlier run stays)" if path.is_file() else ""
        return f"not written, {len(broken):,} files missing or broken{earlier}", broken
    size = {"rows": rows, "bytes": path.stat().st_size, "source": state}
    description.record(split, {**size, "left_out": broken, "without_text": found.textless})
    left_out = f", {len(broken):,} broken left out" if broken else ""
    textless = f", {len(found.textless):,} without a text left out" if found.textless else ""
    return f"{rows:,} images written{left_out}{textless}", broken


def _digest(found: RawSplit, skip: bool) -> str:
    """Of everything a split's file depends on; images count by path, size and time of change."""

    def state(path: Path) -> list[Any]:
        try:
            stat = path.stat() if path.is_file() else None
        except (OSError, ValueError):  # a name that no file system takes
            stat = None
        return [os.path.abspath(path), stat and stat.st_size, stat and stat.st_mtime_ns]

    rows = ([state(row.image), row.texts, row.label, row.extra] for row in found.rows)
    return fingerprint([skip, found.problems, found.textless, *rows])


def _account(out: Path, broken: dict[str, list[str]], states: dict[str, str], skip: bool) -> None:
    every = [line for lines in broken.values() for line in lines]
    path = out / BROKEN
    if not every:
        path.unlink(missing_ok=True)
        return
    write_bytes(path, "".join(f"{line}\n" for line in every).encode("utf-8", "backslashreplace"))
    if not skip:
        account = "; ".join(f"{split}: {state}" for split, state in states.items())
        raise ValueError(
            f"{len(every):,} files are missing or broken: {listed(every)}; all are in {path}. {account}. "
            "Mend them, or skip them with skip_broken=True (--skip-broken); what is written stays"
        )
