"""The rows of a data set past the frozen blocks, computed once: later epochs decode no image, run no such block."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mora.savings.encoder import Encoder, by_modality, refusal, whole
from mora.savings.entry import CLAIMS, Claims, open_entry
from mora.savings.fingerprint import prefix_state, versions, weights_sum
from mora.savings.options import Hidden
from mora.savings.room import SHARE, amount, free_disk, free_memory
from mora.savings.state import State, frozen_state, precision
from mora.savings.store import Layout, MemoryStore, Store
from mora.system.workers import leave_signals

# Relative L2 between the substitute's row as stored and as computed now, by what it is stored in.
SAME = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 3e-3, torch.bfloat16: 2e-2}
PAUSE = 0.2  # seconds between two looks at rows that another process is computing


class PrefixCache:
    """Rows [N, L, d] of every input past the frozen blocks of its tower, and one row for all that are missing.

        cache = mora.PrefixCache(model, samples)
        image, text = cache.image(index), cache.text(index)   # int64 [B]; two mora.Hidden
        loss = F.cross_entropy(model(image, text), labels[index])

    Rows are computed by `fill`, or when they are first asked for.

    Args:
        model: the encoder (a classifier is one), adapted, on its device; its frozen weights must stay what they are.
        samples: sample i is `samples[i]`, a mapping with a tensor for each modality, "image" [3, H, W], "text" [L].
        image_present, text_present: bool [N]: which samples have one; None means all.
        image_rows: int64 [N], the image that each sample shows, where several show one.
        folder: keeps rows in files there, for other processes and runs too; None keeps them in memory.
        parts: what the samples depend on (data, preprocessing, tokenizer), by name: see `mora.savings.sample_parts`;
            needed with `folder`.
        dtype: to keep rows in; None keeps them as they are computed: exact.
        cap: bytes the rows may take; None is half of the free memory, or of the free disk.
        present, rows: presence and `image_rows` by modality, for models with any towers.

    Raises:
        ValueError: a modality is no tower of the model; the frozen blocks cannot be cached, for the reason it gives;
            more bytes than `cap`; a damaged file.
        OSError: `folder` cannot be written.
    """

    def __init__(
        self,
        model: Encoder,
        samples: Any,
        image_present: Tensor | None = None,
        text_present: Tensor | None = None,
        image_rows: Tensor | None = None,
        folder: str | Path | None = None,
        parts: Mapping[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        cap: int | None = None,
        present: Mapping[str, Tensor | None] | None = None,
        rows: Mapping[str, Tensor | None] | None = None,
    ) -> None:
        if reason := refusal(model):
            raise ValueError(f"cache: {reason}")
        if folder is not None and not parts:
            raise ValueError(
                "parts: got none with a folder, expected what the samples depend on: stale rows are silent"
            )
        self.model, self.samples, self.count = model, samples, len(samples)
        there = by_modality(model.towers, "present", {"image": image_present, "text": text_present}, present)
        shown = by_modality(model.towers, "rows", {"image": image_rows}, rows)
        everything, each = torch.ones(self.count, dtype=torch.bool), torch.arange(self.count)
        self.present = {m: whole(m, there[m], self.count) if m in there else everything for m in model.towers}
        self.place = {m: shown.get(m, each) for m in model.towers}
        self.folder = None if folder is None else Path(folder)
        self.substitutes = {m: model.prefix(m, model.substitute(m)[None]) for m in model.towers}
        layouts = {m: self.layout(m, dtype) for m in model.towers}
        self.size = sum(layout.size(self.wanted(m) + 1) for m, layout in layouts.items())
        free = free_memory() if self.folder is None else free_disk(self.folder)
        self.cap = int(SHARE * free) if cap is None else cap
        self.check_room()
        self.contents, self.sum = prefix_state(model), weights_sum(model)
        self.stores, self.claims = self.open(layouts, parts)
        self.state = self.now()

    def layout(self, modality: str, dtype: torch.dtype | None) -> Layout:
        """How the rows of one modality are kept; those of tokens at full length, though only up to ends is written."""
        rows, tokens = self.substitutes[modality].rows, self.substitutes[modality].tokens
        length = 0 if tokens is None or rows.dim() == 2 else len(self.model.missing(modality))
        shape = (length, rows.shape[-1]) if length else tuple(rows.shape[1:])
        count = int(self.place[modality].max()) + 2 if self.count else 1
        return Layout(count, shape, dtype or rows.dtype, length)

    def wanted(self, modality: str) -> int:
        """Distinct rows that samples have."""
        return len(self.place[modality][self.present[modality]].unique())

    def check_room(self) -> None:
        """ValueError when the rows are more than the cap."""
        if self.size > self.cap:
            where = "memory" if self.folder is None else str(self.folder)
            raise ValueError(
                f"cache: {self.count:,} samples need up to {amount(self.size)} in {where}, expected at most "
                f"{amount(self.cap)}: keep them in half precision, elsewhere (memory or a folder), or raise the cap"
            )

    def open(
        self, layouts: Mapping[str, Layout], parts: Mapping[str, Any] | None
    ) -> tuple[Mapping[str, Store], Claims | None]:
        """The stores with the substitutes' rows in them."""
        claims = None
        stores: Mapping[str, Store] = {}
        if self.folder is None:
            stores = {modality: MemoryStore(layout) for modality, layout in layouts.items()}
        else:
            each = torch.arange(self.count)
            known = {
                **(parts or {}),
                "prefix": self.contents,
                "versions": versions(),
                "layout": {m: [*map(str, layout)] for m, layout in layouts.items()},
                "rows": {m: rows.tolist() for m, rows in self.place.items() if not torch.equal(rows, each)},
                "trimmed": max(map(self.multiple, layouts)),
                "pooled": self.model.savings.pooled,
            }
            path, stores, _ = open_entry(self.folder, known, layouts)
            claims = Claims(path / CLAIMS)
        for modality, store in stores.items():
            last = torch.tensor([store.layout.rows - 1])
            if bool(store.complete(last)):
                self.compare(modality, store, last)
            else:
                self.put(store, modality, last, self.substitutes[modality])
        return stores, claims

    def compare(self, modality: str, store: Store, row: Tensor) -> None:
        """ValueError unless the substitute's stored row is what the model computes now."""
        kept, rows = store.read(row, 0).rows, self.substitutes[modality].rows
        length = min(kept.shape[1], rows.shape[1]) if rows.dim() == 3 else None
        now, before = rows[:, :length].cpu().double(), kept[:, :length].double()
        if torch.linalg.vector_norm(now - before) > SAME[kept.dtype] * torch.linalg.vector_norm(now):
            raise ValueError(
                f"cache: {self.folder} holds {modality} rows of other frozen blocks than the model's, expected the "
                "same: something that its name does not tell has changed; delete it"
            )

    def multiple(self, modality: str) -> int:
        """What lengths of inputs are a multiple of; 0 where they are not cut."""
        runner, savings = self.model.runners[modality], self.model.savings
        return savings.multiple if savings.trimmed and runner.trims and self.model.plan(modality).trimmed else 0

    def now(self) -> State:
        """What must not change while the rows are used."""
        firsts = [self.model.plan(modality).first for modality in self.model.towers]
        return frozen_state(self.model.model), precision(self.model.device), firsts

    def __len__(self) -> int:
        return self.count

    def image(self, index: Tensor, present: Tensor | None = None) -> Hidden:
        """The images of samples int64 [B], on the CPU; where `present` [B] is False, the substitute's row."""
        return self.take("image", index, present)

    def text(self, index: Tensor, present: Tensor | None = None) -> Hidden:
        """The texts of samples int64 [B], on the CPU; where `present` [B] is False, the substitute's row."""
        return self.take("text", index, present)

    def take(self, modality: str, index: Tensor, present: Tensor | None = None) -> Hidden:
        """Rows of one modality; those that nobody asked for yet are computed now.

        Raises ValueError when a frozen weight or the precision is not what it was.
        """
        self.check()
        return self.unchecked(modality, index, present)

    def unchecked(self, modality: str, index: Tensor, present: Tensor | None = None) -> Hidden:
        """As `take`, for who calls `check` once for all modalities of a batch."""
        store, index = self.stores[modality], index.cpu()
        there = self.present[modality][index]
        there = there if present is None else there & present.cpu()
        rows = self.place[modality][index].masked_fill(~there, store.layout.rows - 1)
        if not bool(store.complete(rows).all()):
            self.compute(index[there & ~store.complete(rows)])
        return replace(store.read(rows, self.multiple(modality)), filled=True)

    def check(self, contents: bool = False, computing: bool = False) -> None:
        """ValueError unless the frozen blocks are what they were when the cache was made, as far as autograd counts.

        `contents` looks at every byte: after something that may have written frozen weights uncounted, and once an
        epoch in `mora train`. `computing`: in the same precision, too.
        """
        now, before = (state if computing else (state[0], state[2]) for state in (self.now(), self.state))
        if now != before or (contents and weights_sum(self.model) != self.sum):
            raise ValueError("cache: a frozen weight, its place or the precision changed, expected it as it was")

    def missing(self, index: Tensor) -> Tensor:
        """Which of samples int64 [K] have a row that was not computed yet, bool [K]."""
        found = torch.zeros(len(index), dtype=torch.bool)
        for modality, store in self.stores.items():
            found |= self.present[modality][index] & ~store.complete(self.place[modality][index])
        return found

    def compute(self, index: Tensor, samples: Any = None) -> None:
        """Compute and keep what is not there of samples int64 [K]; `samples` are they, if read already."""
        self.check(computing=True)
        samples = [self.samples[i] for i in index.tolist()] if samples is None else samples
        for modality, store in self.stores.items():
            places = self.place[modality][index]
            lacking = self.present[modality][index] & ~store.complete(places)
            chosen = list({int(places[at]): at for at in reversed(lacking.nonzero().flatten().tolist())}.values())[::-1]
            if not chosen:
                continue
            inputs = torch.stack([samples[at][modality] for at in chosen]).to(self.model.device)
            self.put(store, modality, places[chosen], self.model.prefix(modality, inputs))

    def put(self, store: Store, modality: str, rows: Tensor, hidden: Hidden) -> None:
        """Keep computed rows."""
        ends = torch.zeros(len(rows), dtype=torch.int64)
        if hidden.tokens is not None and self.multiple(modality):
            ends = self.model.runners[modality].ends(self.model.model, hidden.tokens)
        elif store.layout.tokens:
            ends += store.layout.tokens - 1
        store.write(rows, hidden if store.layout.tokens else Hidden(hidden.rows), ends)

    def fill(self, batch: int = 32, workers: int = 0, progress: Callable[[int], None] | None = None) -> None:
        """Compute every row that is not there, together with the other processes that fill the same folder.

        Args:
            batch: samples at a time.
            workers: processes that read and preprocess.
            progress: told the number of samples done, those included that were there or that others computed.
        """
        chunks = list(torch.arange(self.count).split(batch))
        left = set(range(len(chunks)))
        while left:
            before = len(left)
            for number in [n for n in sorted(left) if not bool(self.missing(chunks[n]).any())]:
                left.discard(number)
                if progress is not None:
                    progress(len(chunks[number]))
            done = 0
            for number, samples in self.read(chunks, sorted(left), workers):
                self.compute(chunks[number], samples)
                if self.claims is not None:
                    self.claims.release(number)
                done += 1
            if left and not done and before == len(left):
                time.sleep(PAUSE)

    def read(self, chunks: list[Tensor], numbers: list[int], workers: int) -> Iterator[tuple[int, list[Any]]]:
        """(number, samples) of the chunks that this process can claim and that are still to be computed."""
        taken: list[int] = []

        def claimed() -> Iterator[list[int]]:
            for number in numbers:
                if self.claims is not None and not self.claims.take(number):
                    continue
                if not bool(self.missing(chunks[number]).any()):
                    if self.claims is not None:
                        self.claims.release(number)
                    continue
                taken.append(number)
                yield chunks[number].tolist()

        loader = torch.utils.data.DataLoader(
            self.samples,
            batch_sampler=claimed(),
            num_workers=workers,
            worker_init_fn=leave_signals,
            collate_fn=as_read,
            generator=torch.Generator(),
        )
        for place, samples in enumerate(loader):
            if isinstance(samples, ValueError):
                raise samples
            yield taken[place], samples

    def __str__(self) -> str:
        parts = []
        for modality, store in self.stores.items():
            layout = store.layout
            size = layout.size(self.wanted(modality) + 1)
            shape, dtype = "x".join(map(str, layout.shape)), str(layout.dtype).removeprefix("torch.")
            parts.append(f"{self.wanted(modality):,} {modality} rows of {shape} {dtype}, {amount(size)}")
        where = "memory" if self.folder is None else str(self.folder)
        return f"up to {amount(self.size)} in {where} (cap {amount(self.cap)}): {'; '.join(parts)}"


def as_read(samples: Any) -> Any:
    """Samples as they were read; an error that stands for samples that could not be read (see `Inputs`) as well."""
    return samples
