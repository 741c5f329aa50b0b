"""What a convert finds on this machine, and what a stage's process used."""

from __future__ import annotations

import resource
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from rpi_runtime.kernel import fields, memory, memory_available

_ROOT = Path("/")


@dataclass(frozen=True)
class Resources:
    memory_bytes: int  # that a new process can get without anything being killed
    memory_source: str  # where the number comes from, for the message
    disk_bytes: int  # free to this user where the bundle will be written


def resources(folder: Path, root: Path = _ROOT) -> Resources:
    """Free memory of this machine or of the container around us, and free space on `folder`'s file system."""
    free, source = memory_available(root)
    return Resources(free, source, shutil.disk_usage(folder).free)


def peak_bytes_of(process: int) -> int:
    """Peak resident bytes of a running process so far; 0 when the kernel does not tell.

    `ru_maxrss` would do but for one thing: a fresh process inherits the figure of the one that started it.
    """
    return memory(process).peak_resident_bytes


def peak_bytes(usage: resource.struct_rusage) -> int:
    """Peak resident bytes of a process that has ended."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def kernel_kills(root: Path = _ROOT) -> int:
    """How often the kernel's out-of-memory killer has struck since the machine started."""
    return fields(root / "proc/vmstat").get("oom_kill", 0)
