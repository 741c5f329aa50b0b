"""The cache of packed weights: whole and ours before native code sees it, bounded, and safe to share.

XNNPACK packs a graph's weights into the layout of this CPU's kernels. Given a file, it keeps them there and
maps it at the next start: 1 GB of anonymous memory and 2 s become 50 MB and 50 ms for a 0.6 B decoder. But
it checks little: a file with changed weights, or that of another graph, is used without a word and gives
wrong answers, and a cut one is overwritten in place, under whoever has it mapped. So a file is built under
a name of its own, published by renaming, and its sidecar (`<key>.json`, written last) holds what it must
look like. Without one, or when it does not match, the file is removed and built anew.

How it is checked: reading 600 MB at every start would take longer than packing on an SD card, and would
evict the page cache. While size, inode, mtime and ctime (which nobody can set) are those of the sidecar,
only the first block (header), the last (the list of buffers, which native code follows) and a few drawn at
random are hashed: bit rot shows up over several starts. When they differ (restored from a backup, edited),
every block is hashed once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from delegates.cpu import CpuFeatures

DEFAULT_LIMIT_BYTES = 4 << 30
BLOCK_BYTES = 1 << 20
_DRAWN_BLOCKS = 4
_LOCK_WAIT_SECONDS = (
    60.0  # longer than packing takes on a slow board; then the weights go to anonymous memory
)
# Packed weights over the graph: 0.6 to 1.0 for fp32, int8 and int4; 1.8 for fp16, whose weights become
# float32.
_SPACE_FACTOR = 2.0


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/hypervl-edge/weights`, with ~/.cache where the variable is not set (XDG base
    directories).
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification: a relative path is to be ignored.
    root = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return root / "hypervl-edge" / "weights"


def cache_key(graph_sha256: str, runtime_version: str, cpu: CpuFeatures) -> str:
    """Names the packed weights of one graph for one runtime on one kind of CPU.

    Packing depends on the kernels, which are chosen by the CPU's features; not on the number of threads.
    """
    place = "\n".join([runtime_version, cpu.machine, *sorted(cpu.names)])
    return f"{graph_sha256[:16]}-{hashlib.sha256(place.encode()).hexdigest()[:16]}"


@dataclass
class Lease:
    """The right to hand `file` to native code, which maps it or builds it there; None means without a
    cache.
    """

    file: Path | None
    state: str  # "reused", "built", "off: why"


@dataclass(frozen=True)
class Entry:
    """One graph's packed weights, as `toolkit cache` shows them."""

    key: str
    graph: str  # the file they were packed from, when they were
    runtime: str  # whose kernels they are for: "ai-edge-litert 2.3.0"
    bytes: int
    last_used: float  # seconds since 1970


