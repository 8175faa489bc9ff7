"""`dataset.json`: what a built folder holds, which of its splits are done, and from what they were made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mora.data.sources.official import DESCRIPTION
from mora.system.files import read_json, write_bytes
from mora.system.messages import listed

FORMAT = 1


@dataclass
class Description:
    """The content of a folder's `dataset.json`; `splits` has an entry for each split that is done."""

    folder: Path
    name: str
    classes: Sequence[str]
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, name: str, classes: Sequence[str]) -> Description:
        """Of a folder that is new, empty, or was built before from this data set; ValueError for any other."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / DESCRIPTION
        if not path.is_file():
            strangers = sorted(file.name for file in folder.glob("*.arrow"))
            if strangers:
                raise ValueError(f"out: got {folder} with {listed(strangers)} of unknown origin, expected a new folder")
            description = cls(folder, name, classes)
            description.write()  # first, so that a run that is killed can go on
            return description
        content = read_json(path)
        found = content.get("name"), content.get("format")
        if found != (name, FORMAT) or not (
            isinstance(content.get("splits"), dict)
            and all(isinstance(entry, dict) for entry in content["splits"].values())
        ):
            raise ValueError(f"out: got {folder} with {found[0]} in format {found[1]}, expected a new folder")
        return cls(folder, name, classes, content["splits"])

    def record(self, split: str, entry: dict[str, Any]) -> None:
        """Note that a split is done."""
        self.splits[split] = entry
        self.write()

    def write(self) -> None:
        """Write the file, by rename."""
        content = {"format": FORMAT, "name": self.name, "classes": list(self.classes), "splits": self.splits}
        write_bytes(self.folder / DESCRIPTION, json.dumps(content, indent=1, ensure_ascii=False).encode())
