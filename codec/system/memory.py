"""Memory of this process, of others, and of the machine or its container, in bytes."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from pathlib import Path

# Control groups of Linux by the name of their controllers: mount, limit, use, and reclaimable part of it.
GROUPS = {
    "": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": (
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
}


def peak_memory() -> int:
    """Largest resident memory of this process so far; 0 on a system without such a record."""
    if peak := _kilobytes("/proc/self/status", "VmHWM"):
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return 0
    # On Linux this would include the memory of the parent at the time of the fork.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def private_memory(process: int) -> int:
    """Memory of another process that it shares with none; 0 on systems other than Linux."""
    return _kilobytes(f"/proc/{process}/smaps_rollup", "Private_(?:Clean|Dirty)")


def available_memory(root: Path = Path("/")) -> int | None:
    """Memory that a new process can take: of the machine and of each control group above; None if unknown."""
    rooms = [room] if (room := _kilobytes(root / "proc/meminfo", "MemAvailable")) else []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in GROUPS:
            mount, *names = GROUPS[controllers]
            parts = Path(path).parts[1:]
            folders = [root.joinpath(mount, *parts[:depth]) for depth in range(len(parts) + 1)]
            rooms += [room for folder in folders if (room := _room(folder, *names)) is not None]
    if not rooms and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(rooms, default=None)


def refuse_above(limit: int) -> None:
    """Make allocations of this process fail above a limit, before the system would kill a process."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _room(group: Path, limit: str, usage: str, cache: str) -> int | None:
    """Memory left in a control group; None without a limit."""
    most, used = _text(group / limit).strip(), _text(group / usage).strip()
    if not (most.isdigit() and used.isdigit()):
        return None
    cached = re.search(rf"^{cache} (\d+)$", _text(group / "memory.stat"), re.MULTILINE)
    return max(0, int(most) - int(used) + (int(cached[1]) if cached else 0))


def _kilobytes(path: str | Path, name: str) -> int:
    """Sum of the lines of this name, as `VmHWM: 1940 kB`."""
    return 1024 * sum(map(int, re.findall(rf"^{name}:\s+(\d+) kB", _text(path), re.MULTILINE)))


def _text(path: str | Path) -> str:
    """Text of a file; empty if it cannot be read."""
    with suppress(OSError):
        return Path(path).read_text(encoding="utf-8", errors="replace")
    return ""
