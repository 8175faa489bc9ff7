"""`Factors`: what equation (1) is made of, as one object that every backend takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor


class Origin(NamedTuple):
    """What a weight that is made at every build is made from.

    Attributes:
        key: differs where the weight does, as far as anybody counts changes.
        tensors: to be kept alive as long as `key` is compared, and whose changes autograd counts.
    """

    key: Any
    tensors: list[Tensor]

    @classmethod
    def of(cls, tensors: list[Tensor]) -> Origin:
        """Return that of a weight which these tensors decide."""
        return cls(tuple(map(version, tensors)), tensors)


def version(tensor: Tensor) -> tuple[Any, ...]:
    """Return what changes when a value or the place of a tensor does, as far as autograd sees."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version, tensor.dtype


class Factors(NamedTuple):
    """One projection: its frozen weight and all that moves it, named as in `effective_weight`.

    `buffer` is where a group is to write W_eff; None: wherever it likes. `origin` is what `weight` was made from, where
    that was made for one build; None: it is a tensor that stays. `moves`: the tensors have their memory elsewhere at
    every use, and autograd does not count what is written there.
    """

    weight: Tensor
    common: Tensor
    other_common: Sequence[Tensor] | None
    specific_a: Tensor | None
    specific_b: Tensor | None
    common_magnitude: Tensor
    specific_magnitude: Tensor | None
    alpha: float
    common_out: Tensor | None = None
    buffer: Tensor | None = None
    gram_scale: float = 1.0
    origin: Origin | None = None
    moves: bool = False

    @property
    def out_side(self) -> Tensor:
        """S_out [out, r_c], left of G in the common update: S itself where there is no other."""
        return self.common if self.common_out is None else self.common_out

    @property
    def own(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor | None, Tensor | None]:
        """S, A, B, m_c, m_s, S_out: every trainable tensor but those that come in through G, in the order of `of`."""
        magnitudes = self.common_magnitude, self.specific_magnitude
        return self.common, self.specific_a, self.specific_b, *magnitudes, self.common_out

    @classmethod
    def of(cls, weight: Tensor, alpha: float, own: Sequence[Any]) -> Factors:
        """Return the factors whose `own` these are, G apart."""
        common, a, b, common_magnitude, specific_magnitude, common_out = own
        return cls(weight, common, None, a, b, common_magnitude, specific_magnitude, alpha, common_out)

    @property
    def ranks(self) -> tuple[int, int]:
        """(r_c, r_s); r_s is 0 without the specific term."""
        return self.common.shape[1], 0 if self.specific_a is None else self.specific_a.shape[1]

    def tensors(self) -> list[Tensor]:
        """Every trainable tensor, the shared ones included."""
        own = [self.common, *(self.other_common or ()), self.specific_a, self.specific_b]
        own += [self.common_magnitude, self.specific_magnitude, self.common_out]
        return [part for part in own if part is not None]

    def versions(self) -> tuple[Any, ...]:
        """Return what changes when a value or a place changes, as far as autograd sees.

        In-place changes through `.data` and the like are invisible to it: it is asked only within `keeping`, and on the
        way back.
        """
        if self.moves:
            return *((id(t), t._version, t.dtype) for t in self.tensors()), self.alpha, self.gram_scale
        frozen = version(self.weight) if self.origin is None else self.origin.key
        return frozen, *map(version, self.tensors()), self.alpha, self.gram_scale

    def fingerprint(self) -> tuple[Any, ...]:
        """Return `versions`, and what needs a gradient."""
        return self.versions(), tuple(t.requires_grad for t in self.tensors())

    def aliases(self) -> list[Tensor]:
        """Return tensors that keep the memory of these from being given to others."""
        return [t.detach() for t in (*self.frozen(), *self.tensors())]

    def counted(self) -> bool:
        """Whether autograd counts the changes of every tensor: it does not for those made in inference mode."""
        return not any(t.is_inference() for t in (*self.frozen(), *self.tensors()))

    def frozen(self) -> list[Tensor]:
        """Return the tensors that decide the weight."""
        return [self.weight] if self.origin is None else self.origin.tensors

    def identity(self) -> tuple[Any, ...]:
        """Return what must be the same for the values to be written where they were before."""
        tensors = tuple((id(t), t.shape, t.dtype, t.device) for t in self.tensors())
        weight = (self.weight.shape, self.weight.dtype, self.weight.device)
        return *tensors, *weight, None if self.buffer is None else self.buffer.data_ptr()


def distinct(factors: Sequence[Factors]) -> list[Tensor]:
    """Return every trainable tensor of a group once, in a fixed order."""
    return list({id(tensor): tensor for one in factors for tensor in one.tensors()}.values())


def cut(thin: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return u [in], U [out, r] and V' [in, r], views of a flat [u | U | V'] of a weight of `rows` x `columns`."""
    rank = (thin.numel() - columns) // (rows + columns)
    u, left, right = thin.split([columns, rows * rank, columns * rank])
    return u, left.view(rows, rank), right.view(columns, rank)
