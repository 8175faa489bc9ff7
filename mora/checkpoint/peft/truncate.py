"""`mora.to_peft`: what an adapter did to the weights, as a LoRA of lower rank, with the error that makes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mora.adapters.record import Adapters, adapters_of, unwrap
from mora.checkpoint.peft.names import path_of
from mora.checkpoint.peft.write import Update, config_of, write_folder
from mora.system.checks import check_whole, is_number
from mora.system.files import write_bytes, write_json
from mora.system.messages import shown
from mora.version import __version__

ABOUT, CARD = "mora_to_peft.json", "README.md"


@dataclass(frozen=True)
class Truncated:
    """One projection's update D = W_eff - W [out, in] and what is left out of it.

    Attributes:
        name: "image.11.q".
        module: what PEFT's file calls it.
        rank: of the LoRA.
        error: |D - D_r| / |D|, Frobenius.
        weight_error: |D - D_r| / |W_eff|.
        update: |D| / |W|.
        rank_90, rank_99: how many singular values hold 90 and 99 % of |D|^2.
        full: how many there are.
    """

    name: str
    module: str
    rank: int
    error: float
    weight_error: float
    update: float
    rank_90: int
    rank_99: int
    full: int


@dataclass(frozen=True)
class PeftUpdate:
    """What `mora.to_peft` wrote: `error` is that of all updates together, `projections` say it of each."""

    folder: Path
    error: float
    projections: tuple[Truncated, ...]

    def __str__(self) -> str:
        return "\n".join([summary(self), "", *table(self.projections)])


@torch.no_grad()
def to_peft(
    model: nn.Module,
    folder: str | os.PathLike[str],
    rank: int | None = None,
    tolerance: float = 0.1,
    name: str | None = None,
    names: str = "model",
) -> PeftUpdate:
    """Write the update W_eff - W of an adapter as a LoRA that PEFT loads, by truncated SVD, and return its error.

    An update of MoRA's is not of low rank: magnitudes act on every column. What is left out is stated for every
    projection, here and in the folder's mora_to_peft.json and README.md. A LoRA of `mora.patch` needs no truncation:
    mora.save_adapter(model, folder, format="peft") writes it as it is.

    Args:
        model: a patched CLIP, which stays as it is.
        folder: where to; made where it is not there.
        rank: of every projection; None: for each the least whose error is within `tolerance`.
        tolerance: |D - D_r| / |D| that is allowed where `rank` is None; 0.1 keeps 99 % of the energy.
        name: of the adapter; None: the active one.
        names: "model": modules are called as in this model (on open_clip, whose q, k, v are packed, as after they are
            split); "hugging_face": as in transformers' CLIPModel, for the same weights there.

    Raises ValueError when `model` is not patched or has no such adapter, for a rank or tolerance that is none, or a
    W_eff that is not finite; nothing was written then.
    """
    adapters = adapters_of(model, name)
    if rank is not None:
        check_whole("rank", rank, 1, ", or None")
    if not is_number(tolerance) or not 0 < tolerance < 1:
        raise ValueError(f"tolerance: got {shown(tolerance)}, expected a number between 0 and 1")
    updates: dict[str, Update] = {}
    found: list[Truncated] = []
    left, whole = 0.0, 0.0
    for label, path, before, move in moves(adapters, names):
        update, row, squares = truncated(label, path, before, move, rank, tolerance)
        updates[path] = update
        found.append(row)
        left, whole = left + squares[0], whole + squares[1]
    every = [module for module, _ in unwrap(model).named_modules()] if names == "model" else []
    result = PeftUpdate(Path(folder), share(left**0.5, whole**0.5), tuple(found))
    write_folder(result.folder, updates, config_of(updates, every=[*every, *updates]))
    write_json(result.folder / ABOUT, about(result))
    write_bytes(result.folder / CARD, card(result, adapters).encode())
    return result


def moves(adapters: Adapters, names: str) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    """(name, path, W, W_eff - W) of every projection in float64 on the CPU; ValueError for one that is not finite."""
    for slot in adapters.slots():
        for target, projection in slot.projections.items():
            before = projection.weight.detach().double()
            move = (projection.effective_weight(before) - before).cpu()
            if not move.isfinite().all():
                raise ValueError(f"to_peft: got NaN or infinity in W_eff of {slot.label(target)}, expected finite ones")
            yield slot.label(target), path_of(slot, target, names), before.cpu(), move


def truncated(
    name: str, module: str, before: Tensor, move: Tensor, rank: int | None, tolerance: float
) -> tuple[Update, Truncated, tuple[float, float]]:
    """(A, B, their row, squares left out and in all) of one update [out, in]."""
    left, values, right = torch.linalg.svd(move, full_matrices=False)
    squares = values.square()
    total = float(squares.sum())
    rest = (total - squares.cumsum(0)).clamp_min(0).sqrt()  # |D - D_r| for r = 1, 2, ...
    if rank is None:
        rank = 1 + int((rest > tolerance * total**0.5).sum())
    rank = min(rank, len(values))
    root = values[:rank].sqrt()
    update = Update((root[:, None] * right[:rank]).float(), (left[:, :rank] * root).float(), None, float(rank))
    error = float((move - update.b.double() @ update.a.double()).norm())

    def holding(part: float) -> int:
        return 1 + int((squares.cumsum(0) < part * total).sum()) if total > 0 else 0

    row = Truncated(
        name=name,
        module=module,
        rank=rank,
        error=share(error, total**0.5),
        weight_error=share(error, float((before + move).norm())),
        update=share(total**0.5, float(before.norm())),
        rank_90=holding(0.9),
        rank_99=holding(0.99),
        full=len(values),
    )
    return update, row, (error**2, total)


def share(part: float, whole: float) -> float:
    """part / whole; 0 of nothing."""
    return part / whole if whole > 0 else 0.0


def about(result: PeftUpdate) -> dict[str, Any]:
    """The content of mora_to_peft.json."""
    rows = [asdict(row) for row in result.projections]
    return {"format": 1, "mora_version": __version__, "relative_frobenius_error": result.error, "projections": rows}


def summary(result: PeftUpdate) -> str:
    """The error in a sentence."""
    ranks, needed = ([getattr(row, key) for row in result.projections] for key in ("rank", "rank_99"))
    return (
        f"{len(needed)} updates as a LoRA of rank {span(ranks)}: {100 * result.error:.3g} % of their Frobenius norm is "
        f"left out. 99 % of their energy takes rank {span(needed)} of {result.projections[0].full}."
    )


def span(values: list[int]) -> str:
    """ "16", or "37 to 88"."""
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"


def table(rows: tuple[Truncated, ...]) -> list[str]:
    """The projections as lines of Markdown."""
    lines = [
        "| projection | rank | left out | of the weight | update | 90 % | 99 % |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    return lines + [
        f"| {row.name} | {row.rank} | {row.error:.2g} | {row.weight_error:.2g} | {row.update:.2g} | {row.rank_90} | "
        f"{row.rank_99} |"
        for row in rows
    ]


def card(result: PeftUpdate, adapters: Adapters) -> str:
    """README.md of the folder."""
    methods = " and ".join(sorted(adapters.config.modes()))
    return "\n".join(
        [
            "# A LoRA made of another adapter",
            "",
            f"Written by mora {__version__} from the merged update W_eff - W of an adapter of method {methods},",
            "by truncated singular value decomposition. It is an approximation:",
            "",
            summary(result),
            "",
            "Left out: Frobenius norm of the rest over that of the update, and over that of the adapted weight.",
            "Update: its norm over that of the pretrained weight. 90 %, 99 %: ranks that hold as much of the squared",
            "norm.",
            "",
            *table(result.projections),
            "",
        ]
    )
