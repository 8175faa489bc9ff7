"""`mora inspect`: the diagnosis of a run on rows of its data, and its files."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import torch
from torch import nn

from mora.data.dataset import Dataset
from mora.data.views import thinned
from mora.diagnosis import Diagnosis
from mora.diagnosis.behaviour import Batch
from mora.diagnosis.run import diagnose_run
from mora.evaluation.run import Source
from mora.runs.backbone import Backbone, load_backbone
from mora.runs.methods import MORA_VARIANTS
from mora.runs.run import LoadedRun, load_run, read_config
from mora.system.checks import check_whole
from mora.system.files import write_bytes, write_json
from mora.system.messages import one_line

FILES = JSON, PICTURE, TEXT = ("diagnosis.json", "diagnosis.png", "diagnosis.txt")
ROWS = 256
PROMPT = "a photo of a {}"  # CLIP's plain one
NO_DATA = "none"


def inspect_run(
    folder: str | os.PathLike[str],
    data: str | None = None,
    split: str = "validation",
    rows: int = ROWS,
    prompt: str = PROMPT,
    device: str | torch.device = "cpu",
    backbone: Backbone | None = None,
    dataset: Dataset | None = None,
) -> Diagnosis:
    """The diagnosis of a trained run.

    Args:
        folder: what `mora train --out` wrote.
        data: what rows are taken of, as `mora train` takes it; None is the run's own data, whose absence is no error
            but said in the diagnosis; "none" looks at no rows.
        split: of the data.
        rows: how many are looked at, spread over the split, complete as far as the data is.
        prompt: what a class is called in zero-shot classification; "{}" is its name.
        device: where the model is put.
        backbone: the untouched CLIP, for runs on one of your own.
        dataset: rows of your own, in place of `data`.

    Raises:
        FileNotFoundError: no run there, or none with a finished epoch.
        ValueError: a damaged run, other weights; `data` that cannot be read or has other classes.
    """
    check_whole("rows", rows, 1)
    if "{}" not in prompt:
        raise ValueError(f"prompt: got {prompt!r}, expected a sentence with {{}} where the name of a class stands")
    pretrained: nn.Module | None = None
    config = read_config(Path(folder))
    if config["method"] not in MORA_VARIANTS:  # MoRA's adapters can be switched off
        given = config["backbone"]
        backbone = load_backbone(given["name"], given["pretrained"]) if backbone is None else backbone
        pretrained = copy.deepcopy(backbone.model).to(device)
    run = load_run(folder, device, backbone)
    unseen = None
    if dataset is None and data != NO_DATA:
        try:
            source = str(run.data["source"]) if data is None else data
            dataset = Source(source, split, on_broken="skip").open(run)
        except (ValueError, OSError, ImportError) as error:
            if data is not None:
                raise
            unseen = f"the run's data cannot be opened, {one_line(str(error))}"
    batch = None if dataset is None else batch_of(run, thinned(dataset, rows), prompt)
    return diagnose_run(run, pretrained, batch, unseen)


def batch_of(run: LoadedRun, dataset: Dataset, prompt: str) -> Batch:
    """Rows as the towers take them; a row that lacks a modality is not looked at there."""
    samples = [dataset[index] for index in range(len(dataset))]
    present, inputs = {}, {}
    for name in run.model.towers:
        given = [one.inputs.get(name) for one in samples]
        present[name] = torch.tensor([value is not None for value in given])
        inputs[name] = torch.stack([run.preparing.one(name, value) for value in given])
    labels = prompts = None
    if len(run.classes) > 1:  # pairs have no names to be told by
        labels = torch.stack([torch.as_tensor(one.label) for one in samples])
        prompts = run.tokenize([prompt.format(name) for name in run.classes])
    return Batch.checked(run.model.towers, inputs, present, labels, prompts)


def write(diagnosis: Diagnosis, out: Path) -> list[Path]:
    """Write figures, picture and text into a folder, made if it is not there; ImportError without matplotlib."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: got {out}, which is a file, expected a folder")
    out.mkdir(parents=True, exist_ok=True)
    diagnosis.plot(out / PICTURE)
    write_bytes(out / TEXT, f"{diagnosis}\n".encode())
    write_json(out / JSON, diagnosis.as_dict())
    return [out / name for name in FILES]
