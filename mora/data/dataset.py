"""What every data set looks like to training and evaluation, and `open_dataset`, which opens one of any kind."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch.utils.data
from torch import Tensor

from mora.data.missing import check_seed
from mora.data.trainable import refuse_unlearnable
from mora.system.messages import listed

if TYPE_CHECKING:
    from PIL import Image

SPLITS = ("train", "validation", "test")
ON_BROKEN = ("raise", "skip")


class Sample(NamedTuple):
    """One row: `image` RGB or None where missing; `text` or None where missing; `label`; `id`, unique in its split.

    `label` is int64 [] for single-label tasks and float32 [C], multi-hot, for multi-label ones.
    """

    image: Image.Image | None
    text: str | None
    label: Tensor
    id: str


class Dataset(torch.utils.data.Dataset[Sample], ABC):
    """One split of a data set; picklable, and safe to read from forked or spawned workers.

    Attributes:
        name: of the data set, the same for every split.
        split: `"train"`, `"validation"`, `"test"`, or `"all"` for a source that was not split.
        classes: names of the labels, in one order for every split of a source.
        multi_label: whether a row may have several labels.
        metric: `"accuracy"`, `"macro_f1"` or `"auroc"`: what the data set is scored by.
        fingerprint: hexadecimal SHA-256 of what defines the rows: their order, texts, labels, and the size in bytes
            of every image. Two data sets of one fingerprint can share a missing table.
        broken: one message for every image that was left out because it could not be read.
        plain: the name of every image of nearly one colour, where all were decoded to leave out the broken ones.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    multi_label: bool
    metric: str
    fingerprint: str
    broken: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Sample `index`, decoded; ValueError that names the image when it cannot be read."""

    @abstractmethod
    def available(self) -> Tensor:
        """Natural absence, int8 [N]: 0 complete, 1 text missing, 2 image missing; decodes nothing."""

    @abstractmethod
    def labels(self) -> Tensor:
        """Labels, int64 [N] or multi-hot float32 [N, C]; decodes nothing."""

    def groups(self) -> Tensor | None:
        """For each sample the row of the image it shows, int64 [N]; None where every sample has an image of its own.

        MM-IMDb repeats a movie for each of its plots. Missing tables have one value per image row: `rows` of them.
        """
        return None

    def stamp(self) -> str:
        """What changes whenever a sample does: the fingerprint, and size and time of change of every file behind it.

        Rows derived from samples are kept under it; a file that was only touched counts as changed.
        """
        return self.fingerprint

    @property
    def rows(self) -> int:
        """Number of image rows, which is the length of a missing table."""
        return len(self)


def fingerprint(parts: Iterable[object]) -> str:
    """SHA-256, in hexadecimal, over the JSON of every part; bytes are JSON already."""
    state = hashlib.sha256()
    for part in parts:
        state.update(part if isinstance(part, bytes) else compact_json(part))
        state.update(b"\n")
    return state.hexdigest()


def compact_json(value: object) -> bytes:
    """`value` as JSON without blanks, in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def stamp_of(fingerprint: str, files: Iterable[Path]) -> str:
    """SHA-256, in hexadecimal, of a fingerprint with the size and the time of change of some files."""
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.exists()]
    return hashlib.sha256(json.dumps([fingerprint, stats]).encode()).hexdigest()


