"""A command of ours that runs on a device, as if it ran here: its files go there, what it prints comes here
as it is printed, and Ctrl-C ends it there.

The command there is held by us: it reads our stdin, where a byte comes every few seconds, and ends when none
does any more (`toolkit.held`). So neither Ctrl-C, nor a killed program here, nor a lost network leaves one
running.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from field.beat import Beat
from field.device import Device, DeviceError, DeviceLost, quote
from field.installed import Installed
from field.sync import digest, item, items_of, push
from rpi_runtime.errors import ResourceError

_GRACE_S = 20.0  # for a command that was asked to end
_MARK = "7d1c"  # nobody else's folder has it
_CODE_MARK = b"\x1e"  # stderr ends with this and the exit code: a cut connection says none


@dataclass(frozen=True)
class Given:
    """A path in a word: a file or folder of ours that is sent, a place that is fetched, or what is there."""

    path: Path
    is_output: bool = False
    prefix: str = ""  # of the word, like "--image="
    place: str = ""  # where it lies there already


Word = str | Given  # of a command line


class _Names:
    """Where our files lie in the folder that a command there works in, and back again in what is printed.

    A relative path is the same there, unless it leads into what lies there already, which nobody writes to.
    Of others the folder gets a name that is found again in any text.
    """

    def __init__(self, words: Sequence[Word]) -> None:
        self._as_json = "--json" in words
        self._there: dict[str, str] = {}  # folder of ours -> its name there
        self._placed = [word.path for word in words if isinstance(word, Given) and word.place]

    def of(self, path: Path) -> str:
        is_inside = any(placed in path.parents for placed in self._placed)
        if not path.is_absolute() and ".." not in path.parts and path.parts and not is_inside:
            return str(path)
        parent = str(path)[: len(str(path)) - len(path.name)]
        folder = self._there.setdefault(parent, f"host-{_MARK}-{len(self._there)}/")
        return f"{folder}{path.name or 'folder'}"

    def back(self) -> dict[bytes, bytes]:
        """What stands there for a folder of ours, and that folder as it is written in what is printed."""

        def written(path: str) -> bytes:
            return os.fsencode(json.dumps(path, ensure_ascii=False)[1:-1] if self._as_json else path)

        return {there.encode(): written(ours) for ours, there in self._there.items()}


def run_there(
    device: Device,
    here: Installed,
    words: Sequence[Word],
    *,
    environment: Mapping[str, str],
    out: IO[bytes],
    err: IO[bytes],
    on_sent: Callable[[int], None] = lambda count: None,
    on_begin: Callable[[], None] = lambda: None,
) -> int:
    """Runs the installed `toolkit` with `words`; its exit code. KeyboardInterrupt is passed on to it, and its
    exit code comes back then, too. `on_sent` hears how many bytes of files travelled, `on_begin` when all
    have.

    Raises `DeviceLost`, `DeviceError`, and `ResourceError` for a file of ours that cannot be sent.
    """
    names = _Names(words)
    line = [f"{word.prefix}{names.of(word.path)}" if isinstance(word, Given) else word for word in words]
    given = [word for word in words if isinstance(word, Given)]
    # A folder that is filled there is found again by the same command, should the connection be lost.
    goes_on = any(one.is_output and not one.path.suffix for one in given)
    told = "\0".join(str(word) for word in words).encode("utf-8", "surrogateescape")
    work = f"{here.prefix}/work/{hashlib.sha256(told).hexdigest()[:12] if goes_on else secrets.token_hex(6)}"
    device.run(
        f"mkdir -p {quote(work)} && cd {quote(here.prefix)}/work || exit 1\n"
        "find . -mindepth 1 -maxdepth 1 -mtime +1 -exec rm -rf {} + 2>/dev/null; exit 0"
    )
    try:
        for one in given:
            _send(device, here, one, f"{work}/{names.of(one.path)}", on_sent)
        on_begin()
        code = _run(device, here, line, work, environment, names.back(), out, err)
        for one in given:
            if one.is_output:
                _fetch(device, f"{work}/{names.of(one.path)}", one.path)
    except DeviceLost:
        raise
    except BaseException:
        _clean(device, work)
        raise
    _clean(device, work)
    return code


def _clean(device: Device, work: str) -> None:
    with suppress(ResourceError):  # a later run does it, too
        device.run(f"rm -rf {quote(work)}")


def _send(device: Device, here: Installed, one: Given, place: str, on_sent: Callable[[int], None]) -> None:
    """A folder is kept under its content's name until something is deployed: many pictures travel once."""
    parent = quote(str(PurePosixPath(place).parent))
    if one.place:
        device.run(f"mkdir -p {parent} && {_linked(one.place, place)}")
        return
    if not one.path.exists():
        # Its absence is for the command to tell.
        device.run(f"mkdir -p {parent}")
        return
    if one.path.is_dir():
        items = items_of(one.path)
        if one.is_output and device.run(f"[ -e {quote(place)} ]", check=False).code == 0:
            return
        if not items:
            device.run(f"mkdir -p {quote(place)}")
            return
        kept = f"{here.prefix}/data/{digest(items)}"
        if device.run(f"[ -d {quote(kept)} ]", check=False).code:
            push(device, items, kept, on_bytes=on_sent)
        # What is written to must not change what is kept; what a lost run wrote is newer.
        copied = f"cp -R {quote(kept)} {quote(place)}" if one.is_output else _linked(kept, place)
        device.run(f"mkdir -p {parent} && {copied}")
        return
    push(device, [item(one.path, one.path.name)], f"{place}.d", on_bytes=on_sent)
    device.run(f"mkdir -p {parent} && mv {quote(place)}.d/* {quote(place)} && rmdir {quote(place)}.d")


