"""Launch settings, frozen: no autotuning at run time; an architecture that is not listed gets the default.

No GPU was at hand when this table was made. Its evidence is compile-only: `python -m mora_kernels.triton.report` builds
every kernel in every setting below for sm_80, sm_90, sm_100 and gfx942, and a test asserts no spills and shared memory
within the device's limit (for sm_90 by default, `MORA_TARGETS` names others). BM, BN: tile; P: precision of float32
products ("ieee" is exact everywhere; "tf32x3" runs on the tensor cores of NVIDIA with about 2^-22 relative error and is
used only where the result meets 16-bit operands).
"""

from __future__ import annotations

from typing import Any

import torch

# op -> padded rank -> settings, on an architecture that BY_ARCH does not list.
# Rank 64 backward: exact float32 spills 88 to 376 bytes in every tile tried, "tf32x3" none.
DEFAULT: dict[str, dict[int, dict[str, Any]]] = {
    "build": {
        16: {"BM": 64, "BN": 32, "P": "ieee", "num_warps": 4, "num_stages": 1},
        32: {"BM": 32, "BN": 32, "P": "ieee", "num_warps": 8, "num_stages": 1},
        64: {"BM": 32, "BN": 16, "P": "ieee", "num_warps": 8, "num_stages": 1},
    },
    "build_backward": {
        16: {"BM": 16, "BN": 32, "P": "ieee", "num_warps": 4, "num_stages": 1},
        32: {"BM": 16, "BN": 16, "P": "ieee", "num_warps": 8, "num_stages": 1},
        64: {"BM": 16, "BN": 16, "P": "tf32x3", "num_warps": 8, "num_stages": 1},
    },
    # Of weights that are not square: 4 warps spill 8 to 24 bytes at rank 16.
    "build_backward_sides": {
        16: {"BM": 16, "BN": 32, "P": "ieee", "num_warps": 8, "num_stages": 1},
        32: {"BM": 16, "BN": 16, "P": "ieee", "num_warps": 8, "num_stages": 1},
        64: {"BM": 16, "BN": 16, "P": "tf32x3", "num_warps": 8, "num_stages": 1},
    },
    "gradient": {
        16: {"BLOCK": 16, "STEP": 64, "P": "ieee", "num_warps": 4, "num_stages": 1},
        32: {"BLOCK": 16, "STEP": 64, "P": "ieee", "num_warps": 8, "num_stages": 1},
        64: {"BLOCK": 16, "STEP": 32, "P": "ieee", "num_warps": 8, "num_stages": 1},
    },
    "dropout": {16: {"BM": 8, "BN": 64, "num_warps": 4, "num_stages": 1}},
}
# architecture -> op -> padded rank -> what differs from the default.
BY_ARCH: dict[str, dict[str, dict[int, dict[str, Any]]]] = {
    "sm_90": {"build": {16: {"num_warps": 8}}},  # 4 warps spill 16 bytes where W_eff is float32
    "gfx942": {
        "build": {32: {"num_warps": 4}},  # 8 warps leave 256 registers a thread: 84 bytes spilled
        "build_backward": {64: {"BN": 32, "P": "ieee"}},  # exact float32 on the matrix units; no tf32x3 there
        "build_backward_sides": {64: {"BN": 32, "P": "ieee"}},
    },
}


def padded_rank(rank: int) -> int:
    """Return the power of two to which `rank` is padded with zeros; at least 16, as a tensor-core product needs."""
    return max(16, 1 << (rank - 1).bit_length()) if rank else 16


def architecture(device: torch.device) -> str:
    """Return "sm_90", "gfx942", ... of a device, "cpu" for the interpreter."""
    if device.type != "cuda":
        return "cpu"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


_chosen: dict[tuple[str, torch.device, int], dict[str, Any]] = {}


def choose(op: str, arch: str, rank: int) -> dict[str, Any]:
    """Return the settings of `op` on an architecture by name, for ranks up to `rank`."""
    table = DEFAULT[op]
    padded = min((key for key in table if key >= rank), default=max(table))
    return {**table[padded], **BY_ARCH.get(arch, {}).get(op, {}).get(padded, {})}


def settings(op: str, device: torch.device, rank: int = 1) -> dict[str, Any]:
    """Return the settings of `op` on `device` for ranks up to `rank`."""
    key = (op, device, padded_rank(rank))
    if key not in _chosen:
        _chosen[key] = choose(op, architecture(device), key[2])
    return _chosen[key]
