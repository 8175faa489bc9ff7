"""The plots of docs/performance.md, from the committed rows: bars with spread, roofline, scaling over width.

Each file carries the digest of the rows it shows, so that a test can tell a stale plot without drawing it again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import ROOT
from benchmarks.levels import projection
from benchmarks.rows import Row, shown

FOLDER = ROOT / "docs" / "images"
COLOURS = {
    "official": "#7f7f7f",
    "official compiled": "#bcbd22",
    "PEFT LoRA": "#9ecae1",
    "PEFT DoRA": "#4292c6",
    "frozen nn.Linear": "#c7c7c7",
    "torch": "#d62728",
    "triton": "#8c1d18",
}
NAMES = {"torch": "mora, torch", "triton": "mora, triton"}


def chosen(found: Sequence[Row], **shape: Any) -> list[Row]:
    """The rows of one adapted projection with dX on the machine measured last: a GPU if there is one, else the CPU."""
    level = shown(found, "projection", "cuda") or shown(found, "projection", "cpu")
    wanted = {"dx": True, **shape}.items()
    return [row for row in level if wanted <= row["shape"].items()]


def bars(found: Sequence[Row], axes: Any) -> None:
    """Times as fast as the official sequence, per width at the largest batch, whiskers from p20 to p80."""
    largest = max(row["shape"]["batch"] for row in found)
    found = [row for row in found if row["shape"]["batch"] == largest]
    widths = list(dict.fromkeys((row["shape"]["modality"], row["shape"]["width"]) for row in found))
    providers = [p for p in projection.PROVIDERS if any(r["provider"] == p for r in found) and p != "official"]
    for position, provider in enumerate(providers):
        own = {(r["shape"]["modality"], r["shape"]["width"]): r for r in found if r["provider"] == provider}
        at = [i for i, width in enumerate(widths) if width in own]
        times = [own[widths[i]]["times_faster"] for i in at]
        offset = (position - (len(providers) - 1) / 2) * 0.8 / len(providers)
        middle = [t["median"] for t in times]
        spread = [
            [max(0.0, m - t["p20"]) for m, t in zip(middle, times, strict=True)],
            [max(0.0, t["p80"] - m) for m, t in zip(middle, times, strict=True)],
        ]
        axes.bar(
            [i + offset for i in at], middle, 0.8 / len(providers), yerr=spread, capsize=2,
            color=COLOURS[provider], label=NAMES.get(provider, provider), error_kw={"lw": 0.8},
        )  # fmt: skip
    axes.axhline(1, color=COLOURS["official"], lw=1, ls="--")
    axes.set_xticks(range(len(widths)), [f"{modality}\nd = {width}" for modality, width in widths])
    axes.set_ylabel("times as fast as the official sequence")
    axes.set_title(f"One adapted projection, forward and backward, dropout 0.1, batch {largest}")
    axes.legend(frameon=False, ncols=3, fontsize=8)


def roofline(found: Sequence[Row], axes: Any) -> None:
    """Counted operations per second over operations per byte, below the two measured ceilings."""
    import numpy as np

    top = next(row["ceilings"] for row in found if "ceilings" in row)
    intensity = np.logspace(0, 4, 400)
    axes.plot(intensity, np.minimum(top["flops"], intensity * top["bandwidth"]) / 1e9, color="black", lw=1.2)
    for provider in projection.PROVIDERS:
        own = [row for row in found if row["provider"] == provider and "roofline_share" in row]
        if own:
            x = [row["work"]["flops"] / row["work"]["bytes"] for row in own]
            y = [row["work"]["flops"] / row["seconds"]["median"] / 1e9 for row in own]
            axes.scatter(x, y, s=22, color=COLOURS[provider], label=NAMES.get(provider, provider), zorder=3)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ridge = top["flops"] / top["bandwidth"]
    own = [row["work"] for row in found if "work" in row]
    reach = [work["flops"] / work["bytes"] for work in own]
    axes.set_xlim(min(ridge, *reach) / 2, max(ridge, *reach) * 2)
    axes.set_ylim(bottom=min(row["work"]["flops"] / row["seconds"]["median"] for row in found if "work" in row) / 2e9)
    axes.set_xlabel("least operations per byte moved, counted from the shape")
    axes.set_ylabel("GFLOP/s of that least work")
    axes.set_title("Roofline of one adapted projection, every width and batch, dropout 0.1")
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def scaling(found: Sequence[Row], axes: Any) -> None:
    """Time over width, a line per provider and batch."""
    batches = sorted({row["shape"]["batch"] for row in found})
    for provider in projection.PROVIDERS:
        for batch in batches:
            own = [
                row
                for row in found
                if row["provider"] == provider
                and row["shape"]["batch"] == batch
                and row["shape"]["modality"] == "image"
            ]
            if len(own) < 2:
                continue
            own.sort(key=lambda row: row["shape"]["width"])
            label = NAMES.get(provider, provider) if batch == batches[-1] else None
            axes.plot(
                [row["shape"]["width"] for row in own], [1e3 * row["seconds"]["median"] for row in own],
                color=COLOURS[provider], label=label, marker="o", ms=3, lw=1.2, ls="-" if batch == batches[-1] else ":",
            )  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("width d of the image tower")
    axes.set_ylabel("milliseconds, forward and backward")
    text = " and ".join(str(batch) for batch in batches)
    axes.set_title(f"Scaling over width; batch {text} (solid: the largest), dropout 0.1")
    axes.legend(frameon=False, fontsize=8)


PLOTS: dict[str, Callable[[Sequence[Row], Any], None]] = {"bars": bars, "roofline": roofline, "scaling": scaling}


def digest(found: Sequence[Row]) -> str:
    """SHA-256 of the rows a plot shows."""
    return hashlib.sha256(json.dumps(list(found), sort_keys=True).encode()).hexdigest()


def path(name: str) -> Path:
    """Where a plot lies."""
    return FOLDER / f"projection-{name}.png"


def stale(found: Sequence[Row]) -> list[Path]:
    """The plots whose rows are not today's."""
    from PIL import Image

    want = digest(chosen(found, dropout=0.1))
    outdated = []
    for name in PLOTS:
        if not path(name).exists():
            outdated.append(path(name))
            continue
        with Image.open(path(name)) as image:
            if image.info.get("Rows") != want:
                outdated.append(path(name))
    return outdated


def write(found: Sequence[Row]) -> None:
    """Draw those plots that are stale."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    drawn = chosen(found, dropout=0.1)
    names = {path(name): name for name in PLOTS}
    for outdated in stale(found):
        figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
        PLOTS[names[outdated]](drawn, axes)
        axes.spines[["top", "right"]].set_visible(False)
        figure.text(0.995, 0.005, f"{drawn[-1]['device']}, {drawn[-1]['commit']}", ha="right", fontsize=6, color="grey")
        outdated.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(outdated, dpi=130, metadata={"Rows": digest(drawn)})
        pyplot.close(figure)
