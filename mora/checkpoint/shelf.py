"""A folder of adapters, each in a folder of its name as `mora.save_adapters` writes them: what is there, more, less."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mora.adapters.patching import check_name
from mora.checkpoint.adapter import CONFIG, WEIGHTS, read_config
from mora.checkpoint.base import differing
from mora.checkpoint.tensors import check_values, config_from
from mora.config import MoraConfig
from mora.system.files import read_bytes, read_tensors, write_bytes
from mora.system.folders import remove, remove_leftovers, whole_folder
from mora.system.lock import FolderLock
from mora.system.messages import listed

BEST = "best"  # where a run folder of `mora train` has its adapter


@dataclass(frozen=True)
class Saved:
    """An adapter in a folder, read and found whole.

    Attributes:
        name: of its folder.
        folder: with its two files.
        config: how it adapts.
        layers: indices of the adapted blocks, by modality.
        parameters: how many numbers its tensors hold.
        sha256: of its tensors' file, which is what its configuration says.
        base: a few numbers of each weight it was trained on; empty where an earlier version did not say.
    """

    name: str
    folder: Path
    config: MoraConfig
    layers: dict[str, list[int]]
    parameters: int
    sha256: str
    base: dict[str, Any]

    def differs(self, other: Saved) -> list[str]:
        """The projections that both adapt and whose base weights differ by more than half precision does."""
        both = self.base.keys() & other.base.keys()
        return [*differing({name: self.base[name] for name in sorted(both)}, other.base)]


def read_saved(folder: Path, name: str | None = None) -> Saved:
    """Read one adapter; FileNotFoundError where there is none, ValueError for one that is damaged."""
    fields = read_config(folder)
    tensors, found = read_tensors(folder / WEIGHTS)
    if found != fields["weights_sha256"]:
        raise ValueError(f"{folder / WEIGHTS}: its SHA-256 is not the one in {CONFIG}, expected files of one save")
    check_values(str(folder / WEIGHTS), tensors)
    config = config_from(str(folder / CONFIG), fields["config"])
    base = fields["base"] if isinstance(fields.get("base"), dict) else {}
    total = sum(tensor.numel() for tensor in tensors.values())
    return Saved(name or folder.name, folder, config, fields["layers"], total, found, base)


def adapters_in(folder: str | os.PathLike[str]) -> dict[str, Saved]:
    """Every adapter of a folder by name: those in folders of their names, or the one that it is, or a run's best.

    Raises:
        FileNotFoundError: no such folder, or no adapter in it.
        ValueError: one of them is damaged; the message names it.
    """
    folder = Path(os.path.abspath(folder))
    for one in (folder, folder / BEST):
        if (one / CONFIG).is_file():
            return {folder.name: read_saved(one, folder.name)}
    found = {path.name: read_saved(path) for path in names_in(folder)}
    if not found:
        there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else "no such folder"
        raise FileNotFoundError(
            f"folder: got {folder} ({there}), expected adapters in folders of their names (mora.save_adapters), one "
            "adapter (mora.save_adapter), or a run of mora train whose method is MoRA"
        )
    return found


def names_in(folder: Path) -> Iterator[Path]:
    """The folders within a folder that hold an adapter."""
    if folder.is_dir():
        yield from (path for path in sorted(folder.iterdir()) if (path / CONFIG).is_file() and path.name[0] != ".")


def chosen(found: dict[str, Saved], name: str, argument: str = "name") -> Saved:
    """One adapter of a folder; ValueError that lists those there are."""
    if name not in found:
        raise ValueError(f"{argument}: got {name!r}, expected one of the folder's adapters: {listed(found)}")
    return found[name]


def add_saved(folder: str | os.PathLike[str], source: str | os.PathLike[str], name: str | None = None) -> Saved:
    """Copy an adapter into a folder of adapters and return it; the folder is made where it is not there.

    Args:
        folder: of adapters, each in a folder of its name.
        source: a folder with one adapter, or a run of `mora train`; or several adapters, of which `name` says one.
        name: of the adapter in `folder`; None: that of its own folder.

    Raises:
        FileNotFoundError: no adapter in `source`.
        ValueError: a name that is taken or none, a damaged adapter, or one that was trained on other base weights than
            those that are there; nothing was changed then.
    """
    folder, found = Path(os.path.abspath(folder)), adapters_in(source)
    one = next(iter(found.values())) if len(found) == 1 else chosen(found, "" if name is None else name)
    name = one.name if name is None else name
    check_name(name)
    if (folder / CONFIG).is_file():
        raise ValueError(f"folder: got {folder}, which is one adapter itself, expected a folder of adapters")
    folder.mkdir(parents=True, exist_ok=True)
    with FolderLock.beside(folder / name):
        remove_leftovers(folder, name)
        if os.path.lexists(folder / name):
            raise ValueError(
                f"name: got {name!r}, which is in {folder} already, expected another: --name, or delete it"
            )
        for other in map(read_saved, names_in(folder)):
            if far := other.differs(one):
                raise ValueError(
                    f"source: {one.folder} was trained on other base weights than {other.name!r} of {folder} "
                    f"({listed(far)}), expected adapters of one pretrained model"
                )
        with whole_folder(folder / name) as work:
            for file in (WEIGHTS, CONFIG):
                write_bytes(work / file, read_bytes(one.folder / file))
            read_saved(work)  # what was copied is whole, though somebody saves into the source meanwhile
    return read_saved(folder / name)


def delete_saved(folder: str | os.PathLike[str], name: str) -> None:
    """Remove an adapter from a folder of adapters.

    Raises FileNotFoundError where there is none, ValueError for an unknown name, or a folder that holds other files.
    """
    folder = Path(os.path.abspath(folder))
    there = {path.name: path for path in names_in(folder)}
    if name not in there:
        raise ValueError(f"name: got {name!r}, expected one of the adapters in {folder}: {listed(there) or 'none'}")
    with FolderLock.beside(there[name]):
        others = sorted({path.name for path in there[name].iterdir()} - {CONFIG, WEIGHTS})
        if others:
            raise ValueError(
                f"name: {there[name]} holds {listed(others)} beside its adapter, expected an adapter alone"
            )
        remove(there[name])
