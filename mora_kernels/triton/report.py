"""`python -m mora_kernels.triton.report`: what every kernel needs on every target, compiled here, run nowhere.

Columns: registers a thread, bytes spilled a thread, shared memory a block, matrix instructions. The float32 products of
these kernels are exact ("ieee"): on NVIDIA they are FFMA instructions and no matrix instruction is to be expected; only
settings with "tf32x3", and every setting on gfx942, use the matrix units. The large 16-bit products are the library's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One kernel in one setting on one target."""

    kernel: str
    variant: str
    target: str
    precision: str
    registers: int
    spills: int
    shared: int
    limit: int
    matrix: dict[str, int]


READ = ("common", "common_out", "specific_a", "specific_b", "common_magnitude", "specific_magnitude")
SCALARS = {"M": "i32", "N": "i32", "rank_c": "i32", "rank_s": "i32", "alpha": "fp32", "weight_stride": "i32"}
FLAT = {"thin": "*fp32", "saved": "*fp32"}
TABLES = {"projections": "*i64", "others": "*i64", "factors": "*i64", "links": "*i64", "FACTORS": "i32"}
GRADS = {"grad": "*fp32", "grad_gram": "*fp32"}
WRITTEN = ("common", "a", "b", "common_magnitude", "specific_magnitude", "out")


class Kinds(NamedTuple):
    """Dtypes of W, of the factors and of W_eff, and whether widths and pointers are multiples of 16."""

    weight: str
    factors: str
    effective: str
    aligned: bool = True

    @property
    def label(self) -> str:
        """Nothing for the first of `KINDS`, which is what most train with."""
        return "" if self == KINDS[0] else f", {'/'.join(self[:3])}{'' if self.aligned else ', odd'}"


# What can be launched: float32 under autocast (first) or as it is, weights kept in half, factors with them in half.
KINDS = (
    Kinds("fp32", "fp32", "fp16"),
    Kinds("fp32", "fp32", "fp32"),
    Kinds("fp32", "fp32", "bf16"),
    Kinds("fp16", "fp32", "fp16"),
    Kinds("bf16", "fp32", "bf16"),
    Kinds("fp16", "fp16", "fp16"),
    Kinds("bf16", "bf16", "bf16"),
    Kinds("fp32", "fp32", "fp16", aligned=False),
    Kinds("fp16", "fp32", "fp16", aligned=False),
)
RANKS = (16, 32, 64)
Variant = tuple[str, str, Any, dict[str, str], dict[str, Any], int]


def variants(every: bool = False) -> Iterator[Variant]:
    """Yield (op, label, kernel, argument types, constants, padded rank): one dtype each, or `every` one possible."""
    chosen = KINDS if every else KINDS[:1]
    for kinds, rank, square in itertools.product(chosen, RANKS, (True, False)):
        yield from builds(kinds, (rank, rank), square)
    if every:
        for ranks, square in itertools.product(itertools.permutations(RANKS, 2), (True, False)):
            yield from builds(KINDS[0], ranks, square)
    yield from gradients(chosen)
    yield from dropouts(("fp16", "fp32", "bf16") if every else ("fp16",), (1, 2, 3, 4) if every else (1, 3), every)


def builds(kinds: Kinds, ranks: tuple[int, int], square: bool) -> Iterator[Variant]:
    """The four kernels of `build`, of a group and of one projection, both ways."""
    import triton.language as tl

    from mora_kernels.triton.build import backward, forward

    names = {"fp32": tl.float32, "fp16": tl.float16, "bf16": tl.bfloat16}
    shape = {"RC": ranks[0], "RS": ranks[1], "SQUARE": square}
    rank = max(ranks)
    label = f"rank {rank}" if ranks[0] == ranks[1] else f"ranks {ranks[0]}, {ranks[1]}"
    label += ("" if square else ", sides") + kinds.label
    back_op = "build_backward" if square else "build_backward_sides"
    group = {"WEIGHT_DTYPE": names[kinds.weight], "FACTOR_DTYPE": names[kinds.factors], **shape}
    group["ALIGN"] = 16 if kinds.aligned else 1
    yield "build", label, forward.build_group_kernel, {**TABLES, **FLAT}, {
        **group, "EFFECTIVE_DTYPE": names[kinds.effective]}, rank  # fmt: skip
    yield back_op, label, backward.build_group_backward_kernel, {
        **TABLES, **FLAT, **GRADS, "out": f"*{kinds.factors}"}, group, rank  # fmt: skip
    read = dict.fromkeys(READ, f"*{kinds.factors}")
    one = {**read, **SCALARS, **FLAT, "weight": f"*{kinds.weight}"}
    yield "build", label, forward.build_one_kernel, {
        **one, "gram": "*fp32", "effective": f"*{kinds.effective}"}, shape, rank  # fmt: skip
    back = {**one, **GRADS, **{f"grad_{name}": f"*{kinds.factors}" for name in WRITTEN}}
    yield back_op, label, backward.build_one_backward_kernel, back, shape, rank


