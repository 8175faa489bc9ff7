"""Folders that Hugging Face `datasets` saved (`save_to_disk`): a Dataset or a DatasetDict of image, text and label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mora.data.dataset import SPLITS
from mora.data.images import LARGEST_IMAGE
from mora.data.published import split_name
from mora.data.sources.columns import check_type
from mora.data.sources.labelled import SEPARATOR, Labelled
from mora.data.sources.manifest import leaves_folder
from mora.data.sources.rows import ABSENT, Columns, Rows, file_size
from mora.data.sources.source import Options, Source
from mora.system.files import digest, read_bytes, read_json, regular_file
from mora.system.machine import need
from mora.system.messages import listed, shown

COLUMNS = ("image", "text", "label")


class HuggingFaceSplit(Rows):
    """One split of a saved data set; images stay in its memory-mapped Arrow files, or in the files these name.

    `image` is of the feature `Image`, or a path, or bytes; `text` a string; `label` a `ClassLabel`, an int, a string
    (several between `|`), or a list of these. The splits are a DatasetDict's keys or a column `split`; without either
    the rows are divided by content. Other columns are ignored.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        on_broken: str,
        *,
        classes: Sequence[str] | None,
        multi_label: bool | None,
        seed: int,
    ) -> None:
        self._folder, (self._data, splits) = folder, _load(folder)
        table = _labelled(folder, self._data, splits)
        parts = table.parts(seed)
        if classes is None and split != "all":
            table.refuse_unseen(parts)
        task = table.task(folder.name, classes, multi_label)
        self._chosen = table.choose(split, parts)
        sizes = _sizes(self._data, folder)
        columns = Columns(
            ids=[f"row {row + 1}" for row in self._chosen],
            texts=[table.texts[row] for row in self._chosen],
            labels=table.encode(self._chosen, task),
            images=list(range(len(self._chosen))),
            sizes=[sizes[row] for row in self._chosen],
        )
        super().__init__(task, split, columns, on_broken)

    def read_image(self, source: int) -> bytes:
        image = self._data[self._chosen[source]]["image"]
        data, path = (image["bytes"], image["path"]) if isinstance(image, dict) else (image, image)
        if isinstance(data, bytes):
            return data
        return read_bytes(self._folder / str(path), LARGEST_IMAGE)

    def image_file(self, source: int) -> Path | None:
        image = self._data[self._chosen[source]]["image"]
        path = image["path"] if isinstance(image, dict) else image
        return self._folder / path if isinstance(path, str) else None

    def files(self) -> list[Path]:
        """Everything in the folder: Arrow files, and images that they name."""
        return sorted(path for path in self._folder.rglob("*") if path.is_file())

    def image_name(self, source: int) -> str:
        return f"{self._folder} row {self._chosen[source] + 1}"


def is_saved(source: str) -> bool:
    """Whether `source` is a folder of `save_to_disk`."""
    return any((Path(source) / file).is_file() for file in ("dataset_dict.json", "state.json"))


def saved_splits(source: str, options: Options) -> tuple[str, ...]:
    """The splits a saved data set has rows of."""
    folder = Path(source)
    data, splits = _load(folder)
    parts = set(_labelled(folder, data, splits).parts(seed=0))
    return tuple(split for split in SPLITS if split in parts)


def _load(folder: Path) -> tuple[Any, list[str] | None]:
    """All rows, images not decoded, and the key of the DatasetDict each comes from."""
    datasets = need("datasets", "reading saved data sets")
    _refuse_irregular(folder)
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # datasets raises what json, pyarrow and fsspec raise
        raise ValueError(f"{folder}: got a data set that cannot be loaded: {error}") from error
    parts = loaded if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
    splits = [key for key, part in parts.items() for _ in range(len(part))]
    unknown = [key for key in parts if key and split_name(key) is None]
    if unknown:
        raise ValueError(
            f"{folder}: got the splits {listed(map(repr, unknown))}, expected train, validation (val, dev) or test"
        )
    prepared = []
    for part in parts.values():
        lacking = [column for column in COLUMNS if column not in part.column_names]
        if lacking:
            raise ValueError(f"{folder}: got the columns {listed(part.column_names)}, expected {listed(lacking)} too")
        part = part.with_format(None)  # a format chooses columns, and other types
        is_image = isinstance(part.features["image"], datasets.Image)
        prepared.append(part.cast_column("image", datasets.Image(decode=False)) if is_image else part)
    try:
        return datasets.concatenate_datasets(prepared), None if "" in parts else splits
    except ValueError as error:
        raise ValueError(f"{folder}: got splits with different columns ({error}), expected the same in each") from error


def _refuse_irregular(folder: Path) -> None:
    """ValueError unless what `datasets` opens, itself, is regular files of the folder, and its JSON small and whole."""
    states = []
    for path in folder.rglob("*.json"):
        if path.name in ("state.json", "dataset_info.json", "dataset_dict.json"):
            content = read_json(path)
            states += [(path, content)] if path.name == "state.json" else []
    for path, content in states:
        files = content.get("_data_files")
        names = [file.get("filename") if isinstance(file, dict) else None for file in files or ()]
        if not isinstance(files, list) or not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise ValueError(f"{path}: got the files {listed(map(repr, names))}, expected names of files beside it")
        for name in names:
            regular_file(path.parent / str(name))


