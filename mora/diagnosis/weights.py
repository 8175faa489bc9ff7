"""What became of every adapted weight since its start, by dense algebra in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

import mora_kernels
from mora.adapters.record import Adapters
from mora.diagnosis.figures import Gram, Projection
from mora.methods.linear import MoraLinear
from mora.methods.start import column_norms

Tensors = Mapping[str, Tensor]  # of adapters, by the names of `mora.adapter_state_dict`


class Terms(NamedTuple):
    """Equation (1) in its parts, float64: C, m_c dir(W + alpha C), m_s dir(W + alpha P)."""

    update: Tensor
    common: Tensor
    specific: Tensor

    @property
    def weight(self) -> Tensor:
        """W_eff."""
        return self.common + self.specific


@torch.no_grad()
def measure(
    adapters: Adapters, start: Tensors | None, ranks: bool = True
) -> tuple[tuple[Projection, ...], tuple[Gram, ...]]:
    """The figures of every projection and of every Gram matrix of a patched model.

    Args:
        adapters: the model's record.
        start: checked tensors at the start, `known_start`; None where the common factors' start is not known.
        ranks: compute effective ranks as well: two singular value decompositions for each projection.
    """
    projections, grams = [], []
    for position, (common, pair) in enumerate(zip(adapters.common_factors(), adapters.pairs, strict=True)):
        now = {name: common.of(name) for name in common.names}
        first = None if start is None else {name: start[f"common.{position}.{name}"] for name in common.names}
        for modality, slot in pair.items():
            own = list(slot.named_projections())
            coupled = [(name, each) for name, each in own if isinstance(each, MoraLinear)]
            if coupled and coupled[0][1].gram:
                grams.append(coupling(f"{modality}.{slot.layer}", coupled[0][1], now, first))
            projections += [one(name, each, now, first, start, ranks) for name, each in coupled]
            if not coupled:
                apart = [(name, exact(each.weight), each) for name, each in own]
                projections += [moved(name, modality, w, each.effective_weight(w), ranks) for name, w, each in apart]
    return tuple(projections), tuple(grams)


def one(
    name: str, projection: MoraLinear, now: Tensors, first: Tensors | None, start: Tensors | None, ranks: bool
) -> Projection:
    """The figures of one projection; `now` and `first` are the common factors of its pair by their own names."""
    weight, norm = exact(projection.weight), float(exact(projection.weight).norm())
    own = {kind: value for kind in KINDS if (value := getattr(projection, kind)) is not None}
    terms, begun = terms_of(projection, now, own), None
    if first is not None or (projection.identity and start is None):
        own = started(projection, name, start or {})
        begun = terms_of(projection, now if first is None else first, own)
    known = begun is not None and first is not None
    learned = None if begun is None else terms.weight - begun.weight
    total = terms.weight - weight
    return Projection(
        name=name,
        modality=projection.modality,
        shape=(projection.out_features, projection.in_features),
        start_move=None if begun is None else share((begun.weight - weight).norm(), norm),
        learned_move=None if learned is None else share(learned.norm(), norm),
        total_move=share(total.norm(), norm),
        common_new=share(outside(terms.common, weight).norm(), norm),
        specific_new=None if projection.specific_a is None else share(outside(terms.specific, weight).norm(), norm),
        start_new=None if begun is None else share(outside(begun.weight, weight).norm(), norm),
        common_moved=distance(terms.update, begun.update) if known and begun is not None else None,
        common_strength=share(abs(projection.alpha) * terms.update.norm(), norm),
        common_negative=negative(projection.common_magnitude),
        specific_negative=None if projection.specific_magnitude is None else negative(projection.specific_magnitude),
        effective_rank=effective_rank(total) if ranks else None,
        learned_rank=None if learned is None or not ranks else effective_rank(learned),
    )


def moved(name: str, modality: str, before: Tensor, after: Tensor, ranks: bool) -> Projection:
    """The figures of a projection whose start is the pretrained weight [out, in], float64: of LoRA and DoRA."""
    move = after - before
    length = share(move.norm(), float(before.norm()))
    rank = effective_rank(move) if ranks else None
    return Projection(
        name=name,
        modality=modality,
        shape=(before.shape[0], before.shape[1]),
        start_move=0.0,
        learned_move=length,
        total_move=length,
        effective_rank=rank,
        learned_rank=rank,
    )


KINDS = ("specific_a", "specific_b", "common_magnitude", "specific_magnitude")


def started(projection: MoraLinear, name: str, start: Tensors) -> dict[str, Tensor]:
    """The projection's own tensors at its start: those given, else as `patch` sets them."""
    norm = column_norms(projection.weight)
    rule = {
        "specific_a": projection.specific_a,  # of no effect beside a B that is zero
        "specific_b": None if projection.specific_b is None else torch.zeros_like(projection.specific_b),
        "common_magnitude": torch.zeros_like(norm) if projection.identity else norm,
        "specific_magnitude": None if projection.specific_magnitude is None else norm,
    }
    return {kind: start.get(f"{name}.{kind}", value) for kind, value in rule.items() if value is not None}


