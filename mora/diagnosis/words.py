"""What a diagnosis says in words: one sentence for what stands out, with what to change.

Every threshold is a constant with the runs that argue for it; docs/diagnosis.md has their table. They were measured on
the built-in tiny CLIP and a task of 15 classes: on another model a sentence near its threshold is a hint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from mora.diagnosis.figures import Figures, Projection

# Median over projections of the learned move, in norms of the weight. Best validation accuracy by this move: from the
# official start 35 % at 0.02, 45 at 0.41, 66 at 0.85, 69 at 1.6, 64 at 2.9 and 62 at 6.9; from the pretrained weights
# 36 % at 0.03, 50 at 0.31, 65 at 0.59 (identity start) and 36 at 0.01, 40 at 0.18, 68 at 0.51 (LoRA).
HARDLY, FAR = 0.45, 2.2
# Share of magnitudes: 0 to 8 % up to a learning rate of 0.1, 33 % at 0.3, 49 % at 1.
NEGATIVE = 0.2
# In norms of the common update: 0.012 and 0.077 in runs that stayed below 38 %, 0.34 to 5 where it was learned.
COMMON_STILL = 0.1
# New content, in norms of the weight, below which a term does not count: specific terms had 0.002 to 0.046 in the runs
# that stayed at 35 to 45 %, 0.41 and more in those of 64 % and more.
COUNTS = 0.05
# The mean loss of an epoch over the lowest before it: 2.2 to 3.0 at learning rates of 0.3 and 1, 1.01 at most below.
RISE = 1.5
# Epochs: fewer say nothing of where the best one lies; OpenMoji's sub-groups, learned by heart, had it at 4 of 8,
# runs that generalise at 5 to 8 of 8.
FEW, EARLY = 4, 0.5
# The share of epochs after which a gain says "train longer", and that gain: three rows of the 165 that validated.
LATE, STILL_GAINING = 0.75, 0.02
# Cosine by which a row's pair stands out before it is worth a word, and the share that is left: from 0.16, good runs
# kept half and more, that of learning rate 1 nothing.
CLEAR, GAP_LEFT = 0.05, 1 / 3
# Standard errors of the accuracy before; as the rows are the same before and after, more than chance.
NOISE = 2.0
# How many times one modality moves the logits more than the other: 2 to 4.6 in good runs (texts, which name classes),
# 9.7 at learning rate 1.
ONE_SIDED = 8.0


def words(diagnosis: Figures) -> tuple[str, ...]:
    """The sentences, the most telling first."""
    found = [
        sentence
        for write in (broken, loss, moved, negative, common_start, specific_idle, best_epoch, pairs, zero_shot, heads)
        if (sentence := write(diagnosis)) is not None
    ]
    if diagnosis.unseen is not None:
        found.append(f"embeddings were not looked at: {diagnosis.unseen}")
    return tuple(found) or ("nothing stands out",)


def values(projections: Sequence[Projection], figure: str) -> list[float]:
    """A figure of every projection for which it is known."""
    found = [getattr(one, figure) for one in projections]
    return [value for value in found if value is not None]


def of_projections(count: int) -> str:
    """What a median is of."""
    return "1 projection" if count == 1 else f"median of {count:,} projections"


def broken(d: Figures) -> str | None:
    """NaN or infinity."""
    names = [one.name for one in d.projections if not math.isfinite(one.total_move)]
    return f"NaN or infinity in {', '.join(names[:3])}: lower the learning rate" if names else None


def loss(d: Figures) -> str | None:
    """A loss that rose."""
    if d.history is None:
        return None
    losses = d.history.losses
    found = [(value, min(losses[: at + 1])) for at, value in enumerate(losses)]
    peak, before = max(found, key=lambda pair: pair[0] / max(pair[1], 1e-12))
    if peak > RISE * before:
        return f"the training loss rose from {before:.3g} to {peak:.3g}: lower the learning rate{lr(d)}"
    return None


def lr(d: Figures) -> str:
    """The learning rate of the run, where it is known."""
    return "" if d.history is None or not math.isfinite(d.history.lr) else f" ({d.history.lr:g})"


def moved(d: Figures) -> str | None:
    """Whether the adapters moved enough, or too far."""
    if not d.projections:
        return None
    moves = values(d.projections, "learned_move")
    if not moves:
        total = median(values(d.projections, "total_move"))
        return (
            f"the learned move is not known, as nobody kept the adapters' start (start=...); weights are {total:.2f} "
            "of their norm from the pretrained ones, the start's own move included"
        )
    if not math.isfinite(move := median(moves)):
        return None
    size = f"({move:.2g} of the weights' norm, {of_projections(len(moves))})"
    if move < HARDLY:
        return f"adapters hardly moved {size}: raise the learning rate{lr(d)}"
    if move > FAR:
        return f"adapters moved far {size}: lower the learning rate{lr(d)}"
    return f"adapters moved well {size}"


def negative(d: Figures) -> str | None:
    """Magnitudes that changed their sign."""
    shares = {kind: values(d.projections, f"{kind}_negative") for kind in ("common", "specific")}
    means = {kind: sum(found) / len(found) for kind, found in shares.items() if found}
    if d.identity:
        means.pop("common", None)  # they begin at 0, and half of them go below
    kind = max(means, key=lambda kind: means[kind], default="")
    if not kind or not means[kind] > NEGATIVE:
        return None
    return (
        f"{100 * means[kind]:.0f} % of the {kind} magnitudes are below 0, steps longer than a column: lower the "
        "learning rate"
    )


def common_start(d: Figures) -> str | None:
    """A common update that is the one that was drawn."""
    moves, parts = values(d.projections, "common_moved"), values(d.projections, "common_new")
    if not moves or not parts or median(moves) >= COMMON_STILL or median(parts) < COUNTS:
        return None
    return (
        f"the common update is still its random start (moved by {median(moves):.2g} of its norm): raise the learning "
        'rate, or start with init="identity"'
    )


def specific_idle(d: Figures) -> str | None:
    """Specific terms that only rescale columns."""
    parts = values(d.projections, "specific_new")
    if not parts or median(parts) >= COUNTS:
        return None
    return (
        f"the specific terms only rescale columns of the weights (new content {median(parts):.2g} of their norm): "
        "raise alpha or the learning rate"
    )


def best_epoch(d: Figures) -> str | None:
    """Where the best epoch lies."""
    if d.history is None:
        return None
    best, epochs, validation = d.history.best_epoch, d.history.epochs, d.history.validation
    said = f"best epoch {best} of {epochs}"
    if len(validation) < epochs:
        return f"{said}; {len(validation)} were run"
    if epochs < FEW:
        return said
    if best <= EARLY * epochs:
        if d.history.losses[-1] < d.history.losses[min(best, len(validation)) - 1]:
            return f"{said}: later ones learned training rows alone; fewer epochs, more weight decay, or more data"
        return f"{said}: later ones helped nowhere; change the learning rate"
    late = math.ceil(LATE * epochs)
    gain = max(validation[late:]) - max(validation[:late])
    if gain > STILL_GAINING:
        return f"{said}: the last ones still gained {100 * gain:.1f} points; train longer"
    return said


def pairs(d: Figures) -> str | None:
    """Images and texts of one row that no longer find each other."""
    for pair in d.behaviour.pairings:
        before, after = pair.before - pair.other_before, pair.after - pair.other_after
        if before > CLEAR and after < GAP_LEFT * before:
            return (
                f"a row's {' and '.join(pair.modalities)} stand out from other rows' by {after:.2f} in cosine, "
                f"{before:.2f} in the pretrained model: search and zero-shot by the merged model suffer"
            )
    return None


def zero_shot(d: Figures) -> str | None:
    """Zero-shot accuracy, beyond its own noise."""
    found = d.behaviour.zero_shot
    if found is None:
        return None
    noise = NOISE * math.sqrt(found.before * (1 - found.before) / found.rows)
    change = found.after - found.before
    said = f"from {100 * found.before:.0f} to {100 * found.after:.0f} % of {found.rows:,} rows"
    if change < -max(noise, 1 / found.rows):
        return f"zero-shot accuracy fell {said}: use the merged model with its head, not by names of classes"
    if change > max(noise, 1 / found.rows):
        return f"zero-shot accuracy rose {said}"
    return None


def heads(d: Figures) -> str | None:
    """A head that hears one modality."""
    sizes = sorted((one.reach, one.modality) for one in d.behaviour.heads if one.reach is not None)
    if len(sizes) < 2 or not sizes[-1][0] > ONE_SIDED * sizes[0][0]:
        return None
    (least, quiet), (most, loud) = sizes[0], sizes[-1]
    return (
        f"{loud} moves the head's logits by {most:.3g}, {quiet} by {least:.2g}: the answer hangs on {loud}, and rows "
        "without it suffer"
    )