def open_dataset(
    source: str | Path,
    split: str,
    *,
    name: str | None = None,
    metric: str | None = None,
    on_broken: str = "raise",
    size: int = 64,
    classes: Sequence[str] | None = None,
    multi_label: bool | None = None,
    seed: int = 0,
    extra_columns: bool = False,
) -> Dataset:
    """Open one split of a data set of any kind.

    Args:
        source: `"openmoji"`; a folder in the official Arrow layout; a folder saved by Hugging Face `datasets`; or a
            manifest, a file that ends in `.csv`, `.jsonl` or `.parquet`.
        split: `"train"`, `"validation"` or `"test"`; `"all"` takes every row of a manifest or saved data set.
        name: of a folder in the official layout that does not tell its own: `"mmimdb"`, `"food101"` and
            `"hateful_memes"` choose the published classes and metric. Anything else is called what its path is.
        metric: instead of the usual one: `"auroc"` for two classes, `"accuracy"` for one label per row, `"macro_f1"`
            for several.
        on_broken: what an image that is absent or cannot be read does: `"raise"` is an error that names it;
            `"skip"` decodes every image once, now, and leaves the rows out, with a warning that names them.
        size: side of OpenMoji's drawings in pixels.
        classes: names of the labels of a model that exists already, in its order; a label outside them is an error.
            Rows then serve for evaluation only, so that one class or one modality is enough.
        multi_label: whether a row of a manifest or saved data set may have several labels; by default, whether any has.
        seed: of the split of a source that has none.
        extra_columns: ignore columns of a manifest that have no meaning here, instead of refusing them.

    Raises:
        ValueError: the source, the split or a row is not as expected; the message names it.
        ImportError: a package this source needs is not installed.
    """
    if on_broken not in ON_BROKEN:
        raise ValueError(f"on_broken: got {on_broken!r}, expected one of {', '.join(map(repr, ON_BROKEN))}")
    if split not in (*SPLITS, "all"):
        raise ValueError(f"split: got {split!r}, expected one of {', '.join(map(repr, SPLITS))} or 'all'")
    check_seed("seed (--split-seed)", seed)
    path, kind = Path(source), _kind(source)
    _refuse_name(name, source, kind)
    if kind == "openmoji":
        from mora.data.openmoji import OpenMoji

        dataset: Dataset = OpenMoji(split, size)
    elif kind == "arrow":
        from mora.data.arrow import ArrowSplit

        dataset = ArrowSplit(path, split, name, on_broken, classes)
    elif kind == "hugging_face":
        from mora.data.hugging_face import HuggingFaceSplit

        dataset = HuggingFaceSplit(path, split, on_broken, classes=classes, multi_label=multi_label, seed=seed)
    else:
        from mora.data.manifest import ManifestSplit

        dataset = ManifestSplit(
            path, split, on_broken,
            classes=classes, multi_label=multi_label, seed=seed, extra_columns=extra_columns,
        )  # fmt: skip
    _fit(dataset, source, classes, metric, multi_label)
    return dataset


def _refuse_name(name: str | None, source: str | Path, kind: str) -> None:
    if name is not None and kind != "arrow":
        raise ValueError(
            f"name (--data-name): got {name!r} for {source}, expected it for a folder in the official layout only: it "
            "chooses published classes, which other data brings itself"
        )


def _fit(
    dataset: Dataset,
    source: str | Path,
    classes: Sequence[str] | None,
    metric: str | None,
    multi_label: bool | None,
) -> None:
    if multi_label not in (None, dataset.multi_label):
        kinds = [
            ("one label per row", "several labels per row")[bool(several)] for several in (multi_label, not multi_label)
        ]
        raise ValueError(f"multi_label: got {multi_label} ({kinds[0]}), expected what {source} has: {kinds[1]}")
    if classes is None:
        refuse_unlearnable(dataset)
    elif tuple(classes) != dataset.classes:
        raise ValueError(
            f"classes: got {len(classes)} ({listed(classes)}), expected the {len(dataset.classes)} of {source} "
            f"({listed(dataset.classes)})"
        )
    if metric is not None:
        single = ("accuracy", "auroc") if len(dataset.classes) == 2 else ("accuracy",)
        allowed = ("macro_f1",) if dataset.multi_label else single
        if metric not in allowed:
            kind = "several labels" if dataset.multi_label else f"one label out of {len(dataset.classes)}"
            expected = f"one of {', '.join(map(repr, allowed))} for rows of {kind}"
            raise ValueError(f"metric: got {metric!r}, expected {expected}")
        dataset.metric = metric


def splits_of(source: str | Path, *, extra_columns: bool = False) -> tuple[str, ...]:
    """The splits `open_dataset` can open, out of `"train"`, `"validation"`, `"test"`, in this order."""
    path, kind = Path(source), _kind(source)
    if kind == "openmoji":
        return SPLITS
    if kind == "arrow":
        from mora.data.arrow import arrow_splits

        return arrow_splits(path)
    if kind == "hugging_face":
        from mora.data.hugging_face import hugging_face_splits

        return hugging_face_splits(path)
    from mora.data.manifest import manifest_splits

    return manifest_splits(path, extra_columns)


def _kind(source: str | Path) -> str:
    """`"openmoji"`, `"manifest"`, `"hugging_face"` or `"arrow"`; ValueError that says what was looked for."""
    if str(source) == "openmoji":
        return "openmoji"
    path = Path(source)
    expected = "'openmoji', a .csv, .jsonl or .parquet file, or a folder of train.arrow, val.arrow, test.arrow"
    if path.is_file() and path.suffix.lower() in (".csv", ".jsonl", ".parquet"):
        return "manifest"
    if path.is_dir() and any((path / file).is_file() for file in ("dataset_dict.json", "state.json")):
        return "hugging_face"
    if path.is_dir() and any(path.glob("*.arrow")):
        return "arrow"
    if path.is_dir():
        raise ValueError(f"source: got the folder {path} with {_contents(path)}, expected {expected}")
    what = "a file of another kind" if path.exists() else "which does not exist"
    raise ValueError(f"source: got {path}, {what}, expected {expected}")


def _contents(folder: Path) -> str:
    return listed(sorted(entry.name for entry in folder.iterdir())) or "nothing in it"
