"""`open_dataset`: one split of a data set of any kind. A new kind is a file in `sources/` and a row of `SOURCES`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mora.data.dataset import ON_BROKEN, SPLITS, Dataset
from mora.data.missing import check_seed
from mora.data.sources import badges, hugging_face, manifest, official, openmoji
from mora.data.sources.source import Options, Source
from mora.data.trainable import refuse_unlearnable
from mora.metrics import RECALL
from mora.system.messages import listed

# The first that matches: a folder that `datasets` saved holds Arrow files, too.
SOURCES = (openmoji.SOURCE, badges.SOURCE, manifest.SOURCE, hugging_face.SOURCE, official.SOURCE)


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
        source: `"openmoji"` or `"openmoji-badges"`; a folder in the official Arrow layout; a folder saved by Hugging
            Face `datasets`; or a manifest, a file that ends in `.csv`, `.jsonl` or `.parquet`.
        split: `"train"`, `"validation"` or `"test"`; `"all"` takes every row of a manifest or saved data set.
        name: of a folder in the official layout that does not tell its own: `"mmimdb"`, `"food101"` and
            `"hateful_memes"` choose the published classes and metric. Anything else is called what its path is.
        metric: instead of the usual one: `"auroc"` for two classes, `"accuracy"` for one label per row, `"macro_f1"`
            for several; `"recall_at_1"`, of pairs: then a manifest needs no labels, and one class is enough.
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
    kind = kind_of(source)
    if name is not None and not kind.takes_name:
        raise ValueError(
            f"name (--data-name): got {name!r} for {source}, expected it for a folder in the official layout only: it "
            "chooses published classes, which other data brings itself"
        )
    options = Options(name, on_broken, size, classes, multi_label, seed, extra_columns, metric != RECALL)
    dataset = kind.open(str(source), split, options)
    _fit(dataset, source, classes, metric, multi_label)
    return dataset


def splits_of(source: str | Path, *, extra_columns: bool = False) -> tuple[str, ...]:
    """The splits `open_dataset` can open, out of `"train"`, `"validation"`, `"test"`, in this order."""
    return kind_of(source).splits(str(source), Options(extra_columns=extra_columns))


def kind_of(source: str | Path) -> Source:
    """The row of `SOURCES` that a source is of; ValueError that says what was looked for."""
    for kind in SOURCES:
        if kind.matches(str(source)):
            return kind
    path = Path(source)
    *forms, last = (kind.form for kind in SOURCES)
    expected = f"{', '.join(forms)}, or {last}"
    if path.is_dir():
        contents = listed(sorted(entry.name for entry in path.iterdir())) or "nothing in it"
        raise ValueError(f"source: got the folder {path} with {contents}, expected {expected}")
    what = "a file of another kind" if path.exists() else "which does not exist"
    raise ValueError(f"source: got {path}, {what}, expected {expected}")


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
    if metric == RECALL:
        dataset.metric = RECALL
    if classes is None:
        refuse_unlearnable(dataset)
    elif tuple(classes) != dataset.classes:
        raise ValueError(
            f"classes: got {len(classes)} ({listed(classes)}), expected the {len(dataset.classes)} of {source} "
            f"({listed(dataset.classes)})"
        )
    if metric not in (None, RECALL):
        single = ("accuracy", "auroc") if len(dataset.classes) == 2 else ("accuracy",)
        allowed = ("macro_f1",) if dataset.multi_label else single
        if metric not in allowed:
            kind = "several labels" if dataset.multi_label else f"one label out of {len(dataset.classes)}"
            expected = f"one of {', '.join(map(repr, allowed))} for rows of {kind}"
            raise ValueError(f"metric: got {metric!r}, expected {expected}")
        dataset.metric = metric