def _linked(source: str, place: str) -> str:
    """Some file systems have no links."""
    source, place = quote(source), quote(place)
    return f"{{ [ -e {place} ] || ln -s {source} {place} 2>/dev/null || cp -R {source} {place}; }}"


def _run(
    device: Device,
    here: Installed,
    line: Sequence[str],
    work: str,
    environment: Mapping[str, str],
    back: Mapping[bytes, bytes],
    out: IO[bytes],
    err: IO[bytes],
) -> int:
    set_there = " ".join(f"{name}={quote(value)}" for name, value in environment.items())
    command = " ".join(map(quote, [f"{here.prefix}/bin/toolkit", *line]))
    process = device.start(
        f"cd {quote(work)} || exit 3\nHYPERVL_HELD=1 {set_there} {command}\nprintf '\\036%d' $? >&2",
        stdin=subprocess.PIPE,
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    told = _Copied(process.stdout, out, back)
    warned = _Copied(process.stderr, err, back, mark=_CODE_MARK)
    beat = Beat(process.stdin)
    try:
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.2)
    except KeyboardInterrupt:
        beat.stop()  # which ends it there
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_GRACE_S)
    finally:
        beat.stop()
        if process.poll() is None:
            device.end(process)
        told.join(timeout=5)
        warned.join(timeout=5)
        process.wait()
    code = warned.after_mark
    if not code.isdigit():
        raise device.lost(warned.last)
    return int(code)


class _Copied(threading.Thread):
    """Copies a stream as it comes, with names put back; what follows `mark` is kept for us."""

    def __init__(
        self, source: IO[bytes], into: IO[bytes], back: Mapping[bytes, bytes], mark: bytes = b""
    ) -> None:
        super().__init__(daemon=True)
        self._source, self._into, self._back, self._mark = source, into, back, mark
        self.after_mark = b""
        self.last = ""  # line, before the end
        self.start()

    def run(self) -> None:
        held = b""
        while piece := os.read(self._source.fileno(), 1 << 16):
            held = self._put(held + piece)
        self._put(held, is_end=True)

    def _put(self, text: bytes, is_end: bool = False) -> bytes:
        """Copies what of `text` is certain; the rest."""
        if self._mark and self._mark in text:
            text, _, rest = text.rpartition(self._mark)
            if not is_end:
                return self._put(text) + self._mark + rest
            self.after_mark = rest.strip()
        for there, ours in self._back.items():
            text = text.replace(there, ours)
        keep = 0 if is_end else max((_overlap(text, there) for there in self._back), default=0)
        shown, held = text[: len(text) - keep], text[len(text) - keep :]
        if shown:
            if lines := shown.decode(errors="replace").strip().splitlines():
                self.last = lines[-1]
            with suppress(OSError, ValueError):  # the reader left, as in `| head`
                self._into.write(shown)
                self._into.flush()
        return held


def _overlap(text: bytes, name: bytes) -> int:
    """Length of the longest end of `text` that begins `name`."""
    longest = min(len(text), len(name) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(name[:n])), 0)


def _fetch(device: Device, place: str, target: Path) -> None:
    """Brings a file or folder of the device to `target`, if there is one; a file whole or not at all."""
    if device.run(f"[ -e {quote(place)} ]", check=False).code:
        return
    is_folder = device.run(f"[ -d {quote(place)} ]", check=False).code == 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetched-") as work:
        fetched = Path(work) / "content"
        with fetched.open("wb") as file:
            # The name is none of tar's: GNU's takes a backslash in one for more than that.
            script = f"cd {quote(place)} && tar cf - ." if is_folder else f"cat <{quote(place)}"
            device.stream(script, file.write, timeout=120)
        if is_folder:
            unpack(fetched, Path(work) / "files")
            fetched = Path(work) / "files"
        if is_folder and target.is_dir():
            shutil.copytree(fetched, target, dirs_exist_ok=True)
        else:
            fetched.replace(target)


def unpack(archive: Path, folder: Path) -> None:
    """Plain files and folders of a tar, inside `folder` only. Raises `DeviceError` for a name that would
    leave it: whoever made the archive is not trusted."""
    folder.mkdir()
    with tarfile.open(archive) as tar:
        for member in tar:
            name = PurePosixPath(member.name)
            if name.is_absolute() or ".." in name.parts:
                raise DeviceError(f"the device sends {member.name!r}, outside its folder", "Do not trust it.")
            place = folder.joinpath(*name.parts)
            if member.isdir():
                place.mkdir(parents=True, exist_ok=True)
            elif member.isfile() and (content := tar.extractfile(member)) is not None:
                place.parent.mkdir(parents=True, exist_ok=True)
                with content, place.open("wb") as file:
                    shutil.copyfileobj(content, file)