def terms_of(projection: MoraLinear, common: Tensors, own: Tensors) -> Terms:
    """The terms of a projection with the given tensors: `common` by the names of its factors, `own` by kind."""
    weight = exact(projection.weight)
    inward = exact(common[projection.common_name])
    outward = inward if projection.common_out_name is None else exact(common[projection.common_out_name])
    names = projection.common.modalities
    others: list[Tensor] | None = [exact(common[other]) for other in names if other != projection.modality] or [
        exact(common[projection.modality])
    ]
    if not projection.gram:
        others = None if projection.fixed_root is None else [exact(projection.fixed_root)]
    coupled = torch.eye(inward.shape[1], dtype=inward.dtype)
    if others is not None:
        coupled = projection.gram_scale * total(others)
    zero = torch.zeros(weight.shape[1], dtype=weight.dtype)
    specific = [exact(own[kind]) if kind in own else None for kind in ("specific_a", "specific_b")]
    shared = (weight, inward, others)

    def built(common_magnitude: Tensor, specific_magnitude: Tensor | None) -> Tensor:
        a, b = (None, None) if specific_magnitude is None else specific
        return mora_kernels.effective_weight(
            *shared, a, b, common_magnitude, specific_magnitude, projection.alpha,
            backend="reference", common_out=outward, gram_scale=projection.gram_scale,
        )  # fmt: skip

    apart = torch.zeros_like(weight)
    if "specific_magnitude" in own:
        apart = built(zero, exact(own["specific_magnitude"]))
    return Terms(outward @ coupled @ inward.T, built(exact(own["common_magnitude"]), None), apart)


def coupling(name: str, projection: MoraLinear, now: Tensors, first: Tensors | None) -> Gram:
    """The Gram matrix of one tower in a pair of blocks, as one of its projections sees it."""
    modality, scale = projection.modality, projection.gram_scale
    names = [other for other in projection.common.modalities if other != modality] or [modality]
    matrix = scale * total([exact(now[other]) for other in names])
    before = None if first is None else scale * total([exact(first[other]) for other in names])
    return Gram(
        name=name,
        modality=modality,
        spectrum=eigenvalues(matrix),
        start=None if before is None else eigenvalues(before),
        distance=None if before is None else distance(matrix, before),
    )


def total(factors: list[Tensor]) -> Tensor:
    """The sum of S^T S [r_c, r_c] over factors."""
    return torch.stack([factor.T @ factor for factor in factors]).sum(dim=0)


def eigenvalues(matrix: Tensor) -> tuple[float, ...]:
    """Of a symmetric matrix, largest first; NaN where it is not finite."""
    if not bool(torch.isfinite(matrix).all()):
        return (float("nan"),) * len(matrix)
    return tuple(torch.linalg.eigvalsh(matrix).flip(0).tolist())


def outside(term: Tensor, weight: Tensor) -> Tensor:
    """What of each column of a term is at a right angle to that of W: no rescaling of W's columns makes it."""
    squares = weight.square().sum(dim=0)
    along = (term * weight).sum(dim=0) / squares.where(squares > 0, torch.ones_like(squares))
    return term - weight * along


def effective_rank(matrix: Tensor) -> float:
    """exp of the entropy of the singular values as shares of their sum (Roy and Vetterli 2007); 0 for a zero matrix."""
    if not bool(torch.isfinite(matrix).all()):
        return float("nan")
    values = torch.linalg.svdvals(matrix)
    shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return float(torch.special.entr(shares).sum().exp()) if bool(values.any()) else 0.0


def distance(now: Tensor, before: Tensor) -> float:
    """||now - before|| / ||before||."""
    return share((now - before).norm(), float(before.norm()))


def share(part: Tensor, norm: float) -> float:
    """A norm in units of another; 0 of nothing is 0."""
    return float(part) / norm if norm > 0 else float("inf") if float(part) > 0 else 0.0


def negative(magnitudes: Tensor) -> float:
    """The share of magnitudes below 0."""
    return float((magnitudes < 0).double().mean())


def exact(tensor: Tensor) -> Tensor:
    """A copy in float64 on the CPU: every float there is fits, and any device has it."""
    return tensor.detach().cpu().double()
