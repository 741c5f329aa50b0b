"""Remembers which bundles were checked on this machine, so that opening one a second time hashes nothing.

One small file in the user's cache folder, never in the bundle: a bundle may lie on a read-only disk, and what
it says about itself would prove nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

MOST_BUNDLES = 256  # the oldest are forgotten first


def state_file() -> Path | None:
    """Where the memory lies, or None on a system that names no home."""
    base = os.environ.get("XDG_CACHE_HOME")
    if base and Path(base).is_absolute():  # the XDG specification has relative ones ignored
        return Path(base) / "hypervl-edge" / "verified.json"
    try:
        return Path.home() / ".cache" / "hypervl-edge" / "verified.json"
    except RuntimeError:
        return None


def stamp(manifest_text: bytes, files: Iterable[Path]) -> str:
    """Changes when the manifest or any of `files` does.

    A file is known by size, modification time, change time and inode; the change time is the one that a copy
    with preserved times cannot set. Raises OSError when a file is gone.
    """
    digest = hashlib.sha256(manifest_text)
    for file in files:
        s = file.stat()
        digest.update(
            repr((str(file), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino)).encode("utf-8", "replace")
        )
    return digest.hexdigest()


def is_remembered(folder: Path, mark: str) -> bool:
    return _read().get(str(folder.resolve())) == mark


def remember(folder: Path, mark: str) -> None:
    """Stores `mark` for `folder`. A cache that cannot be written costs a check next time, nothing else."""
    path = state_file()
    if path is None:
        return
    known = _read()
    known.pop(str(folder.resolve()), None)
    known[str(folder.resolve())] = mark
    newest = dict(list(known.items())[-MOST_BUNDLES:])
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                json.dump(newest, out, indent=1)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _read() -> dict[str, str]:
    path = state_file()
    if path is None:
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
