"""Compiles a kernel to machine code for a GPU that is not there, and reads off what that code needs and uses."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Shared memory one block may use, in bytes, and the mnemonics of matrix instructions.
LIMITS = {
    "sm_80": 166_912, "sm_86": 101_376, "sm_89": 101_376, "sm_90": 232_448, "sm_100": 232_448, "sm_120": 101_376,
    "gfx942": 65_536,
}  # fmt: skip
TARGETS = {
    **{f"sm_{number}": GPUTarget("cuda", number, 32) for number in (80, 86, 89, 90, 100, 120)},
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
MATRIX = ("HMMA", "HGMMA", "UTCHMMA", "v_mfma")
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Usage(NamedTuple):
    """What one compiled kernel needs: registers a thread, bytes spilled a thread, shared memory a block, matrix ops."""

    registers: int
    spills: int
    shared: int
    matrix: dict[str, int]
    scalar_loads: int
    wide_loads: int


def compile_kernel(
    kernel: Any, types: Mapping[str, str], constants: Mapping[str, Any], arch: str, **options: Any
) -> Any:
    """Return the compiled kernel; every argument of `types` that is a pointer is promised 16-byte alignment."""
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    aligned = [["tt.divisibility", 16]]
    attributes = {(index,): aligned for index, name in enumerate(names) if signature[name].startswith("*")}
    source = ASTSource(
        kernel, signature, {(names.index(name),): value for name, value in constants.items()}, attributes
    )
    return triton.compile(source, target=TARGETS[arch], options={"enable_fp_fusion": True, **options})


def inspect(compiled: Any, arch: str) -> Usage:
    """Return the registers, spills, shared memory and instructions of a compiled kernel."""
    if arch.startswith("gfx"):
        text = compiled.asm["amdgcn"]
        numbers = {name: int(value) for name, value in re.findall(r"\.((?:v|a)gpr\w*_count):\s+(\d+)", text)}
        operations = Counter(re.findall(r"^\s+([a-z]\w+)", text, re.M))
        matrix = {"v_mfma": sum(count for name, count in operations.items() if name.startswith("v_mfma"))}
        counts = {width: sum(n for name, n in operations.items() if re.match(rf"(global|buffer)_load_{width}", name))
                 for width in ("dword$|dword_|ushort|short", "dwordx")}  # fmt: skip
        narrow, wide = counts.values()
        registers, spilled = numbers["vgpr_count"], 4 * numbers.get("vgpr_spill_count", 0)
        return Usage(registers, spilled, compiled.metadata.shared, {k: v for k, v in matrix.items() if v}, narrow, wide)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = run("cuobjdump", "--dump-resource-usage", file.name)
        code = run("nvdisasm", "-c", file.name)
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    listing = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)(\.[A-Z0-9_.]+)?", code)
    operations = Counter(name for name, _ in listing)
    local = operations["LDL"] + operations["STL"]
    loads = [suffix for name, suffix in listing if name in ("LDG", "LDGSTS")]
    wide = sum(".128" in suffix or ".64" in suffix for suffix in loads)
    matrix = {name: operations[name] for name in MATRIX if operations[name]}
    spilled = found["STACK"] if local else 0
    return Usage(found["REG"], spilled, compiled.metadata.shared, matrix, len(loads) - wide, wide)


def run(tool: str, *arguments: str) -> str:
    """Return what one of the tools in Triton's package prints."""
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout
