"""The thin algebra of equation (3) and of its way back, equation (4), for both terms of W_eff at once.

Thin factors are held as rows, the transposes of what docs/design.md writes: U^T [R, out] and V^T [R, in] with
R = r_c + r_s, the common term's rows above the specific term's. Terms of one rank go through one operation each, as
[terms, r, ...]; terms of two ranks one after the other. Every product of a thin factor with a wide matrix then has the
wide one's layout.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mora_kernels.factors import Factors
from mora_kernels.numerics import NORM_FLOOR, accumulation_dtype

Thin = tuple[Tensor, Tensor, Tensor]


class Block(NamedTuple):
    """Terms of one rank, as views of a workspace.

    Attributes:
        rows: theirs among all R.
        left: of U^T [terms, r, out];  right: of [S^T; A^T] [terms, r, in];  moved: of V^T [terms, r, in].
        norms: [terms, in];  scale: [terms, 1, in].
    """

    rows: slice
    left: Tensor
    right: Tensor
    moved: Tensor
    norms: Tensor
    scale: Tensor


class Workspace:
    """The memory in which one projection's thin tensors are made, and what their way back needs.

    Attributes:
        thin: u [in], U^T [R, out], V^T [R, in], views of the flat [u | U^T | V^T].
        rows: [S^T; A^T] [R, in].
        norms, scale: of each term [terms, in]: clamped column norms, and magnitude over norm.
    """

    def __init__(self, one: Factors, flat: Tensor) -> None:
        (height, width), (common, specific) = one.weight.shape, one.ranks
        ranks = (common, specific) if specific else (common,)
        self.flat, self.thin = flat, parts(flat, height, width, sum(ranks))
        _, left, moved = self.thin
        self.rows, self.norms, self.scale = (flat.new_empty(n, width) for n in (sum(ranks), len(ranks), len(ranks)))
        self.common_left, self.common_rows = left[:common], self.rows[:common]
        self.specific_left, self.specific_rows = left[common:], self.rows[common:]
        whole = [(0, len(ranks), common)] if len({*ranks}) == 1 else [(0, 1, common), (common, 1, specific)]
        self.blocks: list[Block] = []
        for term, (start, terms, rank) in enumerate(whole):
            own, of = slice(start, start + terms * rank), slice(term, term + terms)
            mine, right, out = (part[own].view(terms, rank, -1) for part in (left, self.rows, moved))
            self.blocks.append(Block(own, mine, right, out, self.norms[of], self.scale[of, None]))


def workspace(one: Factors) -> Workspace:
    """Return a workspace of its own for one projection."""
    (height, width), dtype = one.weight.shape, accumulation_dtype(one.weight)
    length = width + (height + width) * sum(one.ranks)
    return Workspace(one, one.weight.new_empty(length, dtype=dtype))


def parts(flat: Tensor, height: int, width: int, rank: int) -> Thin:
    """Return u [in], U^T [R, out] and V^T [R, in], views of a flat [u | U^T | V^T]."""
    u, left, right = flat.split([width, rank * height, rank * width])
    return u, left.view(rank, height), right.view(rank, width)


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `tensor` in `dtype`: itself where it is so."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def magnitudes(one: Factors, dtype: torch.dtype) -> Tensor:
    """Return m_c and m_s [terms, in]."""
    common = cast(one.common_magnitude, dtype)
    if one.specific_magnitude is None:
        return common[None]
    return torch.stack([common, cast(one.specific_magnitude, dtype)])


def fill(one: Factors, gram: Tensor, work: Workspace) -> None:
    """Compute u, U and V of one projection into its workspace, in the dtype of `gram`.

    The squares of a column are summed directly: the expanded form |w|^2 + 2 alpha <w, c> + alpha^2 |c|^2 cancels.
    """
    dtype, (u, _, moved) = gram.dtype, work.thin
    weight = cast(one.weight, dtype)
    work.common_left.copy_(gram @ cast(one.out_side, dtype).T)
    work.common_rows.copy_(one.common.T)
    if one.specific_a is not None and one.specific_b is not None:
        work.specific_left.copy_(one.specific_b)
        work.specific_rows.copy_(one.specific_a.T)
    for block in work.blocks:
        for left, right, norms in zip(block.left, block.right, block.norms, strict=True):
            update = torch.addmm(weight, left.T, right, alpha=one.alpha)
            norms.copy_(update.mul_(update).sum(dim=0))
    work.norms.sqrt_().clamp_(min=NORM_FLOOR)
    work.scale.copy_(magnitudes(one, dtype)).div_(work.norms)
    u.copy_(work.scale.sum(dim=0))
    for block in work.blocks:
        block.moved.copy_(block.scale * block.right)
    moved.mul_(one.alpha)


def gradients(one: Factors, gram: Tensor, work: Workspace, grads: Thin) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Return the gradient of G and those of `one.own` from those of (u, U^T, V^T), in the dtype of `gram`."""
    dtype, rank = gram.dtype, one.common.shape[1]
    weight, (grad_u, grad_left, grad_moved) = cast(one.weight, dtype), grads
    found = []
    for block in work.blocks:
        rows = (grad_left, grad_moved) if len(work.blocks) == 1 else (grad_left[block.rows], grad_moved[block.rows])
        found.append(block_gradients(weight, block, (grad_u, *rows), one.alpha))
    left, right, grad_magnitudes = found[0] if len(found) == 1 else map(torch.cat, zip(*found, strict=True))
    common, own = left[:rank], right[:rank]
    grad_gram, moved = (common @ cast(one.out_side, dtype)).T, gram @ common
    grad_common, grad_out = (own.add_(moved).T, None) if one.common_out is None else (own.T, moved.T)
    if one.specific_a is None:
        return grad_gram, (grad_common, None, None, grad_magnitudes[0], None, grad_out)
    return grad_gram, (grad_common, right[rank:].T, left[rank:], grad_magnitudes[0], grad_magnitudes[1], grad_out)


def block_gradients(weight: Tensor, block: Block, grads: Thin, alpha: float) -> Thin:
    """Return the gradients of U^T [rows, out], of [S^T; A^T] [rows, in] and of the magnitudes [terms, in] of a block.

    `grads` are those of u [in], of U's rows and of V's rows, alpha p right; p is `block.scale`.
    """
    grad_u, grad_left, grad_moved = grads
    left, right, norms, shape = block.left, block.right, block.norms, block.left.shape[:2]
    grad_left, grad_moved = grad_left.view(left.shape), grad_moved.view(right.shape)
    grad_scale = torch.add(grad_u, (right * grad_moved).sum(dim=1), alpha=alpha)
    slope = torch.where(norms > NORM_FLOOR, block.scale[:, 0] / norms.square(), 0.0).mul_(grad_scale)[:, None]
    weighted = slope * right
    through = (weighted.flatten(0, 1) @ weight.T).view(*shape, -1)
    through = torch.baddbmm(through, torch.bmm(weighted, right.mT), left, alpha=alpha)
    pulled = (left.flatten(0, 1) @ weight).view(*shape, -1)
    pulled = torch.baddbmm(pulled, torch.bmm(left, left.mT), right, alpha=alpha)
    grad_right = (block.scale * grad_moved).addcmul_(slope, pulled, value=-1.0).mul_(alpha)
    return torch.sub(grad_left, through, alpha=alpha).flatten(0, 1), grad_right.flatten(0, 1), grad_scale / norms
