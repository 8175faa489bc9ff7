"""`mora.embed`: the embeddings of a split and what of each sample was there, into one file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from mora.data.dataset import Dataset
from mora.data.sources.manifest import UNLABELLED
from mora.evaluation.cosines.export import Columns, writer_of
from mora.evaluation.cosines.models import open_model, open_rows
from mora.evaluation.cosines.rows import Embedded, embed_rows
from mora.evaluation.run import Source
from mora.runs.run import LoadedRun
from mora.system.checks import check_whole, one_of
from mora.system.files import write_bytes
from mora.system.machine import device_of, versions
from mora.system.workers import check_workers, lost_workers

NULL, SUBSTITUTE = ABSENT = ("null", "substitute")


def embed(
    model: str | os.PathLike[str] | LoadedRun | None,
    data: str | os.PathLike[str] | Dataset | None,
    out: str | os.PathLike[str],
    *,
    split: str = "test",
    backbone: str | None = None,
    pretrained: str | None = None,
    normalize: bool = True,
    absent: str = "null",
    on_broken: str = "raise",
    name: str | None = None,
    extra_columns: bool = False,
    device: str = "auto",
    batch: int = 64,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write the embeddings of every sample of a split, with what of it was there, and return the file.

    A row per sample: `id`, an embedding per modality (float32, a fixed-size list), a boolean `{modality}_present`, and
    `label` where the data has labels. The file appears as a whole. Labels are not needed, and say nothing to the model.

    Args:
        model: a run folder of `mora train`, an open_clip folder as `mora merge` writes it, or a loaded run; None with
            `backbone`.
        data: "openmoji", a folder, a manifest, or a data set that is open; None is what the run was trained on.
        out: a file that ends in .parquet, .npz or .safetensors.
        split: "train", "validation", "test", or "all" rows of a manifest.
        backbone: a CLIP that nothing trained, "tiny" or a name of open_clip.
        pretrained: open_clip's tag of that name, or a file of weights.
        normalize: to length 1; False leaves embeddings as the towers project them, which is what heads see.
        absent: what stands where a modality is missing: "null" (in .npz and .safetensors NaN), or "substitute", the
            embedding of a white image or an empty text. Presence says False either way.
        on_broken: "raise" or "skip" images that cannot be read.
        name, extra_columns: as in `mora.data.open_dataset`.
        device: "auto", "cpu" or "cuda".
        batch: samples at a time.
        workers: processes that read and preprocess.
        progress: told the number of samples done, batch by batch.

    Raises:
        ValueError: an argument, the model or the data is not as expected; the message names it.
        OSError: a folder or file is not there, or `out` cannot be written.
        ImportError: Parquet without pyarrow.
    """
    path = Path(out)
    write = writer_of(path)
    one_of("absent", absent, ABSENT)
    check_whole("batch", batch, 1)
    check_workers(workers)
    run = model if isinstance(model, LoadedRun) else open_model(model, backbone, pretrained, device_of(device))
    source = Source(None, split, on_broken, name, extra_columns)
    given = data if isinstance(data, Dataset) or data is None else os.fspath(data)
    dataset = given if isinstance(given, Dataset) else open_rows(source._replace(data=given), run)
    with lost_workers():
        found = embed_rows(run, dataset, batch, workers, progress)
    contents = write(columns_of(found.normalized() if normalize else found, dataset, run, normalize, absent))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, contents)
    return path


def columns_of(found: Embedded, dataset: Dataset, run: LoadedRun, normalize: bool, absent: str) -> Columns:
    """What the file holds."""
    about = {
        "model": str(run.folder),
        "method": run.method,
        "backbone": run.backbone.name,
        "data": dataset.name,
        "split": dataset.split,
        "fingerprint": dataset.fingerprint,
        "normalized": normalize,
        "absent": absent,
        "versions": versions(),
    }
    labelled = dataset.classes != (UNLABELLED,)
    labels, classes = (found.labels, dataset.classes) if labelled else (None, ())
    return Columns(dataset.ids(), found.rows, found.present, absent == NULL, labels, classes, about)
