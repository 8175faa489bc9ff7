"""What alpha means with N towers: `python -m benchmarks.gram` writes benchmarks/results/gram.json, a row per setting.

N towers of one width, one block each, q and v adapted; G is the sum or the mean of the others' Gram matrices. Measured
at the start and after some steps of AdamW at the published learning rate, mean over projections and seeds:

    strength: alpha |C| / |W|, Frobenius norms;
    turned: the mean angle between the columns of W + alpha C and those of W, in degrees;
    moved: |W_eff - W_eff at the start| / |W|.

Which of the two keeps what a value of alpha does with two towers is read off the rows; `common_moved` says how far C
itself went. No time is measured.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mora
from benchmarks.rows import RESULTS
from mora.adapters.record import adapters_of
from mora.diagnosis.weights import exact, terms_of
from mora.methods.linear import MoraLinear

TOWERS, ALPHAS, GRAMS = (2, 3, 4, 8), (1e-4, 1e-3, 1e-2), ("sum", "mean")
WIDTH, RANK, STEPS, SEEDS = 256, 4, 20, 2
BATCH, TOKENS, CLASSES, LR = 16, 8, 10, 1e-2
FIGURES = ("strength", "turned", "moved", "common_moved")


class Block(nn.Module):
    """Attention of one head on [B, tokens, width]; W ~ N(0, 1 / width): its columns have norm 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear = nn.Linear(width, width)
            nn.init.normal_(linear.weight, std=width**-0.5)
            setattr(self, name, linear)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (getattr(self, f"{name}_proj")(x) for name in "qkv")
        attended: Tensor = self.out_proj(F.scaled_dot_product_attention(q, k, v))
        return x + attended


class Towers(nn.Module):
    """So many towers of one block."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.towers = nn.ModuleDict({f"m{number}": nn.ModuleList([Block(width)]) for number in range(count)})

    def encode(self, name: str, x: Tensor) -> Tensor:
        """The output of one tower, the mean over tokens."""
        made: Tensor = self.get_submodule(f"towers.{name}.0")(x).mean(dim=1)
        return made

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """The towers' outputs side by side."""
        return torch.cat([self.encode(name, x) for name, x in inputs.items()], dim=1)


def encoded(name: str, model: Towers, x: Tensor) -> Tensor:
    """The output of a model's tower."""
    return model.encode(name, x)


def patched(count: int, alpha: float, gram: str, width: int = WIDTH) -> Towers:
    """A model of `count` towers with adapters at their start."""
    model = Towers(count, width)
    example = torch.zeros(1, width)
    described = {
        name: mora.Tower(f"towers.{name}", encode=functools.partial(encoded, name), example=example)
        for name in model.towers
    }
    config = mora.MoraConfig(rank=RANK, alpha=alpha, dropout=0.0, last_layers=1, gram=gram)
    mora.patch(model, config, towers=described)
    return model


def state(model: Towers) -> dict[str, tuple[MoraLinear, Any, Tensor]]:
    """Every projection by name with its terms in float64, and W."""
    found = {}
    for name, projection in adapters_of(model).projections():
        own = {kind: getattr(projection, kind) for kind in ("specific_a", "specific_b")}
        own |= {kind: getattr(projection, kind) for kind in ("common_magnitude", "specific_magnitude")}
        common = {each: projection.common.of(each) for each in projection.common.names}
        found[name] = projection, terms_of(projection, common, own), exact(projection.weight)
    return found


def figures(now: dict[str, Any], start: dict[str, Any]) -> dict[str, float]:
    """The means over projections."""
    found: dict[str, list[float]] = {name: [] for name in FIGURES}
    for name, (projection, terms, weight) in now.items():
        begun, norm = start[name][1], weight.norm()
        moved = weight + projection.alpha * terms.update
        cosines = F.cosine_similarity(moved, weight, dim=0).clamp(-1, 1)
        found["strength"].append(float(projection.alpha * terms.update.norm() / norm))
        found["turned"].append(float(cosines.arccos().rad2deg().mean()))
        found["moved"].append(float((terms.weight - begun.weight).norm() / norm))
        found["common_moved"].append(float((terms.update - begun.update).norm() / begun.update.norm()))
    return {name: statistics.fmean(values) for name, values in found.items()}


