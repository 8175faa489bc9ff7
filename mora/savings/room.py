"""How much room rows take and how much there is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

GROUP = Path("/sys/fs/cgroup")
SHARE = 0.5  # of the free memory or disk that a cache takes unasked


def amount(size: float) -> str:
    """Bytes in words: "303 KB", "27.3 GB"."""
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}" if size < 100 or unit == "B" else f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def free_memory() -> int:
    """Bytes of memory that this process may still take: of the machine, and of its control group."""
    free = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2] if hasattr(os, "sysconf") else []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        if "MemAvailable" in lines:
            free = [1024 * int(lines["MemAvailable"].split()[0])]
    try:
        limit = (GROUP / "memory.max").read_text().strip()
        if limit != "max":
            used = dict(line.split() for line in (GROUP / "memory.stat").read_text().splitlines())
            held = int((GROUP / "memory.current").read_text()) - int(used["inactive_file"])  # the rest is given back
            free.append(int(limit) - held)
    except (OSError, ValueError, KeyError):
        pass
    return max(0, min(free)) if free else 0


def free_disk(folder: Path) -> int:
    """Free bytes where `folder` is, or will be."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
