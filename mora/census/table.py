"""The census as text, and as the part of a Markdown page that stands between two markers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import metadata

from mora.census.check import Row
from mora.system.markup import plain
from mora.system.messages import aligned
from mora.version import __version__

BEGIN = "<!-- begin: python -m mora.census --write docs/models.md -->"
END = "<!-- end: python -m mora.census -->"
LIBRARIES = {"open_clip": "configurations of open_clip", "transformers": "classes of transformers"}
PACKAGES = ("open_clip_torch", "timm", "transformers", "torch")


def versions() -> dict[str, str]:
    """Of this library and of those whose models were looked at."""
    return {"mora": __version__, **{package: metadata.version(package) for package in PACKAGES}}


def total(rows: Sequence[Row]) -> str:
    """How many are adapted, in words."""
    counts = [(what, [row.adapted for row in rows if row.library == library]) for library, what in LIBRARIES.items()]
    return " and ".join(f"{sum(own)} of {len(own)} {what}" for what, own in counts if own) + " are adapted"


def text(rows: Sequence[Row]) -> str:
    """The table for a terminal; what failed at the end, by reason."""
    cells = [(row.name, "yes" if row.adapted else "no", towers(row) or "-") for row in rows]
    heads = ("model", "adapted", "towers")
    return "\n".join(
        [*aligned([heads, *cells]), "", *(f"{count} x {why}" for why, count in reasons(rows)), f"{total(rows)}."]
    )


def towers(row: Row) -> str:
    """The kinds of a model's towers, in words."""
    return " and ".join(row.towers.values())


def reasons(rows: Iterable[Row]) -> list[tuple[str, int]]:
    """Why models are not adapted, the commonest first."""
    return Counter(row.failed for row in rows if not row.adapted).most_common()


def markdown(rows: Sequence[Row]) -> str:
    """The tables of a Markdown page, one of each library."""
    of = ", ".join(f"{package} {version}" for package, version in versions().items())
    lines = [f"**{total(rows)}**, each shrunk to two blocks on random weights ({of})."]
    for library in LIBRARIES:
        own = [row for row in rows if row.library == library]
        lines += ["", f"## {library}", "", *table_of(own)] if own else []
    return "\n".join(lines)


def table_of(rows: Sequence[Row]) -> list[str]:
    """The lines of a table: one for each pair of towers and what of them is cut."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for row in rows:
        what = row.savings.replace("; ", ". ") if row.adapted else row.failed
        adapted = ("yes", row.mlp or "neither") if row.adapted else ("no", "")
        found.setdefault((towers(row), *adapted, what), []).append(row.name)
    lines = [
        "| towers | adapted | MLP as well | models | what the savings do there; or why it is not adapted |",
        "| --- | --- | --- | --- | --- |",
    ]
    ordered = sorted(found.items(), key=lambda item: (item[0][1] != "yes", -len(item[1])))
    for (kinds, yes, mlp, what), names in ordered:
        every = f"{len(names)}: {', '.join(map(plain, names))}"
        lines.append(f"| {plain(kinds)} | {yes} | {mlp} | {every} | {plain(what)} |")
    return lines


def written(page: str, table: str) -> str:
    """A page with `table` between its markers; both are added to the end of a page that has none."""
    begin, end = page.find(BEGIN), page.find(END)
    if not 0 <= begin < end:
        page = f"{page.rstrip()}\n\n{BEGIN}\n{END}\n".lstrip("\n")
        begin, end = page.find(BEGIN), page.find(END)
    return f"{page[:begin]}{BEGIN}\n{table}\n{page[end:]}"
