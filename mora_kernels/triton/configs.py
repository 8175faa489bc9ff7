"""Launch settings, frozen: no autotuning at run time; an architecture that is not listed gets the default.

No GPU was at hand when this table was made. Its evidence is compile-only: `python -m mora_kernels.triton.report` builds
every kernel in every setting below for sm_80, sm_90, sm_100 and gfx942, and a test asserts no spills and shared memory
within the device's limit. BM, BN: tile; P: precision of float32 products ("ieee" is exact everywhere; "tf32x3" runs on
the tensor cores of NVIDIA with about 2^-22 relative error and is used only where the result meets 16-bit operands).
"""

from __future__ import annotations

from typing import Any

import torch

MOST_RANK = 64

# op -> settings of the default architecture.
DEFAULT: dict[str, dict[str, Any]] = {
    "build": {"BM": 64, "BN": 32, "P": "ieee", "num_warps": 4, "num_stages": 1},
    "build_backward": {"BM": 16, "BN": 64, "P": "ieee", "num_warps": 4, "num_stages": 1},
    "gradient": {"BLOCK": 16, "STEP": 128, "P": "ieee", "num_warps": 4, "num_stages": 1},
    "dropout": {"BM": 8, "BN": 64, "num_warps": 4, "num_stages": 1},
}
# (op, rank above this) -> what changes for wide ranks: more warps, or the r x r tiles of four branches do not fit.
WIDE: dict[str, dict[str, Any]] = {
    "build": {"num_warps": 8},
    "build_backward": {"num_warps": 8},
    "gradient": {"num_warps": 8},
}
# architecture -> op -> what differs from the default.
BY_ARCH: dict[str, dict[str, dict[str, Any]]] = {"sm_80": {}, "sm_90": {}, "sm_100": {}, "gfx942": {}}


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


_chosen: dict[tuple[str, torch.device, torch.dtype, bool], dict[str, Any]] = {}


def choose(op: str, arch: str, dtype: torch.dtype, wide: bool = False) -> dict[str, Any]:
    """Return the settings of `op` on an architecture by name; `wide`: a padded rank above 32."""
    options = {**DEFAULT[op], **BY_ARCH.get(arch, {}).get(op, {}), **(WIDE.get(op, {}) if wide else {})}
    return options


def settings(op: str, device: torch.device, dtype: torch.dtype, wide: bool = False) -> dict[str, Any]:
    """Return the settings of `op` for tensors on `device` whose products meet operands of `dtype`."""
    key = (op, device, dtype, wide)
    if key not in _chosen:
        _chosen[key] = choose(op, architecture(device), dtype, wide)
    return _chosen[key]
