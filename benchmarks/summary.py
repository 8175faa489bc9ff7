"""What a run prints at its end: every case, provider by provider, or a revision beside the working tree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from benchmarks import rows
from benchmarks.regression import Comparison
from benchmarks.rows import Row


def amount(number: float | None, unit: str = "B") -> str:
    """A number with a unit's prefix, "26.7 MB"; a dash where there is none."""
    if number is None:
        return "-"
    for prefix in ("", "k", "M", "G"):
        if abs(number) < 1000 or prefix == "G":
            return f"{number:.3g} {prefix}{unit}"
        number /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """Seconds in a readable unit, three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size or unit == "us":
            return f"{seconds / size:.3g} {unit}"
    raise AssertionError


def spread(values: dict[str, float]) -> str:
    """A ratio with its p20 and p80."""
    return f"{values['median']:.2f} [{values['p20']:.2f}, {values['p80']:.2f}]"


def shape_text(row: Row) -> str:
    """A shape in words."""
    return ", ".join(str(v) if isinstance(v, str) else f"{k} {v}" for k, v in row["shape"].items())


def measured_lines(found: Iterable[Row]) -> Iterator[str]:
    """One block per case: median [p20, p80], times as fast as the baseline, memory, launches, share of the roofline."""
    for (level, _, mode), block in groupby(found, key=lambda row: (row["level"], rows.key(row["shape"]), row["mode"])):
        block = list(block)
        yield f"{level}: {shape_text(block[0])} ({mode})"
        for row in block:
            times = row["seconds"]
            share = f"{100 * row['roofline_share']:5.1f} % of the roofline" if "roofline_share" in row else ""
            launches = "" if row["launches"] is None else f"{row['launches']:5} launches"
            if row.get("kernel_seconds"):
                launches += f", {duration(row['kernel_seconds'])} in kernels"
            yield (
                f"  {row['provider']:26} {duration(times['median']):>8} "
                f"[{duration(times['p20'])}, {duration(times['p80'])}]".ljust(60)
                + f"{spread(row['times_faster']):22} x {row['baseline']:12} peak {amount(row['peak']):>8}  "
                f"saved {amount(row['saved']):>8}  {launches}  {share}"
            ).rstrip()


def compared_lines(found: Iterable[Comparison], revision: str | None) -> list[str]:
    """One line per case: the working tree against the revision, and the revision against itself."""
    found = list(found)
    if not found:
        return []
    head = f"times as fast as {revision}: median [p20, p80]; noise: {revision} against itself in the same rounds"
    lines = [
        f"  {each.ratio.median:5.2f} [{each.ratio.p20:.2f}, {each.ratio.p80:.2f}]   noise [{each.noise.p20:.2f}, "
        f"{each.noise.p80:.2f}]   {each.verdict:13} {each.name}"
        for each in found
    ]
    return [head, *lines]