@dataclass(frozen=True)
class _Sidecar:
    graph: str
    runtime: str
    bytes: int
    inode: int
    mtime_ns: int
    ctime_ns: int
    blocks: tuple[str, ...]  # BLAKE2b, 16 bytes, of each BLOCK_BYTES

    def same_file(self, status: os.stat_result) -> bool:
        seen = (status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
        return seen == (self.bytes, self.inode, self.mtime_ns, self.ctime_ns)


@contextmanager
def lease(
    folder: Path,
    key: str,
    *,
    graph_bytes: int,
    graph: str = "",
    runtime: str = "",
    limit_bytes: int = DEFAULT_LIMIT_BYTES,
) -> Iterator[Lease]:
    """Lends the cache file of `key` for the time of opening one graph. `graph` and `runtime` are only noted,
    for `entries`.

    Leaving the block without an exception publishes a file that was built in it, and removes the least
    recently used caches beyond `limit_bytes`. Whatever stands in the way (permission, space, a lock that
    stays taken) only turns the cache off, with the reason in `Lease.state`.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            stack.enter_context(_locked(folder / f"{key}.lock", _LOCK_WAIT_SECONDS))
            lent = _prepare(folder, key, graph_bytes, limit_bytes)
        except (OSError, TimeoutError) as error:
            lent = Lease(None, f"off: {_plain(error, folder)}")
        building = lent.file if lent.state == "built" else None
        try:
            yield lent
            if building is not None:
                try:
                    lent.state = _publish(folder, key, building, graph, runtime)
                    if not _evict(folder, limit_bytes, keep=key):
                        lent.state = f"off: with it the caches take more than {limit_bytes >> 20} MB"
                except OSError as error:
                    lent.state = f"off: {_plain(error, folder)}"
        finally:
            if building is not None:
                building.unlink(missing_ok=True)


def entries(folder: Path) -> list[Entry]:
    """All caches in `folder`, the most recently used first. Files that belong to none are left out."""
    found = []
    for sidecar in folder.glob("*.json"):
        known = _read_sidecar(sidecar)
        if known is not None:
            with contextlib.suppress(FileNotFoundError):  # another process removes caches too
                used = sidecar.stat().st_mtime
                found.append(Entry(sidecar.stem, known.graph, known.runtime, known.bytes, used))
    return sorted(found, key=lambda entry: (-entry.last_used, entry.key))


def clear(folder: Path, entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Removes `entries` from `folder`; gives those that stay because somebody is opening or building them.

    A process that has one mapped keeps its pages until it ends.
    """
    return tuple(entry for entry in entries if not _remove(folder, entry.key))


def _prepare(folder: Path, key: str, graph_bytes: int, limit_bytes: int) -> Lease:
    for leftover in folder.glob(f"{key}.*.building"):  # of a process that was killed: we hold the lock now
        leftover.unlink(missing_ok=True)
    file, sidecar = _paths(folder, key)
    if _trusted(file, sidecar):
        os.utime(sidecar)  # when it was last used
        return Lease(file, "reused")
    sidecar.unlink(missing_ok=True)
    file.unlink(missing_ok=True)
    if graph_bytes > limit_bytes:
        return Lease(
            None, f"off: {graph_bytes >> 20} MB of weights, more than the limit of {limit_bytes >> 20} MB"
        )
    building = folder / f"{key}.{os.getpid()}.building"
    _need_space(building, int(graph_bytes * _SPACE_FACTOR))
    return Lease(building, "built")


def _need_space(path: Path, size: int) -> None:
    """Raises OSError unless `path` may be written and grow to `size` bytes: space, quota, permission.

    XNNPACK kills the process when a write fails, so the space is really taken, and given back, beforehand.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(descriptor, 0, size)
    finally:
        os.close(descriptor)
        path.unlink()


def _publish(folder: Path, key: str, building: Path, graph: str, runtime: str) -> str:
    if not building.exists() or not _complete(building):
        return "off: the runtime did not finish writing it"
    file, sidecar = _paths(folder, key)
    with building.open("rb") as f:
        os.fsync(f.fileno())  # a power cut must not leave a sidecar that describes bytes never written
    blocks = tuple(_block_hashes(building))
    building.rename(file)
    _write_sidecar(sidecar, file, blocks, graph, runtime)
    return "built"


def _complete(file: Path) -> bool:
    """XNNPACK writes its header last: without it the list of buffers has offset 0."""
    with file.open("rb") as f:
        header = f.read(24)
    if len(header) < 24:
        return False
    _, offset, size = struct.unpack("<3Q", header)
    return offset > 0 and size > 0 and offset + size <= file.stat().st_size


def _trusted(file: Path, sidecar: Path) -> bool:
    known = _read_sidecar(sidecar)
    if known is None or not known.blocks or not file.is_file():
        return False
    if file.stat().st_size != known.bytes:
        return False
    if known.same_file(file.stat()):
        count = len(known.blocks)
        drawn = {0, count - 1, *random.sample(range(count), min(_DRAWN_BLOCKS, count))}
        return all(found == known.blocks[i] for i, found in _hash_at(file, sorted(drawn)))
    if tuple(_block_hashes(file)) != known.blocks:
        return False
    _write_sidecar(sidecar, file, known.blocks, known.graph, known.runtime)
    return True


def _block_hashes(file: Path) -> Iterator[str]:
    with file.open("rb") as f:
        while block := f.read(BLOCK_BYTES):
            yield hashlib.blake2b(block, digest_size=16).hexdigest()


def _hash_at(file: Path, indices: list[int]) -> Iterator[tuple[int, str]]:
    with file.open("rb") as f:
        for i in indices:
            f.seek(i * BLOCK_BYTES)
            yield i, hashlib.blake2b(f.read(BLOCK_BYTES), digest_size=16).hexdigest()


def _read_sidecar(path: Path) -> _Sidecar | None:
    try:
        data: dict[str, Any] = json.loads(path.read_bytes())
        return _Sidecar(**{**data, "blocks": tuple(data["blocks"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write_sidecar(path: Path, file: Path, blocks: tuple[str, ...], graph: str, runtime: str) -> None:
    status = file.stat()
    sidecar = _Sidecar(
        graph, runtime, status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, blocks
    )
    fresh = path.with_suffix(f".{os.getpid()}.building")
    fresh.write_text(json.dumps(asdict(sidecar)), encoding="ascii")
    fresh.replace(path)


def _evict(folder: Path, limit_bytes: int, keep: str) -> bool:
    """Removes the least recently used caches until the rest fits, and what belongs to no cache.

    False when not even that was enough, and `keep` went too.
    """
    for file in folder.glob("*.xnn"):
        if not file.with_suffix(".json").exists():
            _remove(folder, file.stem)
    found = []
    for sidecar in folder.glob("*.json"):
        with contextlib.suppress(FileNotFoundError):  # another process removes caches too
            size = sidecar.with_suffix(".xnn").stat().st_size
            found.append((sidecar.stat().st_mtime_ns, sidecar.stem, size))
    total = sum(size for _, _, size in found)
    for _, key, size in sorted(found):
        if total > limit_bytes and key != keep and _remove(folder, key):
            total -= size
    if total > limit_bytes:
        _unlink(folder, keep)
    return total <= limit_bytes


def _remove(folder: Path, key: str) -> bool:
    """Removes the cache of `key` unless somebody is opening or building it; a mapped file lives on in
    memory.
    """
    lock = folder / f"{key}.lock"
    try:
        with _locked(lock, wait_seconds=0):
            _unlink(folder, key)
            lock.unlink(missing_ok=True)
    except TimeoutError:
        return False
    return True


def _unlink(folder: Path, key: str) -> None:
    file, sidecar = _paths(folder, key)
    sidecar.unlink(missing_ok=True)
    file.unlink(missing_ok=True)


def _paths(folder: Path, key: str) -> tuple[Path, Path]:
    return folder / f"{key}.xnn", folder / f"{key}.json"


@contextmanager
def _locked(path: Path, wait_seconds: float) -> Iterator[None]:
    """Holds the file lock of `path`, which the kernel frees when a process dies. Raises TimeoutError."""
    try:
        import fcntl  # not on Windows
    except ImportError:
        raise OSError("this system has no file locks") from None
    deadline = time.monotonic() + wait_seconds
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Somebody may have removed the file between opening and locking it: then this lock guards
            # nothing.
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(descriptor).st_ino:
                    break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise TimeoutError("another process is still building it") from None
            time.sleep(0.05)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    try:
        yield
    finally:
        os.close(descriptor)


def _plain(error: Exception, folder: Path) -> str:
    """One readable reason."""
    if isinstance(error, TimeoutError) or not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return f"{error.strerror}: {error.filename or folder}"
