"""Results as readable tables: type by rate for one model, models by rate for several; mean and spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mora.data.missing import KINDS
from mora.data.policies import EACH, Missing
from mora.evaluation.grid import NOTHING, Result
from mora.metrics import Spread, spread
from mora.patterns import names_in
from mora.system.markup import plain

FIGURES = {
    "accuracy": "accuracy",
    "macro_accuracy": "accuracy, mean over the classes",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "macro_f1_per_movie": "macro F1, a movie counted once",
    "auroc": "AUROC",
    **{f"recall_at_{depth}": f"recall at {depth}, mean of all directions" for depth in (1, 5, 10)},
}
LACKING = {
    "text": "no text",
    "image": "no image",
    "both": "half no text, half no image",
    "either": "exactly one, in equal parts",
    "any": "any, of all inputs",
    NOTHING: "nothing taken away",
}


class Table(NamedTuple):
    """A table of strings: `best` holds the (row, column) places to set in bold, `words` counts the columns of text.

    Names from data are in it as they are: whoever shows it escapes them.
    """

    title: str
    headings: list[str]
    rows: list[list[str]]
    best: set[tuple[int, int]]
    words: int = 1

    def markdown(self) -> str:
        """The table in Markdown; columns of text come first."""
        marked = [
            [f"**{plain(cell)}**" if (y, x) in self.best else plain(cell) for x, cell in enumerate(row)]
            for y, row in enumerate(self.rows)
        ]
        rule = ["---:" if x >= self.words else "---" for x in range(len(self.headings))]
        return "\n".join("| " + " | ".join(line) + " |" for line in [[plain(h) for h in self.headings], rule, *marked])


class Summary:
    """Every figure of every model and condition over its seeds."""

    def __init__(self, results: Sequence[Result]) -> None:
        self.metric = results[0].metric
        self.models = list(dict.fromkeys(result.model for result in results))
        kinds = dict.fromkeys(result.condition for result in results if result.kind != NOTHING)
        self.kinds = [*(kind for kind in KINDS if kind in kinds), *(kind for kind in kinds if kind not in KINDS)]
        self.rates = sorted({result.rate for result in results if result.kind != NOTHING})
        self.cells: dict[tuple[str, str, float], list[Result]] = {}
        for result in results:
            self.cells.setdefault((result.model, result.condition, result.rate), []).append(result)

    def at(self, model: str, kind: str, rate: float, figure: str | None = None) -> Spread | None:
        """A figure (None: the headline) over the seeds of one cell; None where the cell or the figure is absent."""
        name = figure or self.metric
        values = [r.figures[name] for r in self.cells.get((model, kind, rate), []) if name in r.figures]
        return spread(values) if values else None

    def mean_of_kinds(self, model: str, rate: float) -> Spread | None:
        """The headline averaged over the three types, seed by seed; None unless all are there."""
        columns = [self.cells.get((model, kind, rate), []) for kind in KINDS]
        if not all(columns):
            return None
        return spread([sum(r.value for r in row) / len(row) for row in zip(*columns, strict=True)])

    def figures(self) -> list[str]:
        """Names of all figures, the headline first."""
        return list(dict.fromkeys(name for cell in self.cells.values() for r in cell for name in r.figures))


def lacking(condition: str) -> str:
    """What rows of a condition lack, in words."""
    if "," in condition:
        parts = (part.partition(":") for part in condition.split(","))
        return ", ".join(f"{100 * float(rate):g} % no {name}" for name, _, rate in parts)
    kind, _, share = condition.partition(":")
    if not share:
        return LACKING.get(kind) or ", ".join(f"no {name}" for name in kind.split("+"))
    return f"{100 - 100 * float(share):g} % of these no text, {100 * float(share):g} % no image"


def show(value: Spread | None, seeds: int) -> str:
    """ "83.77 ± 0.12" in percent; without the spread where there is one seed, "" where there is nothing."""
    if value is None:
        return ""
    return f"{100 * value.mean:.2f}" + (f" ± {100 * value.deviation:.2f}" if seeds > 1 else "")


def tables(results: Sequence[Result]) -> list[Table]:
    """The headline figure: one table of types by rates for one model, a table per type for several."""
    summary = Summary(results)
    if not summary.kinds:
        return [nothing_only(summary)]
    if len(summary.models) == 1:
        return [one_model(summary)]
    made = [several_models(summary, kind) for kind in summary.kinds]
    if set(KINDS) <= set(summary.kinds):
        made.append(several_models(summary, None))
    return made


def seeds_of(summary: Summary) -> int:
    """The most seeds a cell has."""
    return max(len(cell) for cell in summary.cells.values())


def nothing_only(summary: Summary) -> Table:
    """A row per model."""
    rows = [[model, show(summary.at(model, NOTHING, 0.0), 1)] for model in summary.models]
    return Table(FIGURES[summary.metric], ["model", "nothing taken away"], rows, set())


def one_model(summary: Summary) -> Table:
    """Types by rates."""
    model, seeds = summary.models[0], seeds_of(summary)
    headings = ["what is missing", *percentages([0.0, *summary.rates])]
    complete = show(summary.at(model, NOTHING, 0.0), 1)
    rows = []
    for kind in summary.kinds:
        cells = [
            show(summary.at(model, kind, rate), len(summary.cells.get((model, kind, rate), [])))
            for rate in summary.rates
        ]
        rows.append([lacking(kind), complete, *cells])
    if set(KINDS) <= set(summary.kinds):
        means = [show(summary.mean_of_kinds(model, rate), seeds) for rate in summary.rates]
        if any(means):
            rows.append(["mean of the three", complete, *means])
    return Table(FIGURES[summary.metric], headings, rows, set())


def several_models(summary: Summary, kind: str | None) -> Table:
    """Models by rates for one type, or for the mean of the three types; the best of each column marked."""
    seeds = seeds_of(summary)
    columns = []
    for rate in (0.0, *summary.rates):
        if rate == 0.0:
            columns.append([summary.at(model, NOTHING, 0.0) for model in summary.models])
        elif kind is None:
            columns.append([summary.mean_of_kinds(model, rate) for model in summary.models])
        else:
            columns.append([summary.at(model, kind, rate) for model in summary.models])
    best = set()
    for x, column in enumerate(columns):
        highest = max((value.mean for value in column if value is not None), default=None)
        best |= {(y, x + 1) for y, value in enumerate(column) if value is not None and value.mean == highest}
    rows = [
        [model, *(show(column[y], seeds if x else 1) for x, column in enumerate(columns))]
        for y, model in enumerate(summary.models)
    ]
    what = "mean of the three types" if kind is None else lacking(kind)
    return Table(f"{FIGURES[summary.metric]}: {what}", ["model", *percentages([0.0, *summary.rates])], rows, best)


def everything(results: Sequence[Result]) -> Table:
    """Every figure of every model and condition, and how many samples lacked what."""
    summary = Summary(results)
    several, figures = len(summary.models) > 1, summary.figures()
    headings = [
        *(["model"] if several else []), "what is missing", "of the rows",
        *(FIGURES[name] for name in figures), "complete", "no text", "no image",
        *(f"no {name}" for name in results[0].further),
    ]  # fmt: skip
    rows = []
    for (model, kind, rate), cell in summary.cells.items():
        rows.append(
            [
                *([model] if several else []),
                lacking(kind),
                "" if kind == NOTHING else f"{100 * rate:g} %",
                *(show(summary.at(model, kind, rate, name), len(cell)) for name in figures),
                *(
                    f"{sum(getattr(r, name) for r in cell) / len(cell):,.0f}"
                    for name in ("complete", "text_missing", "image_missing")
                ),
                *(f"{sum(r.further[name] for r in cell) / len(cell):,.0f}" for name in results[0].further),
            ]
        )
    return Table("Every figure", headings, rows, set(), words=2 if several else 1)


def by_pattern(results: Sequence[Result]) -> Table | None:
    """The headline figure of the rows of each presence pattern; None where all rows of a condition have the same."""
    summary, names = Summary(results), names_in(result.patterns for result in results)
    if all(len(names_in([result.patterns])) < 2 for result in results):
        return None  # what is missing says it already
    several = len(summary.models) > 1
    rows = []
    for (model, kind, rate), cell in summary.cells.items():
        shown = []
        for name in names:
            values = [r.patterns[name][r.metric] for r in cell if r.metric in r.patterns.get(name, {})]
            shown.append(show(spread(values) if values else None, len(values)))
        share = "" if kind == NOTHING else f"{100 * rate:g} %"
        rows.append([*([model] if several else []), lacking(kind), share, *shown])
    headings = [*(["model"] if several else []), "what is missing", "of the rows", *names]
    return Table(f"{FIGURES[summary.metric]}: by what a row has", headings, rows, set(), words=2 if several else 1)


def percentages(rates: Sequence[float]) -> list[str]:
    """ "70 % missing" of 0.7."""
    return [f"{100 * rate:.4g} % missing" for rate in rates]


def percent(missing: str) -> str:
    """ "both 70 %" of "both:0.7"; "none" as it is."""
    given = Missing.parse(missing, strict=False)
    if not given.rate or given.kind == EACH:
        return str(given)
    share = (
        f", {100 * given.both_ratio:g} % of these images" if given.kind == "both" and given.both_ratio != 0.5 else ""
    )
    return f"{given.kind} {100 * given.rate:g} %{share}"
