"""Folders of files that get to a device whole or not at all, and go on where a lost connection ended them.

A folder grows beside its place, as `<folder>.partial`, file by file, and is renamed when each has the hash
that it should have. What an earlier folder there holds already is linked (or copied, where a file system has
no links), small files travel in one archive, a large one goes on at the byte where it was cut.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from field.device import CHUNK_BYTES, Device, DeviceError, quote
from rpi_runtime.bundle import sha256_of

_SMALL_BYTES = 1 << 18
_TRIES = 2  # of a file that arrives changed


@dataclass(frozen=True)
class Item:
    """A file of a folder that is sent."""

    path: str  # inside the folder, with "/"
    source: Path
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Sent:
    files: int
    bytes: int  # that travelled
    kept_bytes: int  # that were there


def items_of(folder: Path) -> list[Item]:
    """All plain files below `folder`, by name; links are followed."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [item(path, path.relative_to(folder).as_posix()) for path in files]


def item(source: Path, path: str) -> Item:
    return Item(path, source, source.stat().st_size, sha256_of(source))


def digest(items: Sequence[Item]) -> str:
    """One name for the same files with the same content: 16 hexadecimal digits."""
    told = "".join(f"{one.sha256} {one.path}\0" for one in sorted(items, key=lambda one: one.path))
    return hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def push(
    device: Device,
    items: Sequence[Item],
    folder: str,
    *,
    there: Mapping[str, str] | None = None,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> Sent:
    """Has `folder` of the device hold `items`. `there` are files of the device by sha256, whose content need
    not travel; `on_bytes` hears how many more bytes of `items` are there, as they come.

    Raises `DeviceLost` (the same call goes on from there), and `DeviceError`, as for a full disk.
    """
    partial = f"{folder}.partial"
    folders = sorted({str(parent) for one in items for parent in PurePosixPath(one.path).parents})
    made = "".join(f"mkdir -p {quote(_join(partial, name))} || exit 1\n" for name in folders or ["."])
    _script(device, made)
    places = [_join(partial, one.path) for one in items]
    _script(
        device, "".join(_linked(there or {}, one, place) for one, place in zip(items, places, strict=True))
    )
    kept = sum(_sizes(device, items, places))
    on_bytes(kept)
    for again in range(_TRIES):
        sizes = _sizes(device, items, places)
        missing = [i for i, one in enumerate(items) if sizes[i] < one.bytes or (not one.bytes and again == 0)]
        small = [i for i in missing if items[i].bytes < _SMALL_BYTES]
        _send_small(device, [items[i] for i in small], partial, on_bytes)
        for i in missing:
            if items[i].bytes >= _SMALL_BYTES:
                _send_rest(device, items[i], places[i], sizes[i], on_bytes)
        wrong = _wrong(device, items, places)
        if not wrong:
            break
        _script(device, "".join(f"rm -f {quote(places[i])}\n" for i in wrong))
    else:
        raise DeviceError(
            f"{device.address}: {items[wrong[0]].path} arrives changed, {_TRIES} times",
            "Is the storage there worn out? Check the device's kernel log, or try another card.",
        )
    _script(device, f"sync\nrm -rf {quote(folder)}\nmv {quote(partial)} {quote(folder)}\n")
    total = sum(one.bytes for one in items)
    return Sent(len(items), total - min(kept, total), min(kept, total))


def _join(folder: str, name: str) -> str:
    return folder if name == "." else f"{folder}/{name}"


def _linked(there: Mapping[str, str], one: Item, place: str) -> str:
    if one.sha256 not in there:
        return ""
    source, target = quote(there[one.sha256]), quote(place)
    return f"[ -e {target} ] || ln {source} {target} 2>/dev/null || cp {source} {target} || exit 1\n"


def _sizes(device: Device, items: Sequence[Item], places: Sequence[str]) -> list[int]:
    """Bytes of each that are there; one that is too long is removed."""
    asked = "".join(
        f'f={quote(place)}; n=0; [ -f "$f" ] && n=$(wc -c <"$f")\n'
        f'[ $((n)) -gt {one.bytes} ] && rm "$f" && n=0; echo $((n))\n'
        for one, place in zip(items, places, strict=True)
    )
    return [int(word) for word in _script(device, asked).split()]


def _wrong(device: Device, items: Sequence[Item], places: Sequence[str]) -> list[int]:
    asked = "".join(f"sha256sum <{quote(place)} || echo none\n" for place in places)
    found = [line.split()[0] for line in _script(device, asked, timeout=None).splitlines() if line.strip()]
    if len(found) != len(items):
        raise DeviceError(f"{device.address}: files cannot be checked there", "Is sha256sum installed there?")
    return [i for i, (one, told) in enumerate(zip(items, found, strict=True)) if told != one.sha256]


def _send_small(device: Device, items: Sequence[Item], folder: str, on_bytes: Callable[[int], None]) -> None:
    if items:
        # Not tar's -C: GNU's takes a backslash in a name for more than that.
        device.run(f"cd {quote(folder)} && tar xf -", stdin=_archive(items, on_bytes), timeout=120)


def _archive(items: Sequence[Item], on_bytes: Callable[[int], None]) -> Iterator[bytes]:
    """A tar of `items`, a file at a time."""
    for one in items:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
            info = tarfile.TarInfo(one.path)
            content = one.source.read_bytes()
            info.size, info.mode = len(content), 0o644
            tar.addfile(info, io.BytesIO(content))
            end = tar.offset
        yield buffer.getvalue()[:end]
        on_bytes(one.bytes)
    yield bytes(10240)  # the archive's end


def _send_rest(device: Device, one: Item, place: str, offset: int, on_bytes: Callable[[int], None]) -> None:
    def rest() -> Iterator[bytes]:
        with one.source.open("rb") as file:
            file.seek(offset)
            while piece := file.read(CHUNK_BYTES):
                yield piece
                on_bytes(len(piece))

    target = quote(place)
    # A disk that is full is not left so.
    device.run(f"cat >>{target} || {{ rm -f {target}; exit 1; }}", stdin=rest(), timeout=120)


def _script(device: Device, script: str, timeout: float | None = 120) -> str:
    """By stdin: a command line has not room for thousands of names."""
    return device.run("exec sh -s", stdin=script.encode("utf-8", "surrogateescape"), timeout=timeout).text