def _refuse_outside(folder: Path, data: Any) -> None:
    """ValueError for an image that only a path names, and one that leads out of the folder."""
    encoded, paths = _column(data)
    for row, path in enumerate([] if paths is None else paths.to_pylist()):
        if path and leaves_folder(path) and (encoded is None or not encoded[row].is_valid):
            raise ValueError(
                f"{folder}: got the image {path!r} in row {row + 1}, outside the folder; expected a path below it, or "
                "an absolute one"
            )


def _labelled(folder: Path, data: Any, splits: list[str] | None) -> Labelled:
    import pyarrow as pa

    try:
        data.data.validate(full=True)
    except pa.ArrowException as error:
        raise ValueError(f"{folder}: got damaged columns ({error}), expected whole Arrow files") from error
    kind = data.data["text"].type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
        raise ValueError(f"{folder}: got text of type {kind}, expected string")
    texts = [text if text is not None and text.strip() else None for text in data.data["text"].to_pylist()]
    try:
        check_type("label", data.data["label"].type)
    except TypeError as error:
        raise ValueError(f"{folder}: {error}") from error
    feature = data.features["label"]
    inner = getattr(feature, "feature", feature)
    names = getattr(inner, "names", None)
    values = data.data["label"].to_pylist()
    if names is not None:
        _refuse_beyond(folder, values, len(names))
    labels = [_names(value, names) for value in values]
    if splits is None and "split" in data.column_names:
        splits = [str(word or "") for word in data.data["split"].to_pylist()]
    images = _keys(data, contents=splits is None)
    _refuse_outside(folder, data)
    return Labelled(
        where=str(folder),
        images=images,
        texts=texts,
        labels=labels,
        splits=splits,
        classes=tuple(names) if names else None,
        several=inner is not feature or any(len(several) > 1 for several in labels),
    )


def _names(value: Any, names: list[str] | None) -> tuple[str, ...]:
    """Label names of one row; none for null and for -1, which `datasets` writes where a ClassLabel is unknown."""
    values: list[Any] = value if isinstance(value, list) else [value]
    if isinstance(value, str):
        values = list(value.split(SEPARATOR))
    if names is not None:
        return tuple(names[index] for index in values if index is not None and index >= 0)
    return tuple(dict.fromkeys(str(label).strip() for label in values if label is not None and str(label).strip()))


def _refuse_beyond(folder: Path, values: list[Any], number: int) -> None:
    """ValueError for a label that is the number of no class."""
    for row, value in enumerate(values, 1):
        for label in value if isinstance(value, list) else [value]:
            if label is not None and not (isinstance(label, int) and label < number):
                raise ValueError(f"{folder}: got the label {shown(label)} in row {row}, expected 0 to {number - 1}")


def _column(data: Any) -> tuple[Any, Any]:
    """The image column as (bytes or None, paths or None), each an Arrow column."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = data.data["image"]
    kind, types = column.type, pa.types
    if types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}:
        return pc.struct_field(column, "bytes"), pc.struct_field(column, "path")
    if types.is_string(kind) or types.is_large_string(kind):
        return None, column
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_null(kind):
        return column, None
    raise ValueError(f"image: got a column of type {kind}, expected images, bytes or paths")


def _keys(data: Any, contents: bool) -> list[str | None]:
    """For each row its image's path, or, with `contents`, a digest of its bytes; None where it has no image."""
    encoded, paths = _column(data)
    keys: list[str | None] = [None] * len(data) if paths is None else [path or None for path in paths.to_pylist()]
    if encoded is not None:
        for row, value in enumerate(encoded):
            if value.is_valid:
                keys[row] = digest(value.as_py()) if contents else "in the data set"
    return keys


def _sizes(data: Any, folder: Path) -> list[int]:
    import pyarrow.compute as pc

    encoded, paths = _column(data)
    lengths = [None] * len(data) if encoded is None else pc.binary_length(encoded).to_pylist()
    places = [None] * len(data) if paths is None else paths.to_pylist()
    sizes = []
    for length, place in zip(lengths, places, strict=True):
        if length is not None:
            sizes.append(length)
        elif not place:
            sizes.append(ABSENT)
        else:
            sizes.append(file_size(folder / place, LARGEST_IMAGE))
    return sizes


def open_saved(source: str, split: str, options: Options) -> HuggingFaceSplit:
    """One split of a saved data set."""
    return HuggingFaceSplit(
        Path(source),
        split,
        options.on_broken,
        classes=options.classes,
        multi_label=options.multi_label,
        seed=options.seed,
    )


SOURCE = Source("a folder saved by Hugging Face datasets", is_saved, saved_splits, open_saved)
