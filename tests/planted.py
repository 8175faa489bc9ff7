"""`python -m tests.planted`: bugs planted into the kernels one by one; the tests must catch every one.

Each is one replacement in one file of a copy of the project, on which the tests of the kernels run until one fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
COPIED = ("mora", "mora_kernels", "tests", "pyproject.toml")
TESTS = (
    "tests/triton/test_dropout.py",
    "tests/triton/test_alignment.py",
    "tests/kernels",
    "tests/triton/test_functional.py",
    "tests/triton/test_widths.py",
    "tests/triton/test_operators.py",
    "tests/triton/test_offsets.py",
)


class Bug(NamedTuple):
    """`old` stands once in the file at `path` below `mora_kernels/`; `new` in its place is wrong.

    `first` are tests to begin with, because they are about it; after them come all others.
    """

    name: str
    path: str
    old: str
    new: str
    first: tuple[str, ...] = ()


WEIGHT, GROUP, OFFSETS = (
    "tests/triton/test_functional.py::test_effective_weight",
    "tests/kernels/test_group.py",
    "tests/triton/test_offsets.py",
)
GRADIENTS = f"{GROUP}::test_every_gradient_of_eight_projections"
STALE = f"{GROUP}::test_a_step_between_forward_and_backward_is_an_error"
SWAPPED = f"{GROUP}::test_averages_swapped_in_and_out_between_forward_and_backward"
KINDS = "tests/kernels/test_kinds.py"
TORCH_WEIGHT, TORCH_DROPOUT = ("tests/kernels/test_weight.py",), ("tests/kernels/test_dropout.py",)


DROPOUT, FORWARD, SHARES, BACKWARD = (
    f"triton/{name}.py" for name in ("dropout", "build/forward", "build/shares", "build/backward")
)
BUGS = [
    Bug(
        "the group's dropout draws another mask on the way back",
        DROPOUT,
        "dropout_backward(grads, seed, ctx.p",
        "dropout_backward(grads, seed + 1, ctx.p",
    ),
    Bug("one mask for q and v", DROPOUT, "place * 0 + copy", "place * 0"),
    Bug(
        "one mask for all rows",
        DROPOUT,
        "line = rows[:, None].to(tl.uint32)",
        "line = (rows[:, None] * 0).to(tl.uint32)",
    ),
    Bug(
        "one mask for every block of columns",
        DROPOUT,
        "lanes = tl.program_id(1) * BN + tl.arange(0, BN)",
        "lanes = tl.arange(0, BN)",
    ),
    Bug("one mask for the quarters of a tile", DROPOUT, "numbers[quarter]", "numbers[0]"),
    Bug("p wrong by 2 %", DROPOUT, "round(p * 2**31)", "round(1.02 * p * 2**31)"),
    Bug("what survives is not scaled", DROPOUT, "1 / (1 - p), COPIES", "1.0, COPIES"),
    Bug(
        "the norm is not clamped",
        FORWARD,
        "tl.maximum(tl.sqrt_rn(squares), FLOOR)",
        "tl.maximum(tl.sqrt_rn(squares), 1e-30)",
    ),
    Bug("a gradient through a clamped norm", SHARES, "tl.where(n > FLOOR,", "tl.where(n > 0.0,"),
    Bug(
        "a waiting gradient is overwritten",
        "triton/group.py",
        "self.busy[index], self.empty[index], out = True, False",
        "self.busy[index], self.empty[index], out = False, False",
    ),
    Bug(
        "16 bytes are promised that are not there",
        "triton/group.py",
        "return 16 if all(row[field.value] % 16 == 0 for row in rows for field in checked) else 1",
        "return 16",
    ),
    Bug(
        "G of the last rows alone",
        FORWARD,
        "gram = tl.dot(tl.trans(part), part, gram, input_precision=P)",
        "gram = tl.dot(tl.trans(part), part, input_precision=P)",
        (GRADIENTS,),
    ),
    Bug(
        "alpha left out of a scale's gradient",
        SHARES,
        "dp = grad_u + alpha * tl.sum",
        "dp = grad_u + tl.sum",
        (WEIGHT,),
    ),
    Bug("dG is taken for symmetric", BACKWARD, "* (one + tl.trans(one))", "* (2.0 * one)", (GRADIENTS,)),
    Bug(
        "32-bit offsets into W",
        FORWARD,
        "base + rows.to(tl.int64)[:, None] * stride",
        "base + rows[:, None] * stride.to(tl.int32)",
        (OFFSETS,),
    ),
    Bug(
        "the identity without a Gram term is left out",
        FORWARD,
        "(count == 0), 1.0, 0.0)",
        "(count == 0), 0.0, 0.0)",
        (GRADIENTS,),
    ),
    Bug(
        "W_eff in the dtype of W",
        "triton/group.py",
        "torch.empty(one.weight.shape, dtype=dtype,",
        "torch.empty(one.weight.shape, dtype=one.weight.dtype,",
        (f"{GROUP}::test_autocast_reads_the_weights_once_in_half_precision",),
    ),
    Bug(
        "the last row of W_eff is left unwritten",
        FORWARD,
        "mask=(rows < M)[:, None] & inside[None, :])",
        "mask=(rows < M - 1)[:, None] & inside[None, :])",
        (WEIGHT,),
    ),
    Bug(
        "the last gradient of u is left unwritten",
        "triton/gradient.py",
        "tl.store(out + own, total, mask=own < N)",
        "tl.store(out + own, total, mask=own < N - 1)",
        (WEIGHT,),
    ),
    Bug(
        "the last row of dropped x is left unwritten",
        DROPOUT,
        "tl.where(kept, total, 0.0).to(ys[copy].dtype.element_ty), mask=inside)",
        "tl.where(kept, total, 0.0).to(ys[copy].dtype.element_ty), mask=inside & (rows < M - 1)[:, None])",
        ("tests/triton/test_functional.py::test_dropout_with_an_explicit_mask_is_exact",),
    ),
    Bug(
        "torch: W u is left out of what is written in place",
        "torch/kinds.py",
        "torch.mul(weight, u, out=effective)",
        "pass",
        (KINDS,),
    ),
    Bug(
        "torch: a column that cancels is not summed itself",
        "torch/norms.py",
        "if is_lost:",
        "if False:",
        (f"{KINDS}::test_a_column_that_cancels_is_summed_itself",),
    ),
    Bug(
        "torch: half of what the update does to a norm",
        "torch/norms.py",
        "(block(frozen) + moved)",
        "(2 * block(frozen))",
        TORCH_WEIGHT,
    ),
    Bug("torch: few rows without u", "torch/linear.py", "x * u[:, None], x.expand", "x, x.expand", (KINDS,)),
    Bug(
        "torch: copies of W are not made again",
        "torch/kinds.py",
        "return torch.stack(given, out=self.weights)",
        "return self.weights if self.weights.any() else torch.stack(given, out=self.weights)",
        (f"{GROUP}::test_every_way_to_change_a_tensor_is_seen",),
    ),
    Bug(
        "torch: W_eff of the build before",
        "torch/group.py",
        "self.batches[index], self.composed[index] = batch, copied",
        "self.batches[index], self.composed[index] = batch, copied or self.composed[index]",
        (KINDS,),
    ),
    Bug(
        "torch: a gradient through a clamped norm",
        "torch/terms.py",
        "torch.where(norms > NORM_FLOOR,",
        "torch.where(norms > 0,",
        TORCH_WEIGHT,
    ),
    Bug(
        "torch: the norm is not clamped",
        "torch/terms.py",
        ".clamp_(min=NORM_FLOOR)",
        ".clamp_(min=1e-30)",
        TORCH_WEIGHT,
    ),
    Bug(
        "torch: dG is taken for symmetric",
        "torch/group.py",
        "found.gram + found.gram.mT",
        "2 * found.gram",
        (GRADIENTS,),
    ),
    Bug(
        "torch: no scale on dropout's way back",
        "torch/dropout.py",
        "return masked(grad, mask, ctx.scale), None",
        "return masked(grad, mask, 1.0), None",
        TORCH_DROPOUT,
    ),
    Bug(
        "torch: p wrong by 2 %",
        "torch/dropout.py",
        "round((1 - p) * STEPS)",
        "round((1 - 1.02 * p) * STEPS)",
        TORCH_DROPOUT,
    ),
    Bug(
        "kept values are not compared",
        "built.py",
        "return one.counted() and self.values.keys[index] == one.fingerprint()",
        "return True",
        (f"{GROUP}::test_built_once_until_a_factor_changes",),
    ),
    Bug("a graph reads values built after it", "built.py", "if build != self.builds[index]:", "if False:", (SWAPPED,)),
    Bug(
        "factors may change before the way back",
        "built.py",
        "if not later and self.factors[index].versions() != self.keys[index][0]:",
        "if False:",
        (STALE,),
    ),
]


def planted(bug: Bug, folder: Path) -> None:
    """Copy the project into `folder` with a bug in it."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    path = folder / "mora_kernels" / bug.path
    text = path.read_text(encoding="utf-8")
    if text.count(bug.old) != 1:
        raise ValueError(f"{bug.name}: {bug.old!r} stands {text.count(bug.old)} times in {bug.path}, expected once")
    path.write_text(text.replace(bug.old, bug.new), encoding="utf-8")


def caught(bug: Bug) -> tuple[str, float]:
    """(the test that failed, seconds); "" where all pass."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        planted(bug, folder)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *bug.first, *TESTS]
        found = subprocess.run(
            command, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True, text=True
        )
    if found.returncode == 0:
        return "", time.perf_counter() - began
    if found.returncode != 1:
        raise RuntimeError(
            f"{bug.name}: pytest ended with {found.returncode}\n{found.stdout[-2000:]}{found.stderr[-2000:]}"
        )
    failed = [line.split()[1] for line in found.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return failed[0] if failed else "?", time.perf_counter() - began


def main() -> int:
    """Plant every bug, or those that fit `--only`, and say which test caught it; 1 if one was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.planted", description=__doc__)
    parser.add_argument("--only", default="*", metavar="PATTERN", help='bugs to plant, such as "torch*"')
    only = parser.parse_args().only
    missed = 0
    chosen = [bug for bug in BUGS if fnmatchcase(bug.name, only)]
    for bug in chosen:
        test, seconds = caught(bug)
        missed += not test
        print(f"{seconds:6.1f} s  {bug.name}: {test or 'MISSED'}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} caught.")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
