"""The sentences of docs/performance.md that hold numbers, made from the rows like its tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks import rows
from benchmarks.rows import Row, shown


def ratios(found: Iterable[Row], provider: str, **shape: Any) -> list[float]:
    """Median times as fast as the official sequence, of every case of these values."""
    wanted = shape.items()
    return [r["times_faster"]["median"] for r in found if r["provider"] == provider and wanted <= r["shape"].items()]


def between(values: Sequence[float]) -> str:
    """ "1.26x to 1.42x", or one number."""
    low, high = f"{min(values):.2f}x", f"{max(values):.2f}x"
    return low if low == high else f"{low} to {high}"


def only(found: Iterable[Row], provider: str, **shape: Any) -> Row:
    """The one row of a provider whose shape has these values."""
    (row,) = (r for r in found if r["provider"] == provider and shape.items() <= r["shape"].items())
    return row


def cost(row: Row) -> float:
    """The time of a row as a share of its baseline's."""
    return float(1 / row["times_faster"]["median"])


def projection(found: Sequence[Row]) -> list[str]:
    """One projection on a CPU."""
    batches = sorted({row["shape"]["batch"] for row in found})
    chosen = {"batch": batches[-1], "dropout": 0.1, "dx": True}
    names = ("torch", "PEFT LoRA", "PEFT DoRA", "official compiled")
    ours, low, dora, compiled = (between(ratios(found, name, **chosen)) for name in names)
    first = {**chosen, "dx": False}
    example = {"model": "ViT-B/16", "modality": "image", **chosen}
    mine, official = (only(found, provider, **example) for provider in ("torch", "official"))
    kept = official["saved_square"] / mine["saved_square"]
    single = between(ratios(found, "torch", **{**chosen, "batch": batches[0]}))
    return [
        f"**One projection**, batch {batches[-1]}, dropout 0.1: {ours} the official sequence's speed over all widths, "
        f"{single} at batch {batches[0]}, where what no row changes weighs most; {kept:.0f} times less d x d state. "
        f"`torch.compile` of the official sequence gives {compiled}, PEFT DoRA {dora}, PEFT LoRA, which has no norm to "
        f"compute, {low}: ours takes {beside_lora(found, chosen)} of LoRA's time at batch {batches[-1]}, "
        f"{beside_lora(found, {**chosen, 'batch': batches[0]})} at batch {batches[0]}.",
        f"**The first adapted layer**, whose input needs no gradient, gains least: "
        f"{between(ratios(found, 'torch', **first))}. Backward is one product of full size for both then.",
    ]


def beside_lora(found: Sequence[Row], chosen: dict[str, Any]) -> str:
    """ "0.87 to 0.93": our time over LoRA's, case by case."""
    shares = [
        a / b for a, b in zip(ratios(found, "PEFT LoRA", **chosen), ratios(found, "torch", **chosen), strict=True)
    ]
    low, high = f"{min(shares):.2f}", f"{max(shares):.2f}"
    return low if low == high else f"{low} to {high}"


def host(found: Sequence[Row]) -> list[str]:
    """The host's part of a step, on a CPU."""
    from benchmarks.levels.host import STUBBED

    step, alone = ([row for row in found if row["shape"]["gradients"] is kept] for kept in (True, False))
    size = step[0]["shape"]
    ours, stubbed, dora = (cost(only(step, name)) for name in ("torch", STUBBED, "PEFT DoRA"))
    names = {name: only(step, name)["launches"] / size["projections"] for name in ("torch", "PEFT LoRA", STUBBED)}
    built = [
        1e6 * only(alone, name)["seconds"]["median"] / size["projections"] for name in ("torch", "frozen nn.Linear")
    ]
    return [
        f"**The host's part of a step**, {size['projections']} projections of d = {size['width']} with {size['rows']} "
        f"rows, W_eff built once: {ours:.2f} of PEFT LoRA's time, PEFT DoRA {dora:.2f}; the fused path without its "
        f"launches {stubbed:.2f}. Operators that would launch something, a projection: {names['torch']:.0f}, LoRA "
        f"{names['PEFT LoRA']:.0f}, fused {names[STUBBED]:.0f}. Without gradients {built[0]:.0f} us a projection, a "
        f"frozen `nn.Linear` {built[1]:.0f} us.",
    ]


