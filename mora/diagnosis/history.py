"""How a run went, read from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mora.diagnosis.figures import History
from mora.runs.run import METRICS
from mora.system.checks import is_number, is_whole
from mora.system.files import parse_json, read_text


def history_of(folder: Path, config: Mapping[str, Any], best_epoch: int) -> History | None:
    """The epochs of a run; None where its metrics.jsonl is absent or holds none.

    Args:
        folder: of the run.
        config: the content of its config.json.
        best_epoch: the epoch that was kept.

    Raises ValueError, with the line, for a file that is not the log of a run.
    """
    path, metric, recipe = folder / METRICS, config["data"]["metric"], config.get("train", {})
    if not path.is_file():
        return None
    validation, losses = [], []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        event = parse_json(line, f"{path}, line {number}") if line.strip() else None
        if not isinstance(event, dict) or event.get("event") != "epoch":
            continue
        figures, loss = event.get("validation"), event.get("loss")
        value = figures.get(metric) if isinstance(figures, dict) else None
        if not (is_number(value) and is_number(loss)):
            raise ValueError(f"{path}, line {number}: got no loss and no {metric} of an epoch, expected both")
        validation.append(float(value))  # type: ignore[arg-type] # a number
        losses.append(float(loss))  # type: ignore[arg-type]
    if not validation:
        return None
    epochs, lr = recipe.get("epochs"), recipe.get("lr")
    return History(
        metric=metric,
        best_epoch=best_epoch,
        epochs=epochs if is_whole(epochs) else len(validation),
        validation=tuple(validation),
        losses=tuple(losses),
        lr=float(lr) if is_number(lr) else float("nan"),
    )
