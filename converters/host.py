"""What this machine has free, and what a process used: read from the kernel, nothing estimated."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")


@dataclass(frozen=True)
class Resources:
    memory_bytes: int  # that a new process can get without anything being killed
    memory_source: str  # where the number comes from, for the message
    disk_bytes: int  # free to this user where the bundle will be written


def resources(folder: Path, root: Path = _ROOT) -> Resources:
    """Free memory of this machine or of the container around us, and free space on `folder`'s file system."""
    memory, source = memory_available(root)
    return Resources(memory, source, shutil.disk_usage(folder).free)


def memory_available(root: Path = _ROOT) -> tuple[int, str]:
    """Bytes and their source; `/proc` and `/sys` are looked for under `root`.

    Swap counts, since a convert only gets slower there; the limit of a container does not let it in.
    """
    info = _fields(root / "proc/meminfo", scale=1024)
    if "MemAvailable" not in info:  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "all memory of this machine"
    swap = info.get("SwapFree", 0)
    free = info["MemAvailable"] + swap
    source = "memory and swap of this machine" if swap else "memory of this machine"
    for group in _cgroups(root):
        room = _room(group)
        if room is not None and room < free:
            free, source = room, f"limit of the control group {group}"
    return free, source


def peak_bytes_of(process: int) -> int:
    """Peak resident bytes of a running process so far; 0 when the kernel does not tell.

    `ru_maxrss` would do but for one thing: a fresh process inherits the figure of the one that started it.
    """
    return _fields(_ROOT / f"proc/{process}/status", scale=1024).get("VmHWM", 0)


def peak_bytes(usage: resource.struct_rusage) -> int:
    """Peak resident bytes of a process that has ended."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def kernel_kills(root: Path = _ROOT) -> int:
    """How often the kernel's out-of-memory killer has struck since the machine started."""
    return _fields(root / "proc/vmstat").get("oom_kill", 0)


def _fields(path: Path, scale: int = 1) -> dict[str, int]:
    """`name: number` lines of a kernel file; empty when there is no such file."""
    found = {}
    try:
        text = path.read_text()
    except OSError:
        return {}
    for line in text.splitlines():
        words = line.replace(":", " ").split()
        if len(words) >= 2 and words[1].isdigit():
            found[words[0]] = int(words[1]) * scale
    return found


def _cgroups(root: Path) -> Iterator[Path]:
    """Folders of the control groups that bound this process's memory, innermost first (v1 and v2)."""
    mounts = list(_cgroup_mounts(root))
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        version = 2 if not controllers else 1
        if version == 1 and "memory" not in controllers.split(","):
            continue
        for mount_version, inside, mount in mounts:
            if mount_version != version:
                continue
            # In a container the mount often shows only our own part of the tree.
            relative = os.path.relpath(path, inside) if Path(path).is_relative_to(inside) else "."
            group = mount / relative
            while True:
                if group.is_dir():
                    yield group
                if group == mount or mount not in group.parents:
                    break
                group = group.parent


def _cgroup_mounts(root: Path) -> Iterator[tuple[int, str, Path]]:
    """(version, path inside the hierarchy, mount point) of each memory hierarchy."""
    try:
        lines = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        left, _, right = line.partition(" - ")
        kind, _, options = right.partition(" ")
        inside, mount = left.split()[3:5]
        if kind == "cgroup2":
            yield 2, inside, root / mount.lstrip("/")
        elif kind == "cgroup" and "memory" in options.split()[-1].split(","):
            yield 1, inside, root / mount.lstrip("/")


def _room(group: Path) -> int | None:
    """Bytes left under the group's limit, cached files counted as free; None where there is no limit."""
    stat = _fields(group / "memory.stat")
    for limit_name, used_name, prefix in (
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        limit, used = _number(group / limit_name), _number(group / used_name)
        if limit is not None and used is not None:
            cached = stat.get(prefix + "inactive_file", 0) + stat.get(prefix + "active_file", 0)
            return max(0, limit - used + cached)
    return None


def _number(path: Path) -> int | None:
    """The one number in `path`; None when absent or "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