def model(found: Sequence[Row]) -> list[str]:
    """The training step and the epoch on a CPU."""
    step = [row for row in found if row["level"] == "training_step"]
    lines = []
    for layers in sorted({row["shape"]["adapted_layers"] for row in step}):
        names = ("official", "torch", "frozen + head")
        official, mine, frozen = (only(step, name, adapted_layers=layers) for name in names)
        lines.append(
            f"**A training step** with {layers} layers adapted: {mine['times_faster']['median']:.2f}x, peak memory "
            f"{official['peak'] / mine['peak']:.1f} times less. Frozen towers and a head alone take "
            f"{100 * cost(frozen):.0f} % of the official step: no way to compute adapters can "
            f"give more than {frozen['times_faster']['median']:.2f}x."
        )
    tiny = only([row for row in found if row["level"] == "epoch"], "torch")
    lines.append(
        f"**An epoch of the tiny CLIP**: {tiny['times_faster']['median']:.2f}x. Its matrices are so small that "
        "the number of operators decides."
    )
    return lines


def inference(found: Sequence[Row]) -> list[str]:
    """Merged and patched models beside plain CLIP and deep prompts."""
    names = ("merged", "deep prompts", "patched, rebuilt each time", "patched")
    merged, prompts, rebuilt, patched = (only(found, name) for name in names)
    return [
        f"**Inference** by the library's classifier, no row missing, takes {cost(merged):.2f} of plain CLIP's time "
        f"merged, {cost(rebuilt):.2f} patched, W_eff built at every call, and {cost(patched):.2f} patched within "
        "`mora.keeping`.",
        f"**Deep prompts**, vectorised, take {cost(prompts):.2f} of plain CLIP's time: 36 more tokens in every "
        f"block. A merged CLIP takes {100 * cost(merged) / cost(prompts):.0f} % of theirs. The paper's 25.9 % compares "
        "with an implementation that loops over samples in Python, which is not measured here.",
    ]


def missing(found: Sequence[Row]) -> list[str]:
    """Rows that lack something, in eval."""
    both, image = (only(found, f"patched, 70 % {kind} missing", work="inference") for kind in ("both", "image"))
    return [
        f"**Missing rows**, 70 % of a batch of {both['shape']['batch']}, cost {cost(both):.2f} of plain CLIP's time "
        f"where half of them lack the image and half the text, {cost(image):.2f} where all lack the image, within "
        "`mora.keeping`: each tower runs on the rows it has ([savings.md](savings.md)).",
    ]


def operations(found: Sequence[Row]) -> list[str]:
    """Operations on a CPU."""
    build = only(found, "torch", operation="build")["times_faster"]["median"]
    both = between(ratios(found, "torch", operation="weight backward"))
    alone = between(ratios(found, "torch", operation="gram"))
    return [
        f"**Building W_eff** of the recipe's eight projections: {build:.2f}x; one W_eff and its way back: {both}.",
        f"**`mora_kernels.gram` alone**: {alone}. It is one small product, beside which checking the argument shows.",
    ]


def text(found: Sequence[Row]) -> str:
    """Every sentence, as a list."""
    levels: dict[str, list[Row]] = {}
    for row in found:
        levels.setdefault(row["level"], []).append(row)
    lines = [
        *projection(levels["projection"]),
        *operations(levels["operations"]),
        *host(levels["host"]),
        *model([*levels["training_step"], *levels["epoch"]]),
        *inference(levels["inference"]),
        *missing(levels["savings"]),
    ]
    return "\n".join(f"- {line}" for line in lines)


def findings(found: Sequence[Row]) -> str:
    """The sentences for the CPU that was measured last."""
    every = [row for level in dict.fromkeys(r["level"] for r in rows.latest(found)) for row in shown(found, level)]
    return text(every)
