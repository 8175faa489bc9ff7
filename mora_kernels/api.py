"""The public operations: validate, pick the backend, call it. No arithmetic here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mora_kernels import backend as backends
from mora_kernels import numerics
from mora_kernels.factors import Factors
from mora_kernels.numerics import product_dtype
from mora_kernels.validation import as_tuple, check_factors, check_linear, check_tensor


def gram(factor: Tensor, backend: str = "auto") -> Tensor:
    """G = `factor^T factor`: the r x r matrix by which one modality's common factor acts on the others.

    Args:
        factor: common factor S [d, r], any floating-point dtype.
        backend: "auto", "reference", "torch" or "triton".

    Returns:
        [r, r], accumulated and returned in float32 (float64 for a float64 factor): half precision would overflow
        once factors grow a few times.

    Raises:
        TypeError, ValueError: `factor` is not a floating-point matrix; `backend` is unknown.

    Source: METHOD section 2 of MoRA (ICLR 2026, arXiv 2511.06225); docs/design.md.
    """
    # What is right passes at once: the product takes no ten times as long as its check.
    if not (isinstance(factor, Tensor) and factor.dim() == 2 and factor.is_floating_point()):
        check_tensor("factor", factor, (None, None))
    if backend != "auto":
        backends.explain(backend, factor.device)  # raises for one that cannot run here: all compute the same
    return numerics.gram(factor)


def effective_weight(
    weight: Tensor,
    common: Tensor,
    other_common: Tensor | Sequence[Tensor] | None,
    specific_a: Tensor | None,
    specific_b: Tensor | None,
    common_magnitude: Tensor,
    specific_magnitude: Tensor | None,
    alpha: float,
    backend: str = "auto",
    common_out: Tensor | None = None,
    gram_scale: float = 1.0,
) -> Tensor:
    """W_eff = m_c dir(W + alpha S G S^T) + m_s dir(W + alpha (A B)^T), equation (1).

    dir(X) divides every column of X by its L2 norm, clamped from below at 1e-5; gradients flow through the norm.

    Args:
        weight: frozen W [out, in]; gets no gradient.
        common: this modality's factor S [in, r_c].
        other_common: the other modality's factor [d', r_c], or a list of them (G is the sum of their Gram matrices),
            or None for G = I (the ablation without the Gram term).
        specific_a: A [in, r_s]. With `specific_b` and `specific_magnitude` None, the specific term is absent.
        specific_b: B [r_s, out].
        common_magnitude: m_c [in].
        specific_magnitude: m_s [in].
        alpha: plain factor of both updates, not divided by the rank.
        backend: "auto", "reference", "torch" or "triton".
        common_out: this modality's factor S_out [out, r_c] for the width of the output: the common update is then
            S_out G S^T. None: `weight` is square and S stands on both sides.
        gram_scale: plain factor of the sum of Gram matrices: 1 / len(other_common) makes G their mean. Of G = I, none.

    Returns:
        [out, in] in the dtype of `weight`; computed in float32 (float64 for float64) and rounded once.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape or device; the message names it.

    Source: MoRA (ICLR 2026, arXiv 2511.06225) and the authors' implementation; docs/design.md.
    """
    others = as_tuple(other_common)
    own = specific_a, specific_b, common_magnitude, specific_magnitude
    factors = Factors(weight, common, others, *own, alpha, common_out, gram_scale=gram_scale)
    check_factors(factors)
    return backends.load(backend, weight.device, weight.dtype).effective_weight(factors)


def mora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    common: Tensor,
    other_common: Tensor | Sequence[Tensor] | None,
    specific_a: Tensor | None,
    specific_b: Tensor | None,
    common_magnitude: Tensor,
    specific_magnitude: Tensor | None,
    alpha: float,
    dropout_p: float = 0.0,
    training: bool = True,
    backend: str = "auto",
    common_out: Tensor | None = None,
    gram_scale: float = 1.0,
) -> Tensor:
    """y = dropout(x) W_eff^T + b, equation (2): what the adapted projection computes.

    Arguments that are not listed are those of `effective_weight`.

    Args:
        x: [..., in]; leading dimensions are free, an empty batch is allowed.
        bias: b [out] or None.
        dropout_p: probability in [0, 1) of dropping an element of `x`, base path included; only when `training`.
        training: whether dropout acts.

    Returns:
        [..., out] in the dtype `nn.Linear` would return: that of `x`, or autocast's where it is enabled.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape or device; the message names it.

    Source: MoRA (ICLR 2026, arXiv 2511.06225) and the authors' implementation; docs/design.md.
    """
    others = as_tuple(other_common)
    own = specific_a, specific_b, common_magnitude, specific_magnitude
    factors = Factors(weight, common, others, *own, alpha, common_out, gram_scale=gram_scale)
    check_factors(factors)
    check_linear(x, weight, bias, dropout_p)
    dtype = product_dtype(x)
    if dtype == x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"x: got dtype {x.dtype}, expected {weight.dtype}, that of weight (or run under autocast)")
    module = backends.load(backend, weight.device, dtype)
    return module.mora_linear(x.to(dtype), bias, factors, float(dropout_p), training)
