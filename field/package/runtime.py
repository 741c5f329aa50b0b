"""A runtime: the folder `runtimes/<id>` of a device, made once and never changed.

`build_runtime` makes it in a cache of this machine, `runtime_archive` packs it. What is put into packages and
what `toolkit deploy` copies are the same bytes, and so have the same id.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from field.package import contents
from field.package.contents import own_rooms, own_version
from field.package.gather import Tell, default_cache, gather_debs, gather_wheels
from field.package.launchers import python_launcher, toolkit_launcher
from field.package.lock import debs_for, least_glibc, wheels_of
from field.package.tree import EPOCH, files_of, write_tar
from field.package.unpack import Member, wheel_members
from field.platforms import OWN, OWN_PYTHON, Platform
from rpi_runtime.bundle import sha256_of

RUNTIME_FILE = "runtime.json"
_ID_DIGITS = 16
_KEPT, _KEPT_SECONDS = 8, 86400


@dataclass(frozen=True)
class Runtime:
    folder: Path  # in the cache; nobody writes into it
    id: str
    platform: Platform
    python: str  # "3.11", or OWN
    gpu: bool  # whether LiteRT's GPU library is in it
    glibc: tuple[int, int]  # the C library that a device must have at least; (0, 0) when it brings its own
    bytes_by_part: dict[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.bytes_by_part.values())


def build_runtime(
    platform: Platform,
    python: str | None = None,
    *,
    gpu: bool = False,
    cache: Path | None = None,
    tell: Tell = lambda line: None,
) -> Runtime:
    """The runtime for `platform` and `python` (by default the platform's), from the cache where it was made
    before. Without `gpu`, LiteRT's GPU library is left out: 17 MB, and it ends a process on a Pi 4.

    Raises `UsageError` for a Python that cannot serve there, `CannotGather` without a network when a part is
    not in the cache, `NotAsLocked` when one is not what it should be.
    """
    python, cache = python or platform.python, cache or default_cache()
    wheels = wheels_of(platform, python)
    known = cache / "runtimes" / f"{_key(platform, python, gpu=gpu)}.json"
    found = _known(known, platform, python, gpu)
    if found is not None:
        return found
    version = OWN_PYTHON if python == OWN else python
    wheel_files = gather_wheels(wheels, version, cache, tell)
    debs = debs_for(platform.debian) if python == OWN else ()
    deb_files = gather_debs(debs, cache, tell)
    glibc = (0, 0) if python == OWN else least_glibc(wheels)
    known.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=known.parent, prefix="partial-") as name:
        tree = _Tree(Path(name) / "runtime")
        keep = contents.wanted(gpu=gpu)
        for wheel, file in zip(wheels, wheel_files, strict=True):
            tell(f"unpacking {wheel.name} {wheel.version}")
            for place, member in wheel_members(file, keep):
                tree.add("site" / place, member, contents.part_of(wheel.name))
        for deb, file in zip(debs, deb_files, strict=True):
            tell(f"unpacking {deb.package} {deb.version}")
            for place, member, part in contents.deb_contents(deb, file, keep):
                tree.add(place, member, part)
        for place, member in own_rooms():
            tree.add("site" / place, member, contents.OURS)
        told = {
            "version": own_version(),
            "machine": platform.machine,
            "python": python,
            "android": platform.android,
            "gpu": gpu,
            "glibc": f"{glibc[0]}.{glibc[1]}" if any(glibc) else "own",
            "wheels": {wheel.file: wheel.sha256 for wheel in wheels},
            "debs": {deb.file: deb.sha256 for deb in debs},
        }
        for path, text in (
            ("bin/python", python_launcher(platform, python)),
            ("bin/toolkit", toolkit_launcher(platform)),
            (RUNTIME_FILE, json.dumps(told, indent=1) + "\n"),
        ):
            tree.add(PurePosixPath(path), Member(text.encode(), path.startswith("bin/")), contents.OURS)
        tree.finish()
        made = _placed(tree.folder, known.parent)
    _write(known, json.dumps({"id": made.name, "parts": tree.bytes_by_part}))
    _forget_old(known.parent)
    return Runtime(made, made.name, platform, python, gpu, glibc, tree.bytes_by_part)


def runtime_archive(runtime: Runtime) -> Path:
    """A .tar.gz of it in the cache, whose members are `<id>/...`: the same bytes for the same runtime."""
    archive = runtime.folder.parent / f"{runtime.id}.tar.gz"
    if not archive.exists():
        write_tar(archive, [(runtime.id, runtime.folder)])
    return archive


def runtime_id(folder: Path) -> str:
    """First digits of the SHA-256 over path, mode and SHA-256 of each file."""
    found = hashlib.sha256()
    for path, file in files_of(folder):
        mode = "755" if file.stat().st_mode & 0o100 else "644"
        found.update(f"{path}\0{mode}\0{sha256_of(file)}\n".encode())
    return found.hexdigest()[:_ID_DIGITS]


class _Tree:
    """A folder that is being filled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bytes_by_part: dict[str, int] = {}

    def add(self, place: PurePosixPath, member: Member, part: str) -> None:
        file = self.folder / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(member.data)
        file.chmod(0o755 if member.executable else 0o644)
        self.bytes_by_part[part] = self.bytes_by_part.get(part, 0) + len(member.data)

    def finish(self) -> None:
        """All files get one time: nothing in them tells when it was made."""
        for folder, _, names in os.walk(self.folder):
            Path(folder).chmod(0o755)
            for name in names:
                os.utime(Path(folder) / name, (EPOCH, EPOCH))


def _key(platform: Platform, python: str, *, gpu: bool) -> str:
    """Of all that goes into a runtime, this room's own code among it."""
    found = hashlib.sha256(f"{platform.machine} {platform.shell} {python} {gpu}\n".encode())
    for place, member in own_rooms():
        found.update(f"{place}\0{hashlib.sha256(member.data).hexdigest()}\n".encode())
    return found.hexdigest()[:_ID_DIGITS]


def _known(note: Path, platform: Platform, python: str, gpu: bool) -> Runtime | None:
    """What was made before, when it is still what it was."""
    try:
        held = json.loads(note.read_text(encoding="utf-8"))
        folder = note.parent / str(held["id"])
        if runtime_id(folder) != folder.name:
            return None
        parts = {str(part): int(size) for part, size in held["parts"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    os.utime(note)  # `_forget_old` goes by it
    glibc = (0, 0) if python == OWN else least_glibc(wheels_of(platform, python))
    return Runtime(folder, folder.name, platform, python, gpu, glibc, parts)


def _forget_old(runtimes: Path) -> None:
    """Removes runtimes that were not used for a while, but for the last few: with its archive, each takes
    150 MB."""
    oldest = time.time() - _KEPT_SECONDS

    def last_used(path: Path) -> float:
        return path.stat().st_mtime

    with suppress(
        OSError, ValueError, KeyError
    ):  # another process does the same; the next call mends the rest
        notes = sorted(runtimes.glob("*.json"), key=last_used, reverse=True)
        for note in [note for note in notes[_KEPT:] if last_used(note) < oldest]:
            note.unlink()
        ids = {json.loads(note.read_text())["id"] for note in runtimes.glob("*.json")}
        for found in [
            path for path in runtimes.iterdir() if path.suffix != ".json" and last_used(path) < oldest
        ]:
            if found.name.partition(".")[0] in ids:
                continue
            if found.is_dir():
                shutil.rmtree(found)
            else:
                found.unlink()


def _placed(tree: Path, runtimes: Path) -> Path:
    """`tree` under its id, in place of one that somebody changed."""
    target = runtimes / runtime_id(tree)
    if target.exists() and runtime_id(target) != target.name:
        shutil.rmtree(target)
    with suppress(OSError):  # another process has just made the same
        tree.rename(target)
    return target


def _write(file: Path, text: str) -> None:
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)
