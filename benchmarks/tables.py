"""Every measured table of README and docs, made from the committed rows: `python -m benchmarks.tables [--check]`.

A table stands between `<!-- table: NAME -->` and `<!-- /table -->`; NAME is a function of this module or of
`benchmarks/presets.py`. Plots come from the same rows (`benchmarks/plots.py`). Of every kind of device the machine
measured last is shown, and of every case its newest rows.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks import demo_audio, demo_study, findings, gram, many, plots, presets, rows
from benchmarks.environment import ROOT
from benchmarks.levels import projection, savings
from benchmarks.rows import Row, shown
from benchmarks.summary import amount, duration

DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
MARK = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n)(?P<body>.*?)(<!-- /table -->)", re.S)
KINDS = {"cpu": "CPU", "cuda": "GPU"}


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table, the first column left-aligned, the others right."""
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ruler, *lines))


def faster(row: Row | None) -> str:
    """ "1.39x [1.26, 1.40]", or a dash."""
    if row is None:
        return "-"
    times = row["times_faster"]
    return f"{times['median']:.2f}x [{times['p20']:.2f}, {times['p80']:.2f}]"


def timed(row: Row | None) -> str:
    """ "35.4 ms", or a dash."""
    return "-" if row is None else duration(row["seconds"]["median"])


def find(found: Iterable[Row], provider: str, **shape: Any) -> Row | None:
    """The row of one provider whose shape has these values."""
    wanted = shape.items()
    return next((r for r in found if r["provider"] == provider and wanted <= r["shape"].items()), None)


def machine(found: Sequence[Row]) -> str:
    """Which machine, versions and commit the tables come from, and its two ceilings."""
    lines = []
    for kind, title in KINDS.items():
        newest = shown(found, "projection", kind)
        if not newest:
            lines.append([title, "no rows yet: nothing is claimed", "", "", ""])
            continue
        row = next(row for row in reversed(newest) if "ceilings" in row)
        versions = f"torch {row['torch']}, triton {row['triton']}, Python {row['python']}"
        tops = f"{row['ceilings']['flops'] / 1e9:,.0f} GFLOP/s, {row['ceilings']['bandwidth'] / 1e9:,.1f} GB/s"
        lines.append([title, row["device"], versions, tops, f"{row['date'][:10]}, {row['commit']}"])
    return markdown(["", "device", "versions", "ceilings: product, copy", "measured"], lines)


def projection_short(found: Sequence[Row]) -> str:
    """One projection of the published recipe, forward and backward with dX: what README shows."""
    rows_ = shown(found, "projection")
    batch = max(row["shape"]["batch"] for row in rows_)
    lines = []
    for provider in projection.PROVIDERS:
        image, text = (
            find(rows_, provider, model="ViT-B/16", modality=modality, batch=batch, dropout=0.1, dx=True)
            for modality in ("image", "text")
        )
        if image is not None:
            label, saved = LABELS.get(provider, provider), amount(image["saved_square"])
            lines.append([label, timed(image), faster(image), timed(text), faster(text), saved])
    head = ["provider", "image, d = 768", "vs official", "text, d = 512", "vs official", "d x d state kept (768)"]
    return markdown(head, lines)


def projection_widths(found: Sequence[Row]) -> str:
    """Every width and batch with dropout 0.1: how many times as fast as the official sequence."""
    return projection_table(found, dropout=0.1, dx=True)


def projection_first_layer(found: Sequence[Row]) -> str:
    """The same for the first adapted layer, whose input needs no gradient."""
    return projection_table(found, dropout=0.1, dx=False)


def projection_no_dropout(found: Sequence[Row]) -> str:
    """The same without dropout."""
    return projection_table(found, dropout=0.0, dx=True)


def projection_table(found: Sequence[Row], dropout: float, dx: bool) -> str:
    """Rows by width and batch, a column per provider."""
    rows_ = shown(found, "projection")
    present = [p for p in projection.PROVIDERS if any(row["provider"] == p for row in rows_)]
    others = [provider for provider in present if provider != projection.BASELINE]
    lines = []
    for shape in distinct(row["shape"] for row in rows_):
        if shape["dropout"] != dropout or shape["dx"] != dx:
            continue
        official = find(rows_, projection.BASELINE, **shape)
        name = f"{shape['modality']} {shape['width']} ({shape['model']}), batch {shape['batch']}"
        lines.append([name, timed(official), *(faster(find(rows_, provider, **shape)) for provider in others)])
    return markdown(["width", "official", *(LABELS.get(name, name) for name in others)], lines)


