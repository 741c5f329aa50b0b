"""What the kernel says about memory: of a process, of this machine, and of the container around us."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")
_M_MMAP_THRESHOLD = -3  # malloc.h


@dataclass(frozen=True)
class Memory:
    """Of one process; 0 where the system does not tell (it is not Linux)."""

    peak_resident_bytes: int  # since the process started, or since `reset_peak`
    anonymous_bytes: int  # now; cannot be dropped
    mapped_bytes: int  # now; files that the kernel drops when it needs the memory
    data_bytes: int = 0  # now; may be written, whether it ever was or not: what RLIMIT_DATA bounds

    @property
    def resident_bytes(self) -> int:
        return self.anonymous_bytes + self.mapped_bytes


def memory(process: int | None = None, root: Path = _ROOT) -> Memory:
    """The kernel's account of a running process, this one by default."""
    known = fields(root / f"proc/{process or 'self'}/status", scale=1024)
    return Memory(
        peak_resident_bytes=known.get("VmHWM", 0),
        anonymous_bytes=known.get("RssAnon", 0),
        mapped_bytes=known.get("RssFile", 0) + known.get("RssShmem", 0),
        data_bytes=known.get("VmData", 0),
    )


def reset_peak() -> bool:
    """Has the peak of this process count from now on; False where the kernel does not let it."""
    try:
        (_ROOT / "proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def limit_data(count: int) -> Callable[[], None]:
    """Has the kernel refuse this process more than `count` writable bytes of its own; call what is returned
    to lift that. A lower limit that is there already stays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    lowest = min(limit for limit in (count, soft, hard) if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_DATA, (lowest, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def give_back() -> None:
    """Returns freed memory to the kernel. Only glibc keeps so much that it must be told."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def map_large_blocks() -> None:
    """Has glibc take every block of 128 KiB or more from the kernel, and return it when it is freed.
    Otherwise it raises that bound, up to 32 MiB, whenever such a block is freed: large ones then share the
    heap with small ones that stay, and what lies between those is neither returned nor found again."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 128 << 10)


def drop_mapped(path: Path) -> None:
    """Drops the pages of a file that this process has mapped to read; who touches one has it read again.
    Nothing happens where the system does not tell what is mapped. For a library there is `drop_code`."""
    _drop(path, lambda modes: "w" not in modes)


def drop_code(library: Path) -> None:
    """Drops the pages of a library's code, which come back like those of `drop_mapped`. What else of it can
    only be read was written when it was loaded, and would be lost."""
    _drop(library, lambda modes: "x" in modes and "w" not in modes)


def _drop(path: Path, may_go: Callable[[str], bool]) -> None:
    """A private page that was written would be lost."""
    madvise = getattr(ctypes.CDLL(None, use_errno=True), "madvise", None)
    try:
        lines = (_ROOT / "proc/self/maps").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    name = str(path.resolve())
    for line in lines:
        span, modes, *rest = line.split(maxsplit=5)
        if madvise is not None and rest[-1] == name and may_go(modes):
            start, end = (int(number, 16) for number in span.split("-"))
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def memory_available(root: Path = _ROOT) -> tuple[int, str]:
    """Bytes and their source; `/proc` and `/sys` are looked for under `root`.

    Swap counts, since a convert only gets slower there; the limit of a container does not let it in.
    """
    info = fields(root / "proc/meminfo", scale=1024)
    if "MemAvailable" not in info:  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "all memory of this machine"
    swap = info.get("SwapFree", 0)
    free = info["MemAvailable"] + swap
    source = "memory and swap of this machine" if swap else "memory of this machine"
    for group in _cgroups(root):
        room = _room(group)
        if room is not None and room < free:
            free, source = room, f"limit of the control group {group}"
    used = fields(root / "proc/self/status", scale=1024)
    for limit, field, option in (
        (resource.RLIMIT_DATA, "VmData", "-d"),
        (resource.RLIMIT_AS, "VmSize", "-v"),
    ):
        allowed, _ = resource.getrlimit(limit)
        if allowed != resource.RLIM_INFINITY and allowed - used.get(field, 0) < free:
            free, source = max(0, allowed - used.get(field, 0)), f"limit of this process (ulimit {option})"
    return free, source


def fields(path: Path, scale: int = 1) -> dict[str, int]:
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
    stat = fields(group / "memory.stat")
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
