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
BUILD = dict.fromkeys(READ, "F")
SCALARS = {"M": "i32", "N": "i32", "rank_c": "i32", "rank_s": "i32", "alpha": "fp32", "weight_stride": "i32"}
FLAT = {"thin": "*fp32", "saved": "*fp32"}
TABLES = {"projections": "*i64", "others": "*i64", "factors": "*i64", "links": "*i64", "FACTORS": "i32"}
GRADS = {"grad": "*fp32", "grad_gram": "*fp32"}
WRITTEN = ("common", "a", "b", "common_magnitude", "specific_magnitude", "out")
OUTS = {f"grad_{name}": "F" for name in WRITTEN}


def variants() -> Iterator[tuple[str, str, Any, dict[str, str], dict[str, Any], str, int]]:
    """Yield (op, label, kernel, argument types, constants, dtype, padded rank) of everything that is shipped."""
    import triton.language as tl

    from mora_kernels.triton.build import backward, forward
    from mora_kernels.triton.dropout import dropout_kernel
    from mora_kernels.triton.gradient import gradient_kernel

    kinds = {"WEIGHT_DTYPE": tl.float32, "FACTOR_DTYPE": tl.float32, "ALIGN": 16}
    for rank, square in itertools.product((16, 32, 64), (True, False)):
        ranks = {"RC": rank, "RS": rank, "SQUARE": square}
        label, back_op = (
            (f"rank {rank}", "build_backward") if square else (f"rank {rank}, sides", "build_backward_sides")
        )
        one = {**BUILD, **SCALARS, **FLAT, "weight": "*fp32", "gram": "*fp32", "effective": "*fp16"}
        back = {**BUILD, **SCALARS, **FLAT, **GRADS, **OUTS, "weight": "*fp32"}
        yield "build", label, forward.build_group_kernel, {**TABLES, **FLAT}, {
            **kinds, **ranks, "EFFECTIVE_DTYPE": tl.float16}, "fp16", rank  # fmt: skip
        yield "build", label, forward.build_one_kernel, one, ranks, "fp16", rank
        yield back_op, label, backward.build_group_backward_kernel, {
            **TABLES, **FLAT, **GRADS, "out": "*fp32"}, {**kinds, **ranks}, "fp16", rank  # fmt: skip
        yield back_op, label, backward.build_one_backward_kernel, back, ranks, "fp16", rank
    dense = {"dense": "*fp32", "dense_stride": "i32", "weight": "*fp32", "weight_stride": "i32", "thin": "*fp32",
             "out": "*fp32", "M": "i32", "N": "i32", "rank": "i32"}  # fmt: skip
    for rank in (16, 32, 64, 128):
        yield "gradient", f"rank {rank}", gradient_kernel, dense, {"R": rank}, "fp16", rank // 2
    for way, copies in ((False, 1), (False, 3), (True, 1), (True, 3)):
        wide, half = ("*fp32", "*fp16")
        types = {"x": wide, **{f"y{k}": half for k in range(4)}, "seed_pointer": "*i64", "mask": "*i64"}
        types |= {"M": "i32", "N": "i32", "threshold": "i32", "scale": "fp32"}
        flags = {"COPIES": copies, "BACKWARD": way, "EXPLICIT": False}
        yield "dropout", f"{'backward' if way else 'forward'} x{copies}", dropout_kernel, types, flags, "fp16", 16


def rows(targets: Sequence[str], only: str = "") -> Iterator[Row]:
    """Compile everything that is shipped for `targets` and yield what it needs."""
    from mora_kernels.triton import machine_code
    from mora_kernels.triton.configs import choose

    for op, label, kernel, types, constants, _, rank in variants():
        for target in targets:
            if only and only not in kernel.__name__:
                continue
            options = choose(op, target, rank)
            launch = {name: options.pop(name) for name in ("num_warps", "num_stages")}
            types = {name: "*fp32" if kind == "F" else kind for name, kind in types.items()}
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
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    arguments = parser.parse_args(given)
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET is set: the interpreter has no machine code to report")
    line = "{:30} {:15} {:7} {:9} {:>5} {:>6} {:>7} {:>7}  {}"
    if not arguments.json:
        print(
            line.format("kernel", "variant", "target", "precision", "regs", "spills", "shared", "limit", "matrix ops")
        )
    for row in rows(arguments.targets.split(","), arguments.only):
        if arguments.json:
            print(json.dumps(row._asdict()), flush=True)
            continue
        matrix = ", ".join(f"{name} {count}" for name, count in row.matrix.items())
        print(line.format(*row[:8], matrix or "none (exact float32)" if row.precision != "-" else ""), flush=True)


if __name__ == "__main__":
    main()
