"""The process of one stage: reads a job from stdin, does it, and leaves a result that can be trusted.

Outputs are written in a scratch folder, flushed to disk, and only then renamed into place; the result file
comes last. A worker that dies at any moment leaves either nothing or something whole.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from converters import host
from rpi_runtime.bundle import sha256_of
from rpi_runtime.errors import EdgeError, ResourceError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main() -> int:
    job = json.loads(sys.stdin.read())
    _die_with(job["parent"])
    result = Path(job["result"])
    try:
        answer = _do(job)
    except EdgeError as error:
        return _leave_error(result, error)
    except Exception as error:
        known = _resource_error(error, job)
        if known is None:
            raise
        shutil.rmtree(job["scratch"], ignore_errors=True)  # on a full disk, room for the lines below
        traceback.print_exc()
        return _leave_error(result, known)
    write_whole(result, json.dumps(answer, indent=1))
    return 0


def _do(job: dict[str, Any]) -> dict[str, Any]:
    started = time.monotonic()
    module, _, name = job["task"].partition(":")
    function = getattr(importlib.import_module(module), name)
    made = {
        name: Path(job["scratch"]) / "out" / name / Path(path).name for name, path in job["outputs"].items()
    }
    for path in made.values():
        path.parent.mkdir(parents=True)
    inputs = {name: Path(path) for name, path in job["inputs"].items()}
    value = function(job["options"], inputs, made)
    digests, total = {}, 0
    for name, path in made.items():
        digests[name] = _put(path, Path(job["outputs"][name]))
        total += Path(job["outputs"][name]).stat().st_size
    return {
        "key": job["key"],
        "seconds": round(time.monotonic() - started, 3),
        "peak_bytes": host.peak_bytes_of(os.getpid())
        or host.peak_bytes(resource.getrusage(resource.RUSAGE_SELF)),
        "output_bytes": total,
        "sha256": digests,
        "value": value,
    }


def _put(made: Path, place: Path) -> str:
    """Moves a finished output to its place, durably; its sha256."""
    with made.open("rb") as file:
        os.fsync(file.fileno())
    digest = sha256_of(made)
    place.parent.mkdir(parents=True, exist_ok=True)
    made.replace(place)
    sync_folder(place.parent)
    return digest


def write_whole(path: Path, text: str) -> None:
    """Writes `path` so that a reader, also after a power cut, sees the old text or the new one."""
    temporary = path.with_name(path.name + ".unfinished")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` durable, where the file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network and FUSE file systems refuse it for folders
            os.fsync(handle)
    finally:
        os.close(handle)


def _leave_error(result: Path, error: EdgeError) -> int:
    kind = type(error).__name__
    with contextlib.suppress(OSError):  # on a full disk the log still tells
        write_whole(result, json.dumps({"error": kind, "message": error.message, "remedy": error.remedy}))
    print(f"{kind}: {error}", file=sys.stderr, flush=True)
    return int(error.exit_code)


def _resource_error(error: Exception, job: dict[str, Any]) -> ResourceError | None:
    """The user's view of an exception that means a full disk, no permission, or no memory."""
    folder = Path(job["scratch"])
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if (isinstance(error, OSError) and error.errno in _DISK_FULL) or free == 0:
        where = getattr(error, "filename", None) or folder
        return ResourceError(
            f"the disk is full: {free / 1e6:,.1f} MB free while writing {where}",
            "Free some space or write to another disk, then run again: finished stages are kept.",
        )
    if isinstance(error, PermissionError):
        return ResourceError(
            f"{error.filename}: {error.strerror}", "Choose a place that you may read and write."
        )
    if isinstance(error, MemoryError) or any(w in str(error) for w in ("can't allocate memory", "bad_alloc")):
        return ResourceError(
            f"memory ran out at {host.peak_bytes_of(os.getpid()) / 1e6:,.0f} MB: {error}",
            "Close other programs or use a larger machine, then run again: finished stages are kept.",
        )
    return None


def _die_with(parent: int) -> None:
    """Has the kernel end this process when the one that started it ends, however it does (Linux)."""
    set_parent_death_signal = 1
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before the line above
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
