"""What a row needs to be read later: commit, machine, versions, date."""

from __future__ import annotations

import functools
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


def commit(root: Path = ROOT) -> str:
    """The commit of a checkout, "+changes" where tracked files differ (benchmarks/results aside); "" without git."""
    try:
        head = git("rev-parse", "--short=10", "HEAD", root=root)
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results", root=root)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+changes" if changed else "")


def git(*arguments: str, root: Path = ROOT) -> str:
    """The output of a git command in a checkout."""
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def processor() -> str:
    """The CPU's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def device_name(device: str) -> str:
    """The device's name; for a CPU with the threads in use."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{processor()}, {torch.get_num_threads()} threads"


def driver() -> str | None:
    """The version of NVIDIA's driver, or None."""
    try:
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return asked.stdout.split()[0]


def version(name: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def environment(device: str) -> dict[str, object]:
    """The fields that every row of one run shares."""
    return {
        "commit": commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "device": device_name(device),
        "driver": driver() if device == "cuda" else None,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "triton", "transformers", "peft", "open_clip_torch")},
    }
