"""The diagnosis of a run: what is known from its folder, for every method; rows are optional."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from mora.adapters.prompts import prompts_of
from mora.classifier import MissingModalityClassifier
from mora.config import MoraConfig
from mora.diagnosis.behaviour import Batch, Encode
from mora.diagnosis.diagnose import behaviour, encoder, patched_diagnosis
from mora.diagnosis.history import history_of
from mora.diagnosis.peft import peft_projections
from mora.diagnosis.report import Diagnosis
from mora.runs.methods import MORA_VARIANTS
from mora.runs.run import LoadedRun, read_start
from mora.system.checks import is_whole
from mora.towers.tower import fitting

WORDS_AT_END = 4  # sentences that a training ends with


def diagnose_run(
    run: LoadedRun, pretrained: nn.Module | None = None, batch: Batch | None = None, unseen: str | None = None
) -> Diagnosis:
    """The diagnosis of a loaded run.

    Args:
        run: the best epoch's classifier, and its folder.
        pretrained: the untouched CLIP, which methods other than MoRA need to look at a batch.
        batch: checked rows; None looks at none.
        unseen: why, for the diagnosis to say.
    """
    epoch: Any = run.result.get("epoch")
    found = of_method(run.folder, run.method, run.mora_config, run.model, pretrained, batch, ranks=True)
    history = history_of(run.folder, run.config, epoch) if is_whole(epoch) else None
    return replace(found, history=history, unseen=unseen)


def of_method(
    folder: Path,
    method: str,
    config: MoraConfig,
    model: MissingModalityClassifier,
    pretrained: nn.Module | None = None,
    batch: Batch | None = None,
    ranks: bool = False,
) -> Diagnosis:
    """The diagnosis of a classifier that one of the methods adapted, by what its folder keeps."""
    batch = Batch.checked(model.towers, None) if batch is None else batch
    if method in MORA_VARIANTS:
        return patched_diagnosis(model.clip, batch, model, read_start(folder, model.clip), ranks)
    before = encoder(model.clip if pretrained is None else pretrained, model.towers)
    seen = behaviour(model.clip, model.towers, adapted(model), before, batch, model)
    projections = peft_projections(model.clip, config, ranks) if method in ("lora", "dora") else ()
    return Diagnosis(method, False, projections, (), seen)


def adapted(model: MissingModalityClassifier) -> Encode:
    """Rows of a modality -> embeddings by the model as it is; with prompts, those of complete rows."""
    if prompts_of(model.clip) is None:
        return encoder(model.clip, model.towers)
    like = next(model.clip.parameters())
    return lambda modality, rows: model.embed_rows(modality, fitting(rows, like))


def last_words(
    folder: Path, description: Mapping[str, Any], best_epoch: int, model: MissingModalityClassifier
) -> tuple[str, ...]:
    """What a training says at its end: the first sentences of a diagnosis without rows and ranks.

    Args:
        folder: of the run.
        description: the content of its config.json.
        best_epoch: the epoch that was kept.
        model: with the tensors of that epoch.
    """
    config = MoraConfig.from_dict(description["mora"])
    found = of_method(folder, str(description["method"]), config, model)
    return replace(found, history=history_of(folder, description, best_epoch)).words()[:WORDS_AT_END]
