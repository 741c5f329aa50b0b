"""Reads wheels and Debian packages without trusting them: nothing ever lands outside of its folder."""

from __future__ import annotations

import lzma
import posixpath
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

from field.package.errors import NotAsLocked

MOST_BYTES = 512 << 20  # of one part, unpacked; the largest has 60 MB
_AGAIN = "It is not what its lock was made from: do not use it."
_AR_MAGIC = b"!<arch>\n"


@dataclass(frozen=True)
class Member:
    data: bytes
    executable: bool


def safe_path(name: str, archive: str) -> PurePosixPath:
    """`name` of a member as a path inside a folder; raises `NotAsLocked`."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in name or not name.isprintable():
        raise NotAsLocked(f"{archive}: its member {name!r} would land outside its folder", _AGAIN)
    return path


def wheel_members(wheel: Path, keep: Callable[[str], bool]) -> Iterator[tuple[PurePosixPath, Member]]:
    """Files of a wheel by their place in site-packages, of those that `keep` wants. Data for purelib and
    platlib are merged; scripts and headers, which nothing here starts or compiles, are left out."""
    total = 0
    try:
        with zipfile.ZipFile(wheel) as held:
            for info in held.infolist():
                path = safe_path(info.filename, wheel.name)
                mode = info.external_attr >> 16
                if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise NotAsLocked(f"{wheel.name}: its member {info.filename!r} is no plain file", _AGAIN)
                place = _in_site_packages(path)
                if info.is_dir() or place is None or not keep(str(place)):
                    continue
                total = _counted(total + info.file_size, wheel.name)
                yield place, Member(held.read(info), bool(mode & stat.S_IXUSR))
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise NotAsLocked(f"{wheel.name}: cannot be unpacked ({error})", _AGAIN) from None


def deb_members(deb: Path) -> dict[str, Member]:
    """Files of a Debian package by their path ("usr/bin/python3.11"); a link is there as what it points to,
    when that is in the package, too."""
    data = dict(_ar_members(deb))
    name = next((n for n in data if n.startswith("data.tar")), "")
    if name not in ("data.tar.xz", "data.tar.gz", "data.tar"):
        raise NotAsLocked(f"{deb.name}: has no data.tar that Python can read ({name or 'none'})", _AGAIN)
    files: dict[str, Member] = {}
    links: dict[str, str] = {}
    total = 0
    try:
        with tarfile.open(fileobj=BytesIO(data[name])) as held:
            for info in held:
                if posixpath.normpath(info.name) == ".":
                    continue
                path = str(safe_path(posixpath.normpath(info.name), deb.name))
                if info.isreg():
                    total = _counted(total + info.size, deb.name)
                    reader = held.extractfile(info)
                    assert reader is not None
                    files[path] = Member(reader.read(), bool(info.mode & stat.S_IXUSR))
                elif info.issym():
                    target = posixpath.join(posixpath.dirname(path), info.linkname)
                    links[path] = posixpath.normpath(target).lstrip("/")
                elif info.islnk():
                    links[path] = posixpath.normpath(info.linkname)
                elif not info.isdir():
                    raise NotAsLocked(f"{deb.name}: its member {info.name!r} is no plain file", _AGAIN)
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError) as error:
        raise NotAsLocked(f"{deb.name}: cannot be unpacked ({error})", _AGAIN) from None
    for path in links:
        target, steps = path, 0
        while target in links and steps < 8:
            target, steps = links[target], steps + 1
        if target in files:
            files[path] = files[target]
    return files


def _in_site_packages(path: PurePosixPath) -> PurePosixPath | None:
    if not path.parts[0].endswith(".data"):
        return path
    if len(path.parts) < 3 or path.parts[1] not in ("purelib", "platlib"):
        return None
    return PurePosixPath(*path.parts[2:])


def _counted(total: int, archive: str) -> int:
    if total > MOST_BYTES:
        raise NotAsLocked(f"{archive}: unpacks to more than {MOST_BYTES >> 20} MB", _AGAIN)
    return total


def _ar_members(deb: Path) -> Iterator[tuple[str, bytes]]:
    """Members of an ar archive (deb(5)): a header of 60 bytes each, data padded to even lengths."""
    raw = deb.read_bytes()
    if not raw.startswith(_AR_MAGIC):
        raise NotAsLocked(f"{deb.name}: is no Debian package", _AGAIN)
    place = len(_AR_MAGIC)
    while place + 60 <= len(raw):
        name, length = raw[place : place + 16].decode("latin-1").strip(), raw[place + 48 : place + 58].strip()
        if not length.isdigit() or place + 60 + int(length) > len(raw):
            raise NotAsLocked(f"{deb.name}: is cut off or damaged", _AGAIN)
        yield name.rstrip("/"), raw[place + 60 : place + 60 + int(length)]
        place += 60 + int(length) + int(length) % 2
