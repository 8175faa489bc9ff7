"""The figures of a diagnosis, as data; None is what is not known or does not apply."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Projection:
    """How one adapted projection left its weight W [out, in]; norms are Frobenius norms, moves in norms of W.

    Attributes:
        name: "image.11.v".
        modality: of its tower.
        shape: (out, in).
        start_move: ||W_start - W|| / ||W||, what `patch` did before the first step.
        learned_move: ||W_now - W_start|| / ||W||.
        total_move: ||W_now - W|| / ||W||.
        common_new: part of the common term m_c dir(W + alpha C) that no rescaling of W's columns makes, in norms of W.
        specific_new: the same of the specific term.
        start_new: the same of the whole start.
        common_moved: ||C_now - C_start|| / ||C_start|| of the common update C.
        common_strength: alpha ||C|| / ||W||.
        common_negative, specific_negative: share of the magnitudes below 0.
        effective_rank: of W_now - W, `effective_rank`.
        learned_rank: of W_now - W_start.
    """

    name: str
    modality: str
    shape: tuple[int, int]
    start_move: float | None
    learned_move: float | None
    total_move: float
    common_new: float | None = None
    specific_new: float | None = None
    start_new: float | None = None
    common_moved: float | None = None
    common_strength: float | None = None
    common_negative: float | None = None
    specific_negative: float | None = None
    effective_rank: float | None = None
    learned_rank: float | None = None


@dataclass(frozen=True)
class Gram:
    """The matrix G [r_c, r_c] through which one tower's common update sees the other towers.

    Attributes:
        name: "image.10": of the updates in this block of this tower.
        modality: of the tower.
        spectrum: eigenvalues, largest first.
        start: the same at the start.
        distance: ||G_now - G_start|| / ||G_start||.
    """

    name: str
    modality: str
    spectrum: tuple[float, ...]
    start: tuple[float, ...] | None
    distance: float | None


@dataclass(frozen=True)
class Drift:
    """How far the embeddings of one modality are from the pretrained model's, over the rows of a batch.

    Attributes:
        modality: of the tower.
        rows: how many were compared.
        cosine: mean cosine of a row's embedding with its pretrained one.
        move: mean of ||e_now - e_pretrained|| / ||e_pretrained||.
    """

    modality: str
    rows: int
    cosine: float
    move: float


@dataclass(frozen=True)
class Pairing:
    """Mean cosine between the two embeddings of one row, and between those of different rows, before and after.

    Attributes:
        modalities: of the two.
        rows: that have both.
        before, after: of the same row, by the pretrained and by the adapted model.
        other_before, other_after: of different rows; the difference is what zero-shot classification lives on.
    """

    modalities: tuple[str, str]
    rows: int
    before: float
    after: float
    other_before: float
    other_after: float


@dataclass(frozen=True)
class ZeroShot:
    """Accuracy of the nearest class name, by the pretrained model and by the adapted one; shares of 1.

    Attributes:
        rows, classes: how many.
        before, after: accuracy; of rows with several labels, the share whose nearest class is one of them.
    """

    rows: int
    classes: int
    before: float
    after: float


@dataclass(frozen=True)
class Head:
    """What a linear head makes of one modality.

    Attributes:
        modality: whose columns of the head's weight.
        norm: their Frobenius norm.
        reach: root mean square over the rows of a batch of ||W_m (e - mean of e)||: how far the modality moves the
            logits; None without a batch.
    """

    modality: str
    norm: float
    reach: float | None


@dataclass(frozen=True)
class History:
    """How a run went, from its folder.

    Attributes:
        metric: what the best epoch was chosen by.
        best_epoch: from 1.
        epochs: that were planned.
        validation: the metric of each epoch that was run.
        losses: mean training loss of each epoch.
        lr: peak learning rate of the adapters.
    """

    metric: str
    best_epoch: int
    epochs: int
    validation: tuple[float, ...]
    losses: tuple[float, ...]
    lr: float


@dataclass(frozen=True)
class Behaviour:
    """What the adapted model makes of a batch, beside the pretrained one; of a head without a batch, its norms."""

    drifts: tuple[Drift, ...] = ()
    pairings: tuple[Pairing, ...] = ()
    zero_shot: ZeroShot | None = None
    heads: tuple[Head, ...] = ()


@dataclass(frozen=True)
class Figures:
    """Everything a diagnosis knows.

    Attributes:
        method: one of `mora.runs.methods.METHODS`.
        identity: whether MoRA's adapters started as the pretrained model.
        projections: what became of each adapted weight; empty for methods without any.
        grams: of each adapted block, where the method has them.
        behaviour: embeddings, pairs, zero-shot accuracy and head.
        history: how the run went; None without a run.
        unseen: why no rows were looked at, where they should have been.
    """

    method: str
    identity: bool
    projections: tuple[Projection, ...]
    grams: tuple[Gram, ...]
    behaviour: Behaviour
    history: History | None = None
    unseen: str | None = None