def gradients(chosen: Sequence[Kinds]) -> Iterator[Variant]:
    """The kernel of t, dU and dV, of every total rank and dtype of W."""
    from mora_kernels.triton.gradient import gradient_kernel

    for weight, rank in itertools.product(dict.fromkeys(kinds.weight for kinds in chosen), (16, 32, 64, 128)):
        types = {"dense": "*fp32", "dense_stride": "i32", "weight": f"*{weight}", "weight_stride": "i32",
                 "thin": "*fp32", "out": "*fp32", "M": "i32", "N": "i32", "rank": "i32"}  # fmt: skip
        label = f"rank {rank}" + ("" if weight == "fp32" else f", {weight}")
        yield "gradient", label, gradient_kernel, types, {"R": rank}, rank // 2


def dropouts(dtypes: Sequence[str], copies: Sequence[int], every: bool) -> Iterator[Variant]:
    """Dropout, both ways, of a float32 x; with `every` also of x in the dtype of its copies, and with a given mask."""
    from mora_kernels.triton.dropout import dropout_kernel

    for half, count, way, given in itertools.product(dtypes, copies, (False, True), (False, True)[: 1 + every]):
        for wide in dict.fromkeys(("fp32", half if every else "fp32")):
            types = {"x": f"*{wide}", **{f"y{k}": f"*{half}" for k in range(4)}, "seed_pointer": "*i64"}
            types |= {"mask": "*u8" if given else "*i64", "M": "i32", "N": "i32", "threshold": "i32", "scale": "fp32"}
            label = f"{'backward' if way else 'forward'} x{count}" + (f", {wide}/{half}" if every else "")
            flags = {"COPIES": count, "BACKWARD": way, "EXPLICIT": given}
            yield "dropout", label + (", mask" if given else ""), dropout_kernel, types, flags, 16


def rows(targets: Sequence[str], only: str = "", every: bool = False) -> Iterator[Row]:
    """Compile what is shipped for `targets` and yield what it needs."""
    from mora_kernels.triton import machine_code
    from mora_kernels.triton.configs import choose

    for op, label, kernel, types, constants, rank in variants(every):
        for target in targets:
            if only and only not in kernel.__name__:
                continue
            options = choose(op, target, rank)
            launch = {name: options.pop(name) for name in ("num_warps", "num_stages")}
            names = set(kernel.arg_names)
            types = {name: kind for name, kind in types.items() if name in names}
            compiled = machine_code.compile_kernel(kernel, types, {**constants, **options}, target, **launch)
            usage = machine_code.inspect(compiled, target)
            yield Row(
                kernel.__name__, label, target, options.get("P", "-"), usage.registers, usage.spills, usage.shared,
                machine_code.LIMITS[target], usage.matrix,
            )  # fmt: skip


def main(given: Sequence[str] | None = None) -> None:
    """Print the table, or with --json one object a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default="sm_80,sm_90,sm_100,gfx942", help="comma-separated architectures")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--every", action="store_true", help="every dtype, pair of ranks and alignment there can be")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    arguments = parser.parse_args(given)
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET is set: the interpreter has no machine code to report")
    line = "{:30} {:15} {:7} {:9} {:>5} {:>6} {:>7} {:>7}  {}"
    if not arguments.json:
        print(
            line.format("kernel", "variant", "target", "precision", "regs", "spills", "shared", "limit", "matrix ops")
        )
    for row in rows(arguments.targets.split(","), arguments.only, arguments.every):
        if arguments.json:
            print(json.dumps(row._asdict()), flush=True)
            continue
        matrix = ", ".join(f"{name} {count}" for name, count in row.matrix.items())
        print(line.format(*row[:8], matrix or "none (exact float32)" if row.precision != "-" else ""), flush=True)


if __name__ == "__main__":
    main()
