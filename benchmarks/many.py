"""Tables about more of something: more towers, and more adapters on one model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.rows import Row, shown
from benchmarks.summary import amount, duration

Markdown = Callable[[Sequence[str], list[list[str]]], str]


def towers(found: Sequence[Row], markdown: Markdown) -> str:
    """A build of N towers and its way back: time, operators and memory, and what each is of that of two towers."""
    rows = shown(found, "towers")
    two = {(r["provider"], r["shape"]["work"]): r for r in rows if r["shape"]["towers"] == 2}
    lines = []
    for row in rows:
        work, count = row["shape"]["work"], row["shape"]["towers"]
        least = two[row["provider"], work]
        seconds, before = row["seconds"]["median"], least["seconds"]["median"]
        cells = [duration(seconds), f"{seconds / before:.2f}"]
        for figure, say in (("launches", str), ("peak", amount)):
            cells += [say(row[figure]), f"{row[figure] / least[figure]:.2f}"]
        lines.append([f"{work}, {row['provider']}, N = {count}", *cells])
    return markdown(["", "time", "of N = 2", "launches", "of N = 2", "peak", "of N = 2"], lines)


def switch(found: Sequence[Row], markdown: Markdown) -> str:
    """A call after a switch of adapters, W_eff kept and not."""
    lines = []
    for row in shown(found, "switch"):
        kept = "kept" if row["shape"]["kept"] else "built at every call"
        spread = row["times_faster"]
        share = f"{1 / spread['median']:.2f} [{1 / spread['p80']:.2f}, {1 / spread['p20']:.2f}]"
        lines.append([f"W_eff {kept}: {WORDS[row['provider']]}", duration(row["seconds"]["median"]), share])
    return markdown(["", "time", "of the call without a switch"], lines)


WORDS = {
    "stays": "the call, no switch",
    "set_adapter": "`mora.set_adapter` to the other, and the call",
    "using": "the call within `mora.using` of the other",
    "set_adapter alone": "`mora.set_adapter` alone",
}
