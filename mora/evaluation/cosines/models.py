"""Any model as a run: what `mora train` left, a merged folder, a plain backbone; and a run as it was before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mora.adapters.patching import disabled
from mora.adapters.prompts import prompts_of
from mora.adapters.record import is_patched
from mora.classifier import MissingModalityClassifier
from mora.data.dataset import Dataset
from mora.heads import NONE
from mora.metrics import RECALL
from mora.runs.backbone import Backbone, load_backbone, with_policy
from mora.runs.described import DESCRIPTION, LOCAL
from mora.runs.run import CONFIG, LoadedRun, load_run
from mora.system.files import read_json

if TYPE_CHECKING:
    from mora.evaluation.run import Source

PRETRAINED, ADAPTED, AS_IS = "pretrained", "adapted", "as it is"
MERGED = "classifier.json"  # of `mora merge`: says how texts were tokenized


def open_model(
    model: str | os.PathLike[str] | None = None,
    backbone: str | None = None,
    pretrained: str | None = None,
    device: str | torch.device = "cpu",
) -> LoadedRun:
    """A model that embeds.

    Args:
        model: a run folder of `mora train`, or an open_clip folder, as `mora merge` writes it.
        backbone: instead of it, "tiny" or a name of open_clip.
        pretrained: open_clip's tag of that name, or a file of weights.
        device: where it is put.

    Raises ValueError for both or none of the two, and for prompts, which give an image alone no embedding.
    """
    if (model is None) == (backbone is None):
        got = "both" if model is not None else "none"
        raise ValueError(f"model, backbone: got {got}, expected a folder or the name of a backbone")
    if backbone is not None:
        return plain(load_backbone(backbone, pretrained), device)
    if pretrained is not None:
        raise ValueError(f"pretrained: got {pretrained!r} with a folder, expected it with a backbone")
    folder = Path(str(model))
    if (folder / DESCRIPTION).is_file() and not (folder / CONFIG).is_file():
        return plain(load_backbone(f"{LOCAL}{folder}"), device, policy_of(folder))
    run = load_run(folder, device)
    if prompts_of(run.model.clip) is not None:
        raise ValueError(
            f"model: {folder} was trained by {run.method!r}, whose prompts depend on what else a row has, expected "
            "another method: an image alone has no embedding"
        )
    return run


def policy_of(folder: Path) -> str:
    """How texts were tokenized for a merged model; "plain" where its folder does not say."""
    return str(read_json(folder / MERGED).get("token_policy", "plain")) if (folder / MERGED).is_file() else "plain"


def plain(backbone: Backbone, device: str | torch.device = "cpu", policy: str = "plain") -> LoadedRun:
    """A backbone as a run that nothing trained: no data, no classes, no head."""
    tokenize = with_policy(backbone.tokenizer, policy, backbone.empty_text)
    preparing = backbone.preparing(tokenize)
    model = MissingModalityClassifier(backbone.model, 1, missing=preparing.missing, head=NONE)
    return LoadedRun(
        model=model.to(device).eval(),
        preprocess=backbone.preprocess,
        tokenize=tokenize,
        config={},
        classes=(),
        metric=RECALL,
        multi_label=False,
        method=PRETRAINED,
        data={},
        result={},
        backbone=backbone,
        folder=Path(backbone.name.removeprefix(LOCAL)),
        preparing=preparing,
    )


@contextmanager
def before(run: LoadedRun) -> Iterator[LoadedRun]:
    """Within the block the model of a run as it was before its training; `run` itself is as ever afterwards.

    Adapters are switched off. What a method changed otherwise is loaded anew, by the name of the backbone.
    """
    if is_patched(run.model.clip):
        with disabled(run.model.clip):
            yield run
        return
    backbone = load_backbone(run.backbone.name, run.backbone.pretrained)
    yield plain(backbone, run.model.device, str(run.config.get("token_policy", "plain")))


def open_rows(source: Source, run: LoadedRun) -> Dataset:
    """The split of a source, whatever its labels; rows without splits divided as for the run's training.

    Raises ValueError where neither `source` nor the run names data.
    """
    if source.data is None:
        if not run.data:
            raise ValueError(
                f"data: got none with {run.folder}, which was trained on none that is known, expected some"
            )
        source = source._replace(data=str(run.data["source"]))
    options = {}
    if run.data:
        given = run.data_options
        options = given if source.is_of(run) else {"seed": given.get("seed", 0)}
    return source.rows(run, **{**options, "metric": RECALL})
