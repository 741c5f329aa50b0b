"""Files in a fixed order, and archives of them whose bytes depend on nothing else."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

EPOCH = 315532800  # 1980-01-01: the time of every file, late enough for zip files and FAT
_GZIP_LEVEL = 6


def files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    """Relative paths and files, sorted by path. Bytecode is passed over."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        found += [Path(parent, name) for name in names]
    yield from sorted((file.relative_to(folder).as_posix(), file) for file in found)


Source = tuple[str, Path | bytes]  # a place in an archive, and a folder, a file or its bytes


def write_tar(
    target: Path, sources: Sequence[Source], on_bytes: Callable[[int], object] = lambda count: None
) -> None:
    """`target`, a .tar.gz, of `sources`; it is there when it is whole. `on_bytes` hears what was read. Bytes
    that begin with "#!" are a program; a file named alone is none."""
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as raw:
            zipped = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=_GZIP_LEVEL)
            with zipped:
                pack(zipped, sources, on_bytes)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def pack(
    into: IO[bytes] | gzip.GzipFile,
    sources: Iterable[Source],
    on_bytes: Callable[[int], object] = lambda count: None,
) -> None:
    """A tar of `sources` in their order, with the folders above each: owner 0, one time, modes 644, 755."""
    seen: set[str] = set()
    with tarfile.open(fileobj=into, mode="w|", format=tarfile.GNU_FORMAT) as tar:
        for place, source in sources:
            for path, data, executable in _entries(place, source):
                for above in _above(path):
                    if above not in seen:
                        seen.add(above)
                        tar.addfile(_info(above, 0, 0o755, tarfile.DIRTYPE))
                stream = io.BytesIO(data) if isinstance(data, bytes) else data.open("rb")
                with stream:
                    size = stream.seek(0, os.SEEK_END)
                    stream.seek(0)
                    tar.addfile(_info(path, size, 0o755 if executable else 0o644), stream)
                on_bytes(size)


def _entries(place: str, source: Path | bytes) -> Iterator[tuple[str, Path | bytes, bool]]:
    if isinstance(source, bytes):
        yield place, source, source.startswith(b"#!")
    elif source.is_dir():
        for path, file in files_of(source):
            yield f"{place}/{path}", file, bool(file.stat().st_mode & 0o100)
    else:
        yield place, source, False


def _above(path: str) -> list[str]:
    """ "a/b/c" -> "a", "a/b"."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[: n + 1]) for n in range(len(parts))]


def _info(path: str, size: int, mode: int, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.size, info.mode, info.type, info.mtime = size, mode, kind, EPOCH
    info.uname = info.gname = "root"
    return info
