"""Every input of a data set through its tower once; any missing table is then a choice of rows and a head.

In eval mode a row's embedding depends on that row alone, and a missing modality is one constant substitute. So
[image; text] under a table picks embeddings that are there already: the same as a forward pass, up to rounding. Where
prompts say what else a row has, it has an embedding for each pattern of presence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from mora.adapters.prompts import prompts_of
from mora.classifier import MissingModalityClassifier
from mora.data.dataset import Dataset
from mora.data.presence import Presence
from mora.data.views import Corrupted
from mora.heads import classify, first_tensor
from mora.methods.keeping import keeping
from mora.patterns import pattern_index
from mora.runs.preparing import Preparing
from mora.savings import Hidden, PrefixCache
from mora.system.workers import leave_signals

if TYPE_CHECKING:
    from mora.runs.run import LoadedRun

HEAD_ROWS = 8192
Rows = dict[str, tuple[Tensor, Tensor | Hidden]]  # by modality: numbers of samples [B], what a tower takes of them


class Prepared(NamedTuple):
    """One sample ready for the towers: its inputs, those embedded with an earlier sample left out; what it has."""

    position: int
    inputs: dict[str, Tensor]
    has: tuple[str, ...]


class Reader(torch.utils.data.Dataset[Prepared | ValueError]):
    """Reads and prepares samples, in worker processes where asked.

    A sample that cannot be read is its error, returned: raised in a worker it would come wrapped in a traceback.

    Args:
        dataset: where the samples come from.
        preparing: of the model.
        wanted: by modality, bool [N]: the samples whose input is to be embedded.
    """

    def __init__(self, dataset: Dataset, preparing: Preparing, wanted: Mapping[str, Tensor]) -> None:
        self.dataset, self.preparing, self.wanted = dataset, preparing, dict(wanted)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Prepared | ValueError:
        try:
            given = {name: value for name, value in self.dataset[index].inputs.items() if value is not None}
            wanted = [name for name in given if name in self.wanted and bool(self.wanted[name][index])]
            return Prepared(index, {name: self.preparing.one(name, given[name]) for name in wanted}, tuple(given))
        except ValueError as error:
            return error


@dataclass(frozen=True)
class Embeddings:
    """What the towers say about one split, on the CPU; `len` is its number of samples.

    Attributes:
        rows: by modality [R + 1, e], one per input, the substitute's last.
        place: by modality int64 [N], the row that each sample shows.
        labels: int64 [N] or float32 [N, C].
        groups: int64 [N] where several samples show one image, else None.
        head: the classifier's.
        patterned: `rows` of samples of each presence pattern, where that makes a difference; else none.
    """

    rows: dict[str, Tensor]
    place: dict[str, Tensor]
    labels: Tensor
    groups: Tensor | None
    head: nn.Module
    patterned: tuple[dict[str, Tensor], ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.place.values())))

    @property
    def image(self) -> Tensor:
        """Of the images."""
        return self.rows["image"]

    @property
    def text(self) -> Tensor:
        """Of the texts."""
        return self.rows["text"]

    @torch.no_grad()
    def logits(self, present: Presence | Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(sample indices [B], logits [B, C]) of all samples in order, a few thousand at a time.

        `present` says what each sample has (`mora.data.presence_of`); of image and text alone it may be [N], what the
        sample lacks: 0 nothing, 1 its text, 2 its image (`per_sample`).
        """
        given = Presence.of_codes(present) if isinstance(present, Tensor) else present
        there, device = given.of_towers(self.rows), first_tensor(self.head).device
        for index in torch.arange(len(self)).split(HEAD_ROWS):
            masks = {name: there[name][index] for name in self.rows}
            last = {name: len(rows) - 1 for name, rows in self.rows.items()}
            chosen = {name: self.place[name][index].masked_fill(~mask, last[name]) for name, mask in masks.items()}
            parts = {name: rows[chosen[name]] for name, rows in self.rows.items()}
            if self.patterned:
                codes = pattern_index(torch.stack([*masks.values()], dim=1))
                for code in codes.unique().tolist():
                    for name, part in parts.items():
                        same = codes == code
                        part[same] = self.patterned[code][name][chosen[name][same]]
            features = torch.cat([*parts.values()], dim=-1)
            yield (
                index,
                classify(self.head, features.to(device), {name: mask.to(device) for name, mask in masks.items()}),
            )