@torch.no_grad()
def rows_of(model: Towers, generator: torch.Generator) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Batches without end: noise and a direction of its class in every tower."""
    width = WIDTH
    means = {name: torch.randn(CLASSES, width, generator=generator) for name in model.towers}
    while True:
        labels = torch.randint(CLASSES, (BATCH,), generator=generator)
        noise = {name: torch.randn(BATCH, TOKENS, width, generator=generator) for name in model.towers}
        yield {name: noise[name] + means[name][labels, None] for name in noise}, labels


def measured(count: int, alpha: float, gram: str, seed: int, steps: int = STEPS) -> dict[str, dict[str, float]]:
    """Figures at the start and after the steps; the same seed draws the same factors and data for both kinds of G."""
    torch.manual_seed(seed)
    model = patched(count, alpha, gram)
    head, generator = nn.Linear(count * WIDTH, CLASSES), torch.Generator().manual_seed(1000 + seed)
    trained = [*(parameter for _, parameter in mora.adapter_parameters(model)), *head.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=LR, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.02)
    start = state(model)
    found = {"start": figures(start, start)}
    for _, (inputs, labels) in zip(range(steps), rows_of(model, generator), strict=False):
        optimizer.zero_grad()
        F.cross_entropy(head(model(inputs)), labels).backward()
        optimizer.step()
    return {**found, "trained": figures(state(model), start)}


def measure(say: Callable[[str], object] = print, seeds: int = SEEDS) -> list[dict[str, Any]]:
    """A row per setting, the mean over seeds."""
    rows = []
    for alpha in ALPHAS:
        for count in TOWERS:
            for gram in GRAMS if count > 2 else GRAMS[:1]:
                runs = [measured(count, alpha, gram, seed) for seed in range(seeds)]
                row: dict[str, Any] = {"alpha": alpha, "towers": count, "gram": gram}
                for when in ("start", "trained"):
                    row[when] = {n: float(f"{statistics.fmean(run[when][n] for run in runs):.4g}") for n in FIGURES}
                rows.append(row)
                say(json.dumps(row))
    return rows


def read(folder: Path = RESULTS) -> dict[str, Any]:
    """The committed rows, with what they were measured at."""
    found: dict[str, Any] = json.loads((folder / "gram.json").read_text(encoding="utf-8"))
    return found


def table(markdown: Callable[[Sequence[str], list[list[str]]], str], folder: Path = RESULTS) -> str:
    """What the two kinds of G do, a line per alpha and kind, a cell per number of towers."""
    found = read(folder)["rows"]
    lines = []
    for alpha in dict.fromkeys(row["alpha"] for row in found):
        for gram in GRAMS:
            chosen = [r for r in found if r["alpha"] == alpha and (r["gram"] == gram or r["towers"] == 2)]
            lines.append([f"{alpha:g}, {gram}", *map(cell, chosen)])
    return markdown(["alpha, G", *(f"N = {count}" for count in TOWERS)], lines)


def cell(row: dict[str, Any]) -> str:
    """ "0.15, 8 deg -> 8 deg, 0.04": strength and angle at the start, angle and move after training."""
    start, after = row["start"], row["trained"]
    return f"{start['strength']:.2g}, {start['turned']:.0f}° to {after['turned']:.0f}°, {after['moved']:.2f}"


def main(arguments: list[str] | None = None) -> int:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gram", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"how many (default: {SEEDS})")
    options = parser.parse_args(arguments)
    settings = {"width": WIDTH, "rank": RANK, "steps": STEPS, "lr": LR, "batch": BATCH, "seeds": options.seeds}
    content = {**settings, "rows": measure(seeds=options.seeds)}
    (RESULTS / "gram.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