def projection_memory(found: Sequence[Row]) -> str:
    """What one projection of width 768 takes: peak, bytes kept for backward, launches, share of the roofline."""
    rows_ = shown(found, "projection")
    batch = max(row["shape"]["batch"] for row in rows_)
    chosen = {"model": "ViT-B/16", "modality": "image", "batch": batch, "dropout": 0.1, "dx": True}
    found_rows = (find(rows_, provider, **chosen) for provider in projection.PROVIDERS)
    lines = [footprint_line(row, row["saved_square"]) for row in found_rows if row is not None]
    head = ["provider", "peak", "saved for backward", "d x d state", "launches", "roofline"]
    return markdown(head, lines)


def footprint_line(row: Row, square: int | None) -> list[str]:
    """Memory, launches and the share of the roofline of one row."""
    launches = "-" if row["launches"] is None else str(row["launches"])
    share = f"{100 * row['roofline_share']:.0f} %" if "roofline_share" in row else "-"
    label = LABELS.get(row["provider"], row["provider"])
    return [label, amount(row["peak"]), amount(row["saved"]), amount(square), launches, share]


def distinct(shapes: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every shape once, in order."""
    return list({rows.key(shape): shape for shape in shapes}.values())


def operations(found: Sequence[Row]) -> str:
    """Single operations, ours against the official sequence."""
    return by_case(found, "operations", lambda s: f"{s['operation']}, {operation_size(s)}", ["official", "torch"])


def operation_size(shape: dict[str, Any]) -> str:
    """The size of an operation in words."""
    if "projections" in shape:
        return f"{shape['projections']} projections of {shape['model']}"
    return f"d = {shape['width']} ({shape['modality']})"


def attention(found: Sequence[Row]) -> str:
    """One block, in both libraries."""

    def name(shape: dict[str, Any]) -> str:
        return f"{shape['library']}, {shape['modality']}, batch {shape['batch']}"

    return by_case(found, "attention", name)


def training_step(found: Sequence[Row]) -> str:
    """The step of ViT-B/16."""

    def name(shape: dict[str, Any]) -> str:
        return f"{shape['model']}, {shape['adapted_layers']} layers adapted, batch {shape['batch']}"

    return by_case(found, "training_step", name)


def training_step_memory(found: Sequence[Row]) -> str:
    """Peak memory and launches of the same steps."""
    lines = [
        [f"{row['shape']['adapted_layers']} layers", *footprint_line(row, row["saved_square"])[:5]]
        for row in shown(found, "training_step")
    ]
    return markdown(["adapted", "provider", "peak", "saved for backward", "d x d state", "launches"], lines)


def epoch(found: Sequence[Row]) -> str:
    """An epoch on the built-in data."""
    return by_case(found, "epoch", lambda s: f"{s['rows']} rows, batches of {s['batch']}")


def inference(found: Sequence[Row]) -> str:
    """Inference, plain CLIP first."""
    return inference_table(shown(found, "inference"))


def inference_table(found: Sequence[Row]) -> str:
    """Rows of inference: per sample, and as a share of plain CLIP's time."""
    lines = []
    for row in found:
        per_sample = duration(row["seconds"]["median"] / row["shape"]["batch"])
        relative = 1 / row["times_faster"]["median"]
        spread = sorted((1 / row["times_faster"]["p20"], 1 / row["times_faster"]["p80"]))
        cost = f"{relative:.2f} [{spread[0]:.2f}, {spread[1]:.2f}]"
        lines.append([LABELS.get(row["provider"], row["provider"]), per_sample, cost, amount(row["peak"])])
    return markdown(["", "per sample", "of plain CLIP's time", "peak"], lines)


def savings_step(found: Sequence[Row]) -> str:
    """A training step with each saving alone and all of them: time, memory."""
    lines = []
    for row in savings_rows(found, savings.STEP):
        nothing = find(savings_rows(found, savings.STEP), savings.OFF)
        assert nothing is not None
        ratio = f"{nothing['seconds']['median'] / row['seconds']['median']:.2f}x"
        memory = [amount(row["peak"]), amount(row["saved"])]
        lines.append([row["provider"], timed(row), faster(row), ratio, *memory])
    return markdown(["", "time", "vs official", "vs nothing saved", "peak", "saved for backward"], lines)


def savings_inference(found: Sequence[Row]) -> str:
    """Inference with missing rows, plain CLIP first."""
    return inference_table(savings_rows(found, savings.INFERENCE))


def savings_epoch(found: Sequence[Row]) -> str:
    """An epoch of `mora train`, savings off and on, beside the official sequence and LoRA where they were timed."""
    lines = []
    for row in savings_rows(found, savings.EPOCH):
        name = f"{row['shape']['model']}, {row['shape']['rows']} rows, {row['provider']}"
        lines.append([name, timed(row), f"{faster(row)} of {row['baseline'].removeprefix('patched, ')}"])
    return markdown(["", "an epoch, and its validation", "times as fast"], lines)


def savings_rows(found: Sequence[Row], work: str) -> list[Row]:
    """The rows of one kind of work of that level."""
    return [row for row in shown(found, "savings") if row["shape"]["work"] == work]


def by_case(
    found: Sequence[Row], level: str, name: Callable[[dict[str, Any]], str], order: Sequence[str] | None = None
) -> str:
    """One line per case: the baseline's time, then every provider's ratio to it."""
    rows_ = shown(found, level)
    order = order or list(dict.fromkeys(row["provider"] for row in rows_))
    others = [provider for provider in order if provider != "official"]
    lines = []
    for shape in distinct(row["shape"] for row in rows_):
        baseline = find(rows_, "official", **shape)
        if baseline is None:
            lines.append([name(shape), "-", *(timed(find(rows_, provider, **shape)) for provider in others)])
        else:
            ratios = (faster(find(rows_, provider, **shape)) for provider in others)
            lines.append([name(shape), timed(baseline), *ratios])
    return markdown(["", "official", *(LABELS.get(name, name) for name in others)], lines)


LABELS = {"torch": "**mora, torch**", "triton": "**mora, triton**", "frozen nn.Linear": "frozen `nn.Linear`"}
TABLES: dict[str, Callable[[Sequence[Row]], str]] = {
    "machine": machine,
    "findings": findings.findings,
    "projection-short": projection_short,
    "projection-widths": projection_widths,
    "projection-first-layer": projection_first_layer,
    "projection-no-dropout": projection_no_dropout,
    "projection-memory": projection_memory,
    "operations": operations,
    "attention": attention,
    "training-step": training_step,
    "training-step-memory": training_step_memory,
    "epoch": epoch,
    "inference": inference,
    "savings-step": savings_step,
    "savings-inference": savings_inference,
    "savings-epoch": savings_epoch,
    "gram": lambda found: gram.table(markdown),
    "switch": lambda found: many.switch(found, markdown),
    "towers": lambda found: many.towers(found, markdown),
    "presets": lambda found: presets.table(markdown),
    "recipes": lambda found: presets.recipes(markdown),
    "published": lambda found: presets.published(markdown),
    "demo-audio": lambda found: demo_audio.results(),
    "demo-audio-heard": lambda found: demo_audio.heard(),
    "demo-audio-said": lambda found: demo_audio.said(),
    "demo-badges": lambda found: demo_study.results("badges"),
    "demo-badges-lost": lambda found: demo_study.lost("badges"),
    "demo-badges-sentence": lambda found: demo_study.sentence("badges"),
    "demo-badges-said": lambda found: demo_study.said("badges"),
    "demo-subgroups": lambda found: demo_study.results("subgroups"),
    "demo-subgroups-said": lambda found: demo_study.said("subgroups"),
    "demo-search-badges": lambda found: demo_study.searched(markdown, "badges"),
    "demo-search-subgroups": lambda found: demo_study.searched(markdown, "subgroups"),
}


def regenerated(text: str, found: Sequence[Row]) -> str:
    """A document with every table made anew; KeyError for a table nobody makes."""
    return MARK.sub(lambda match: f"{match[1]}{TABLES[match['name']](found)}\n{match[4]}", text)


def stale(found: Sequence[Row]) -> list[str]:
    """The documents and plots that are not what the rows make of them."""
    documents = [path for path in DOCUMENTS if regenerated(path.read_text(encoding="utf-8"), found) != path.read_text()]
    return [str(path.relative_to(ROOT)) for path in (*documents, *plots.stale(found))]


def main(arguments: list[str] | None = None) -> int:
    """Write every table and plot, or with `--check` say which ones are not what the rows make of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 when something would change")
    options = parser.parse_args(arguments)
    found = rows.read()
    outdated = stale(found)
    if options.check:
        for name in outdated:
            print(f"{name}: not what benchmarks/results makes of it: run python -m benchmarks.tables")
        return int(bool(outdated))
    for path in DOCUMENTS:
        path.write_text(regenerated(path.read_text(encoding="utf-8"), found), encoding="utf-8")
    plots.write(found)
    print("\n".join(f"{name}: written" for name in outdated) or "everything is what the rows make of it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
