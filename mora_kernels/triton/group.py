"""`build` for many projections at once: one table on the device, one launch forward, one launch backward."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mora_kernels.factors import Factors, cut
from mora_kernels.launches import launch
from mora_kernels.numerics import dense_gradient
from mora_kernels.triton.build import fields
from mora_kernels.triton.build.backward import build_group_backward_kernel
from mora_kernels.triton.build.forward import build_group_kernel
from mora_kernels.triton.build.launchers import row_major, sizes
from mora_kernels.triton.configs import padded_rank, settings
from mora_kernels.triton.dropout import MOST_COPIES, Dropout
from mora_kernels.triton.gradient import thin_gradient

TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
LINE = 32  # elements: what a flat buffer is cut into starts at a multiple of 64 or 128 bytes


def bits(alpha: float) -> int:
    """Return the bits of a float32 as an integer of 32 bits."""
    return int.from_bytes(struct.pack("<f", alpha), "little", signed=True)


class Cut:
    """Hands out offsets into a flat buffer, aligned, and remembers its length."""

    def __init__(self) -> None:
        self.length = 0

    def take(self, elements: int) -> int:
        """Return the offset of a fresh piece of `elements`."""
        offset = self.length
        self.length += -(-elements // LINE) * LINE
        return offset


def places_of(one: Factors) -> tuple[Any, ...]:
    """Return what a table says of a projection: where its tensors are, and the numbers beside them."""
    numbers = one.weight.stride(), one.alpha, one.gram_scale
    return one.weight.data_ptr(), *numbers, *(part.data_ptr() for part in one.tensors())


def runs(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (first, count) of each run of neighbours in ascending indices."""
    for position, index in enumerate(indices):
        if position == 0 or index != indices[position - 1] + 1:
            first = index
        if position + 1 == len(indices) or indices[position + 1] != index + 1:
            yield first, index + 1 - first


