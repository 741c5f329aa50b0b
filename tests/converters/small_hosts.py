"""Real but small hosts: a disk of a few megabytes, a control group with little memory.

Both need rights that a test run may not have; then the test is skipped with the reason.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of this size, at a new folder inside `folder`."""
    place = folder / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"may not mount a small disk here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@contextlib.contextmanager
def memory_group(megabytes: int) -> Iterator[Path]:
    """A control group with this limit; writing a process id to its `cgroup.procs` puts the process there."""
    group = _make_group(megabytes << 20)
    try:
        yield group
    finally:
        assert until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def _make_group(limit_bytes: int) -> Path:
    for base, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(base) / f"hypervl-edge-test-{os.getpid()}"
        with contextlib.suppress(OSError):
            group.mkdir()
            try:
                (group / limit).write_text(str(limit_bytes))
            except OSError:
                group.rmdir()
                continue
            return group
    pytest.skip("may not make a control group with a memory limit here")


def until(condition: Callable[[], bool]) -> bool:
    """Whether `condition` becomes true within ten seconds."""
    for _ in range(200):
        if condition():
            return True
        time.sleep(0.05)
    return False
