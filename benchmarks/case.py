"""What a benchmark is: one set of inputs, several providers, each checked against an oracle before any is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Shape = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """The least a case has to do, counted from its shapes: floating-point operations and bytes moved."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Provider:
    """One way to do the work of a case.

    Attributes:
        run: does it once; its result keeps nothing alive that the next call needs.
        check: raises AssertionError unless output and gradients, by name, are the oracle's; runs before any timing.
        owned: tensors that exist before `run` (inputs, parameters); what else autograd keeps was saved for backward.
        kept: tensors kept between forward and backward outside autograd's books, W_eff for instance.
        eager: whether `run` calls PyTorch's operators one by one, so that they can be counted.
        capturable: whether `run` can be captured as a CUDA graph.
        least: whether this provider has to do the case's least work: adapters of another formula may do less.
        observed: what runs under the instruments (memory, launches) in the place of `run`, where that is long.
    """

    run: Callable[[], object]
    check: Callable[[], None]
    owned: Callable[[], Iterable[Tensor]] = tuple
    kept: Callable[[], Iterable[Tensor]] = tuple
    eager: bool = True
    capturable: bool = True
    least: bool = True
    observed: Callable[[], object] | None = None


@dataclass(frozen=True)
class Case:
    """One row of a comparison: the same inputs for every provider.

    Attributes:
        level: the file of `benchmarks/levels/` it comes from.
        shape: what distinguishes it within its level, as JSON types.
        baseline: the provider the others are divided by.
        providers: by name, in the order of the table.
        absent: why a provider that belongs here does not run, by name.
        work: the least this case has to do; None where no roofline is drawn.
        square: side of the d x d tensors whose bytes are counted among the saved ones.
    """

    level: str
    shape: Shape
    baseline: str
    providers: dict[str, Provider]
    absent: dict[str, str] = field(default_factory=dict)
    work: Work | None = None
    square: int | None = None

    def check(self) -> None:
        """Raise AssertionError at the first provider whose results are not the oracle's."""
        for name, provider in self.providers.items():
            try:
                provider.check()
            except AssertionError as error:
                raise AssertionError(f"{self.level} {self.shape}, provider {name!r}: {error}") from error
