"""What `mora demo --audio` found, as a table of every subset that is there, a picture and words, from its rows."""

from __future__ import annotations

from typing import Any

from mora.demo import curve
from mora.demo.methods import LABELS
from mora.demo.outcome import count
from mora.demo.recordings import MODALITIES
from mora.evaluation.grid import NOTHING
from mora.evaluation.tables import Table
from mora.metrics import Spread, spread
from mora.sweeping.outcome import percent

ANY = "any"


def subset(kind: str) -> str:
    """What is there where `kind` is taken from all rows: "image, text" of "audio"."""
    lost = [] if kind == NOTHING else kind.split("+")
    return ", ".join(name for name in MODALITIES if name not in lost)


def kinds_of(rows: dict[str, Any]) -> list[str]:
    """What was taken from all rows: single modalities left first, nothing taken last."""
    kinds = dict.fromkeys(one["kind"] for one in rows["runs"][0]["results"] if one["kind"] != ANY)
    order = {name: place for place, name in enumerate(MODALITIES)}
    there = {kind: subset(kind).split(", ") for kind in kinds}
    return sorted(kinds, key=lambda kind: (len(there[kind]), [order[name] for name in there[kind]]))


def values(rows: dict[str, Any], method: str, kind: str, rate: float | None = None) -> list[float]:
    """The accuracies of a method by seed; a rate is needed of "any" alone."""
    return [
        one["figures"]["accuracy"]
        for run in rows["runs"]
        if run["method"] == method
        for one in run["results"]
        if one["kind"] == kind and (rate is None or abs(one["rate"] - rate) < 1e-9)
    ]


def paired(rows: dict[str, Any], method: str, other: str, kinds: list[str]) -> Spread:
    """`method` minus `other`, seed by seed, mean over the kinds."""
    gaps = [
        [a - b for a, b in zip(values(rows, method, kind), values(rows, other, kind), strict=True)] for kind in kinds
    ]
    return spread([sum(column) / len(column) for column in zip(*gaps, strict=True)])


def table(rows: dict[str, Any]) -> Table:
    """A row per subset that is there, a column per method, the best in bold."""
    methods, seeds = list(rows["settings"]["methods"]), rows["settings"]["seeds"]
    lines, best = [], set()
    for y, kind in enumerate(kinds_of(rows)):
        found = [spread(values(rows, method, kind)) for method in methods]
        lines.append([subset(kind), *(percent(one, seeds) for one in found)])
        highest = max(one.mean for one in found)
        best |= {(y, x) for x, one in enumerate(found, 1) if one.mean == highest}
    return Table(
        f"Test accuracy in %, {count(seeds, 'seed')}",
        ["what is there", *(LABELS[method] for method in methods)], lines, best,
    )  # fmt: skip


def said(rows: dict[str, Any]) -> list[str]:
    """MoRA beside every other method, paired by seed: a sentence each."""
    methods, kinds = list(rows["settings"]["methods"]), kinds_of(rows)
    lines = []
    for other in (method for method in methods if method != "mora" and "mora" in methods):
        points = ", ".join(
            f"{100 * paired(rows, 'mora', other, [kind]).mean:+.1f} with {subset(kind)}" for kind in kinds
        )
        gap = paired(rows, "mora", other, kinds)
        word = "more than" if abs(gap.mean) > gap.deviation and rows["settings"]["seeds"] > 1 else "within"
        lines.append(
            f"MoRA minus {LABELS[other]}, paired by seed, points: {points}; mean {100 * gap.mean:+.1f} ± "
            f"{100 * gap.deviation:.1f}, {word} the spread over seeds."
        )
    return lines


def heard(rows: dict[str, Any]) -> Table:
    """How well the tower finds a recording's own stamp, beside chance."""
    lines = []
    for part in ("train", "validation"):
        of = rows["tower"][part]
        figures = [f"{100 * of[f'{name} at {k}']:.1f}" for name in ("text", "image") for k in (1, 5)]
        chance = f"{100 * of['chance at 1']:.1f} / {100 * of['chance at 5']:.1f}"
        lines.append([part, f"{of['recordings']:,}", f"{of['stamps']:,}", *figures, chance])
    headings = ["part", "recordings", "stamps", "text at 1", "text at 5", "image at 1", "image at 5", "chance at 1 / 5"]
    return Table("Retrieval by recording, %", headings, lines, set())


def markdown(rows: dict[str, Any]) -> str:
    """The report."""
    settings, tower = rows["settings"], rows["tower"]
    sections = [
        "# mora demo --audio",
        "![accuracy by what is there, and over the share missing](audio.png)",
        f"Test accuracy in %, mean ± standard deviation over {count(settings['seeds'], 'seed')}; "
        f"{rows['runs'][0]['results'][0]['rows']:,} test rows, trained with {settings['missing']}.",
        table(rows).markdown(),
        "\n".join(f"- {line}" for line in said(rows)),
        f"The audio tower: {tower['recipe']['epochs']} epochs, {tower['seconds']:.0f} s. How often the stamp of a "
        "recording is the nearest, or among the five nearest, of all of its part, in %:",
        heard(rows).markdown(),
        f"Command: `{rows['command']}`. " + ", ".join(f"{name} {one}" for name, one in rows["versions"].items()),
    ]
    return "\n\n".join(sections) + "\n"


def draw(rows: dict[str, Any]) -> bytes:
    """A PNG: accuracy by subset that is there, and over the share of all inputs that is missing."""
    figure, (left, right) = curve.canvas(2, 11.4)
    methods, kinds = list(rows["settings"]["methods"]), kinds_of(rows)
    rates = sorted({one["rate"] for one in rows["runs"][0]["results"] if one["kind"] == ANY})
    for place, method in enumerate(methods):
        colour, marker = curve.LOOKS[method]
        found = [spread(values(rows, method, kind)) for kind in kinds]
        at = [x + 0.18 * (place - (len(methods) - 1) / 2) for x in range(len(kinds))]
        left.errorbar(
            at, [100 * one.mean for one in found], yerr=[100 * one.deviation for one in found], label=LABELS[method],
            color=colour, marker=marker, linestyle="", capsize=3, markersize=5,
        )  # fmt: skip
        over = [spread(values(rows, method, NOTHING)), *(spread(values(rows, method, ANY, rate)) for rate in rates)]
        shares = [0.0, *(100 * rate for rate in rates)]
        right.plot(shares, [100 * one.mean for one in over], color=colour, marker=marker, markersize=4)
        low, high = ([100 * (one.mean + sign * one.deviation) for one in over] for sign in (-1, 1))
        right.fill_between(shares, low, high, color=colour, alpha=0.15, linewidth=0)
    left.set_xticks(range(len(kinds)), [subset(kind).replace(", ", "\n") for kind in kinds], fontsize=9)
    left.set_xlabel("what is there in the test part")
    right.set_xlabel("missing in the test part, % of all inputs")
    left.set_ylabel("accuracy, %")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    figure.suptitle(
        f"pictures, texts and recordings, trained with {rows['settings']['missing']}: mean ± standard deviation over "
        f"{count(rows['settings']['seeds'], 'seed')}", x=0.01, ha="left", fontsize=11,
    )  # fmt: skip
    return curve.png(figure)