class Engine:
    """The buffers of a group in one compute dtype, and the two launches that fill them.

    Buffers stay where they are for the engine's life, so the table goes to the device only when a parameter has moved,
    and a captured CUDA graph finds everything again. `factors` in the calls below must have the shapes of the first.
    """

    at_once = True  # the launch of one projection costs what the launch of all does

    def __init__(self, factors: Sequence[Factors], dtype: torch.dtype, parameters: Sequence[Tensor]) -> None:
        self.device, self.dtype = factors[0].weight.device, dtype
        self.sizes = [sizes(one.weight, one.common, one.specific_a) for one in factors]
        self.square = all(one.common_out is None for one in factors)
        self.slots = {id(tensor): index for index, tensor in enumerate(parameters)}
        self.shapes = [(tensor.shape, tensor.dtype) for tensor in parameters]
        thin, saved, grads = Cut(), Cut(), Cut()
        self.thin_offsets = [thin.take(shape.thin) for shape in self.sizes]
        self.saved_offsets = [saved.take(shape.saved) for shape in self.sizes]
        self.grad_offsets = [grads.take(tensor.numel()) for tensor in parameters]
        self.grad_length = grads.length

        def flat(length: int) -> Tensor:
            return torch.empty(length, dtype=torch.float32, device=self.device)

        self.thin_buffer, self.saved_buffer, self.grad_buffer = flat(thin.length), flat(saved.length), flat(thin.length)
        self.thin = self.pieces(self.thin_buffer)
        self.grad_slots = self.pieces(self.grad_buffer)
        self.empty = [False] * len(self.sizes)  # this gradient slot holds zeros
        self.busy = [False] * len(self.sizes)  # this one holds a gradient no backward launch has read yet
        self.effective = [
            torch.empty(one.weight.shape, dtype=dtype, device=self.device) if one.buffer is None else one.buffer
            for one in factors
        ]
        self.pointers: tuple[int, ...] = ()
        self.places: list[Any] = [None] * len(self.sizes)
        self.copies = True  # something the table points at is a copy, to be made anew for every build

    def pieces(self, buffer: Tensor) -> list[Tensor]:
        """Return each projection's piece of a flat buffer laid out like the thin tensors."""
        return [buffer[start : start + shape.thin] for start, shape in zip(self.thin_offsets, self.sizes, strict=True)]

    def build(self, factors: Sequence[Factors], indices: Iterable[int], lasting: bool = False) -> None:
        """Fill `thin` and `effective` of these projections from the factors' present values: one launch a run of them.

        The first call must be for all: the backward launch reads every projection's.
        """
        wanted = sorted(indices)
        places = {index: places_of(factors[index]) for index in wanted}
        if self.copies or any(self.places[index] != place for index, place in places.items()):
            self.read(factors)
        options = self.options("build")
        for first, count in runs(wanted):
            longest = max(shape.longest for shape in self.sizes[first : first + count])
            launch(
                build_group_kernel, (triton.cdiv(longest, options["BN"]), count),
                self.projections[first * fields.PROJECTION_FIELDS.value :], self.others,
                self.thin_buffer, self.saved_buffer,
                WEIGHT_DTYPE=TYPES[self.weights[0].dtype], FACTOR_DTYPE=TYPES[self.kind],
                EFFECTIVE_DTYPE=TYPES[self.dtype], **self.ranks(), ALIGN=self.align, SQUARE=self.square,
                **options,
            )  # fmt: skip

    def whole(self, index: int) -> Tensor:
        """Return W_eff [out, in] of the last build, in the compute dtype."""
        return self.effective[index]

    def together(self, indices: tuple[int, ...]) -> None:
        """Projections of one x go one by one: the launches that they share are those of dropout."""

    def narrow(self, indices: tuple[int, ...], rows: int) -> None:
        """W_eff comes with the build, so no product goes without it."""

    def thin_of(self, index: int, flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return u [in], U [out, r], V' [in, r] of a flat [u | U | V']."""
        return cut(flat, *self.effective[index].shape)

    def release(self, index: int) -> None:
        """Free the gradient slot of a projection: what waited there belongs to values that are gone."""
        self.busy[index] = False

    def read(self, factors: Sequence[Factors]) -> None:
        """See where the tensors are now, copy what a kernel cannot read as it is, and write the tables."""
        self.places = [places_of(one) for one in factors]
        self.weights = [row_major(one.weight) for one in factors]
        kinds = {part.dtype for one in factors for part in one.tensors()}
        kind = kinds.pop() if len(kinds) == 1 else torch.float32
        self.kind = kind if kind in TYPES else torch.float32  # the kernels accumulate in float32
        if len({weight.dtype for weight in self.weights}) > 1:
            self.weights = [weight.float() for weight in self.weights]
        # Contiguous and of one dtype: mostly the parameters themselves; kept while the table points at them.
        self.parts = {id(part): part.detach().to(self.kind).contiguous() for one in factors for part in one.tensors()}
        pairs = [(one.weight, weight) for one, weight in zip(factors, self.weights, strict=True)]
        pairs += [(part, self.parts[id(part)]) for one in factors for part in one.tensors()]
        self.copies = any(given.data_ptr() != taken.data_ptr() for given, taken in pairs)
        self.upload(factors)

    def options(self, op: str) -> dict[str, Any]:
        """Return the launch settings of `op` for this group's widest rank."""
        return settings(op, self.device, max(max(shape.common, shape.specific) for shape in self.sizes))

    def ranks(self) -> dict[str, int]:
        """Return the padded ranks all projections share in one launch."""
        return {
            "RC": padded_rank(max(shape.common for shape in self.sizes)),
            "RS": padded_rank(max(shape.specific for shape in self.sizes)),
        }

    def upload(self, factors: Sequence[Factors]) -> None:
        """Write the tables, on the device only if a pointer in them is new."""
        rows: list[list[int]] = []
        others: list[int] = []
        commons: dict[int, tuple[Tensor, list[int], list[int], list[int]]] = {}
        for index, one in enumerate(factors):
            commons.setdefault(id(one.common), (one.common, [], [], []))[1].append(index)
            for other in one.other_common or ():
                commons.setdefault(id(other), (other, [], [], []))[2].append(index)
            if not self.square:
                commons.setdefault(id(one.out_side), (one.out_side, [], [], []))[3].append(index)
            rows.append(self.projection_row(index, one, len(others) // fields.OTHER_FIELDS.value))
            for other in one.other_common or ():
                others += [self.parts[id(other)].data_ptr(), other.shape[0]]
        links: list[int] = []
        table: list[int] = []
        for tensor, owned, seen, outer in commons.values():
            table += [self.parts[id(tensor)].data_ptr(), *tensor.shape]
            for indices in (owned, seen):
                table += [len(links), len(indices)]
                links += indices
            table += [self.grad_offsets[self.slots[id(tensor)]], len(links), len(outer)]
            links += outer
        sections = [[value for row in rows for value in row], others or [0, 0], table, links]
        pointers = tuple(value for section in sections for value in (*section, -1))
        if pointers == self.pointers:
            return
        self.pointers, self.common_count = pointers, len(commons)
        self.align = self.alignment(rows)
        layout = Cut()
        starts = [layout.take(len(section)) for section in sections]
        flat = [0] * layout.length
        for start, section in zip(starts, sections, strict=True):
            flat[start : start + len(section)] = section
        data = torch.tensor(flat, dtype=torch.int64).to(self.device)
        self.projections, self.others, self.factors, self.links = (data[start:] for start in starts)

    def projection_row(self, index: int, one: Factors, others: int) -> list[int]:
        """Return the table row of a projection, in the order of `fields`."""
        weight, effective, shape = self.weights[index], self.effective[index], self.sizes[index]
        pointers = [0 if part is None else self.parts[id(part)].data_ptr() for part in one.own[:-1]]
        grads = [0 if part is None else self.grad_offsets[self.slots[id(part)]] for part in one.own[1:-1]]
        rows, *numbers = shape
        return [
            weight.data_ptr(), weight.stride(0), *numbers, *pointers, others, len(one.other_common or ()),
            effective.data_ptr(), effective.stride(0), self.thin_offsets[index], self.saved_offsets[index],
            *grads, bits(one.alpha), rows, self.parts[id(one.out_side)].data_ptr(),
            bits(1.0 if one.other_common is None else one.gram_scale),
        ]  # fmt: skip

    def alignment(self, rows: Sequence[Sequence[int]]) -> int:
        """Return 16 if every width, row stride and wide pointer is a multiple of 16, else 1."""
        checked = (fields.WEIGHT, fields.WEIGHT_STRIDE, fields.SIZE, fields.HEIGHT, fields.SPECIFIC_B,
                   fields.COMMON_MAGNITUDE, fields.SPECIFIC_MAGNITUDE, fields.EFFECTIVE,
                   fields.EFFECTIVE_STRIDE)  # fmt: skip
        return 16 if all(row[field.value] % 16 == 0 for row in rows for field in checked) else 1

    def drop(self, x: Tensor, p: float, copies: int, dtype: torch.dtype, mask: Tensor | None) -> list[Tensor]:
        """Return `copies` dropped copies of x in `dtype`, each with its own mask: one launch for every four."""
        dropped: list[Tensor] = []
        for first in range(0, copies, MOST_COPIES):
            chosen = slice(first, min(first + MOST_COPIES, copies))
            part = None if mask is None else mask[chosen]
            dropped += Dropout.apply(x, p, chosen.stop - first, dtype, part)
        return dropped

    def thin_gradient(self, index: int, dense: Tensor) -> Tensor:
        """Return the gradient of `thin[index]` from that of W_eff, in its slot if that is free."""
        out = None
        if not self.busy[index]:
            self.busy[index], self.empty[index], out = True, False, self.grad_slots[index]
        return thin_gradient(dense, self.weights[index], self.thin[index], out)

    def linear_backward(
        self, index: int, grad: Tensor, x: Tensor | None, needs_x: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of x [M, in] and of `thin[index]` (None where x is None) from dY [M, out].

        dX by the library's GEMM; a dense dW in float32, from which one kernel makes the gradient of thin.
        """
        grad_x = grad @ self.effective[index] if needs_x else None
        return grad_x, None if x is None else self.thin_gradient(index, dense_gradient(grad, x))

    def gather(self, grads: Sequence[Tensor | None]) -> Tensor:
        """Return a flat buffer with these gradients; without a copy where each is already in its slot."""
        pairs = zip(grads, self.grad_slots, strict=True)
        placed = [grad is not None and grad.data_ptr() == slot.data_ptr() for grad, slot in pairs]
        buffer, slots, empty = self.grad_buffer, self.grad_slots, self.empty
        if any(busy and not here for busy, here in zip(self.busy, placed, strict=True)):
            buffer = torch.zeros_like(self.grad_buffer)  # a slot holds what another backward pass still waits for
            slots, empty, placed = self.pieces(buffer), [True] * len(grads), [False] * len(grads)
        for index, (grad, slot) in enumerate(zip(grads, slots, strict=True)):
            if grad is None and not empty[index]:
                slot.zero_()
                empty[index] = True
            elif grad is not None and not placed[index]:
                slot.copy_(grad)
                empty[index] = False
        if buffer is self.grad_buffer:
            self.busy = [False] * len(grads)
        return buffer

    def backward(self, grads: Sequence[Tensor | None]) -> list[Tensor]:
        """Return the gradient of every parameter from those of `thin`: one launch."""
        buffer = self.gather(grads)
        out = torch.empty(self.grad_length, dtype=self.kind, device=self.device)
        options = self.options("build_backward" if self.square else "build_backward_sides")
        longest = max(shape.longest for shape in self.sizes)
        longest = max([longest, *(shape[0] for shape, _ in self.shapes if len(shape) == 2)])
        launch(
            build_group_backward_kernel,
            (triton.cdiv(longest, options["BM"]), self.common_count + len(self.sizes)),
            self.projections, self.factors, self.links, self.thin_buffer, self.saved_buffer, buffer, out,
            self.common_count,
            WEIGHT_DTYPE=TYPES[self.weights[0].dtype], FACTOR_DTYPE=TYPES[self.kind],
            **self.ranks(), ALIGN=self.align, SQUARE=self.square,
                **options,
        )  # fmt: skip
        return [
            out[start : start + shape.numel()].view(shape).to(dtype)
            for start, (shape, dtype) in zip(self.grad_offsets, self.shapes, strict=True)
        ]