@torch.no_grad()
def embed(
    run: LoadedRun,
    dataset: Dataset,
    batch: int = 64,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
    cache: PrefixCache | None = None,
) -> Embeddings:
    """One pass of every input that is there through the towers of `run.model`, in eval mode.

    Args:
        run: the trained classifier.
        dataset: one split.
        batch: samples at a time.
        workers: processes that read and preprocess; 0 does it here.
        progress: told the number of samples done, batch by batch.
        cache: rows of the split past the frozen blocks of `run.model`, read instead of the samples.

    Raises ValueError when an input cannot be read, a sample is not as `present()` says, or the data has a modality that
    the model has no tower for.
    """
    model = run.model.eval()
    run.preparing.check_data(f"{dataset.name}, {dataset.split}", dataset.modalities)
    natural, each = dataset.present().of_towers(model.towers), torch.arange(len(dataset))
    place = {name: rows_of_images(dataset) if name == "image" else each for name in model.towers}
    wanted = {name: first_of_each(place[name], natural[name]) for name in model.towers}
    prompts = prompts_of(model.clip)
    with keeping(model):
        missing = {name: model.embedded_missing(name).cpu() for name in model.towers}
        rows = {name: missing[name].repeat(int(place[name].max()) + 2, 1) for name in model.towers}
        patterned = (
            () if prompts is None else tuple(by_pattern(model, rows, code) for code in range(len(prompts.patterns)))
        )
        batches = read(run, dataset, natural, wanted, batch, workers) if cache is None else kept(cache, wanted, batch)
        for count, given in batches:
            for name, (index, inputs) in given.items():
                rows[name][place[name][index]] = tower(model, name, inputs)
                for code, pattern in enumerate(prompts.patterns if prompts is not None else ()):
                    if name in pattern:
                        patterned[code][name][place[name][index]] = tower(model, name, inputs, code)
            if progress is not None:
                progress(count)
    return Embeddings(rows, place, dataset.labels(), dataset.groups(), model.head, patterned)


def by_pattern(model: MissingModalityClassifier, rows: Mapping[str, Tensor], code: int) -> dict[str, Tensor]:
    """Room for the embeddings of a pattern's rows; the last one is what stands for a missing input in them."""
    found = {name: one.clone() for name, one in rows.items()}
    prompts = prompts_of(model.clip)
    assert prompts is not None
    for name, one in found.items():
        if name not in prompts.patterns[code] and model.stand_in(name) is None:
            one[-1] = tower(model, name, model.missing(name)[None], code)[0]
    return found


def read(
    run: LoadedRun, dataset: Dataset, natural: Presence, wanted: Mapping[str, Tensor], batch: int, workers: int
) -> Iterator[tuple[int, Rows]]:
    """(samples done, inputs of those that are there by modality, with their numbers), batch by batch."""
    loader = torch.utils.data.DataLoader(
        Reader(dataset, run.preparing, wanted),
        batch_size=batch,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=leave_signals,
    )
    for samples in loader:
        if errors := [sample for sample in samples if isinstance(sample, ValueError)]:
            raise errors[0]
        check_presence(dataset, samples, natural)
        rows: Rows = {}
        for name in wanted:
            if shown := [sample for sample in samples if name in sample.inputs]:
                rows[name] = numbers(shown), torch.stack([sample.inputs[name] for sample in shown])
        yield len(samples), rows


def kept(cache: PrefixCache, there: Mapping[str, Tensor], batch: int) -> Iterator[tuple[int, Rows]]:
    """The same from rows past the frozen blocks."""
    for index in torch.arange(len(cache)).split(batch):
        chosen = {modality: index[mask[index]] for modality, mask in there.items()}
        yield len(index), {m: (rows, cache.take(m, rows)) for m, rows in chosen.items() if len(rows)}


def numbers(samples: list[Prepared]) -> Tensor:
    """The positions of samples in their data set, int64 [B]."""
    return torch.tensor([sample.position for sample in samples])


def rows_of_images(dataset: Dataset) -> Tensor:
    """Which image each sample shows, int64 [N]; corruption makes every sample's image its own."""
    groups = None if isinstance(dataset, Corrupted) else dataset.groups()
    return torch.arange(len(dataset)) if groups is None else groups


def first_of_each(rows: Tensor, there: Tensor) -> Tensor:
    """The first sample of every row among those that are there, bool [N]."""
    wanted, seen = torch.zeros_like(there), set()
    for index in there.nonzero().flatten().tolist():
        if (row := int(rows[index])) not in seen:
            seen.add(row)
            wanted[index] = True
    return wanted


def tower(model: MissingModalityClassifier, modality: str, rows: Tensor | Hidden, pattern: int | None = None) -> Tensor:
    """Embeddings [B, e] of one modality in the head's dtype, on the CPU; of rows of a pattern, where that says much."""
    like = first_tensor(model.head)
    patterns = None if pattern is None else torch.full((len(rows),), pattern, device=like.device)
    return model.embed_rows(modality, rows.to(like.device), patterns).to("cpu", like.dtype)


def check_presence(dataset: Dataset, samples: list[Prepared], natural: Presence) -> None:
    """Raise ValueError for a sample that lacks what `present()` says is there."""
    for sample in samples:
        for name in natural.modalities:
            if bool(natural[name][sample.position]) and name not in sample.has:
                row = dataset[sample.position].id
                raise ValueError(f"dataset: sample {row} has no {name}, expected one: available() says it is there")
