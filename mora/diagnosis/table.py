"""A diagnosis as text of at most 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from mora.diagnosis.figures import Figures, Gram, Head, Projection
from mora.system.messages import printable

COLUMNS, NAME = 80, 20
UNKNOWN = "-"


def table(diagnosis: Figures) -> str:
    """Every figure but the pictures' curves: projections, Gram matrices, embeddings and head, pairs, zero-shot."""
    seen = diagnosis.behaviour
    parts = [weights(diagnosis.projections), grams(diagnosis.grams), embeddings(diagnosis)]
    for pair in seen.pairings:
        names = " and ".join(map(printable, pair.modalities))
        parts.append(
            f"cosine of {names}, {pair.rows:,} rows: {pair.before:.3f} pretrained, {pair.after:.3f} adapted;\n"
            f"of different rows: {pair.other_before:.3f} pretrained, {pair.other_after:.3f} adapted"
        )
    if (found := seen.zero_shot) is not None:
        parts.append(
            f"zero-shot accuracy, {found.rows:,} rows, {found.classes:,} names: "
            f"{100 * found.before:.1f} % pretrained, {100 * found.after:.1f} % adapted"
        )
    return "\n\n".join(part for part in parts if part)


def weights(projections: Sequence[Projection]) -> str:
    """What became of every weight; nothing where none was adapted."""
    if not projections:
        return ""
    heads = ("", "", "start", "learned", "new:", "new:", "", "effective")
    names = ("projection", "weight", "move", "move", "common", "specific", "below 0", "rank")
    rows = [
        (
            short(one.name),
            f"{one.shape[0]}x{one.shape[1]}",
            number(one.start_move),
            number(one.learned_move),
            number(one.common_new),
            number(one.specific_new),
            negative(one),
            number(one.effective_rank if one.learned_rank is None else one.learned_rank, 1),
        )
        for one in projections
    ]
    known = all(one.learned_rank is not None for one in projections)
    what = "what was learned" if known else "W_eff - W"
    note = f"moves and new content in norms of the weight; rank of {what}"
    return "\n".join([*aligned([heads, names, *rows], words=2), note])


def negative(one: Projection) -> str:
    """The shares of magnitudes below 0, of the common and the specific term."""
    shares = [value for value in (one.common_negative, one.specific_negative) if value is not None]
    return "/".join(f"{100 * value:.0f}" for value in shares) + " %" if shares else UNKNOWN


def grams(found: Sequence[Gram]) -> str:
    """The largest and smallest eigenvalues of every Gram matrix, at the start and now."""
    if not found:
        return ""
    head = ("Gram matrix", "rank", "eigenvalues at start", "now", "distance")
    rows = [
        (short(one.name), str(len(one.spectrum)), ends(one.start), ends(one.spectrum), number(one.distance))
        for one in found
    ]
    return "\n".join(aligned([head, *rows], words=1))


def ends(spectrum: Sequence[float] | None) -> str:
    """Largest and smallest value of a spectrum."""
    return UNKNOWN if not spectrum else f"{spectrum[0]:.3g} to {spectrum[-1]:.3g}"


def embeddings(diagnosis: Figures) -> str:
    """How far every modality's embeddings drifted, and what the head makes of them."""
    drifts = {one.modality: one for one in diagnosis.behaviour.drifts}
    heads: dict[str, Head] = {one.modality: one for one in diagnosis.behaviour.heads}
    modalities = [*dict.fromkeys([*drifts, *heads])]
    if not modalities:
        return ""
    rows = [("embedding", "rows", "cosine to pretrained", "move", "head norm", "moves logits")]
    for modality in modalities:
        drift, head = drifts.get(modality), heads.get(modality)
        rows.append(
            (
                short(modality),
                UNKNOWN if drift is None else f"{drift.rows:,}",
                UNKNOWN if drift is None else number(drift.cosine, 3),
                UNKNOWN if drift is None else number(drift.move),
                UNKNOWN if head is None else number(head.norm),
                UNKNOWN if head is None else number(head.reach),
            )
        )
    return "\n".join(aligned(rows, words=1))


def aligned(rows: Sequence[Sequence[str]], words: int) -> list[str]:
    """Rows of cells as lines, the first `words` columns to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    gap = "  " if sum(widths) + 2 * len(widths) <= COLUMNS else " "
    return [
        gap.join(
            cell.ljust(width) if at < words else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def short(name: str) -> str:
    """A name on one line, its beginning cut where it is long."""
    shown = printable(name)
    return shown if len(shown) <= NAME else f"...{shown[3 - NAME :]}"


def number(value: float | None, digits: int = 2) -> str:
    """A figure, or that it is not known; one that is out of the usual in three digits."""
    if value is None:
        return UNKNOWN
    return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:.1e}"
