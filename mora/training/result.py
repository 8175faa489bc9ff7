"""What a finished run found, and its file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mora.runs.run import RESULT
from mora.system.files import read_json, write_json


@dataclass(frozen=True)
class Result:
    """What a finished run found; metrics are shares of 1.

    Attributes:
        folder: the run folder; `mora.runs.run.load_run` opens it.
        best_epoch: the epoch that was kept, from 1; 0 where nothing is trained.
        validation: metrics of that epoch.
        test: metrics of that epoch on the test split; None where there is none.
        epochs: passes over the training split.
        parameters: trained, head included.
        skipped: steps that the gradient scaler left out.
        seconds: of training and evaluation, interruptions not counted.
        patterns: metrics of the rows of each presence pattern and their number, of "validation" and "test".
    """

    folder: Path
    best_epoch: int
    validation: dict[str, float]
    test: dict[str, float] | None
    epochs: int
    parameters: int
    skipped: int
    seconds: float
    patterns: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    def write(self) -> None:
        """Write result.json into the run folder."""
        write_json(self.folder / RESULT, {**vars(self), "folder": str(self.folder)})

    @classmethod
    def read(cls, folder: Path) -> Result | None:
        """The result of the run in `folder`; None while it is not over."""
        path = folder / RESULT
        if not path.is_file():
            return None
        found = {"patterns": {}, **read_json(path), "folder": folder}  # earlier versions wrote none
        if set(found) != set(cls.__dataclass_fields__):
            raise ValueError(f"{path}: got {', '.join(sorted(found))}, expected {', '.join(cls.__dataclass_fields__)}")
        return cls(**found)
