"""What goes into a package, to the byte: every wheel and every Debian package with its SHA-256.

`scripts/lock_wheels.py` and `scripts/lock_debs.py` write the two files that are read here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from field.platforms import OWN, OWN_PYTHON, Platform
from rpi_runtime.errors import UsageError

DATA = Path(__file__).resolve().parent.parent / "data"
WHEELS_LOCK, DEBS_LOCK = DATA / "wheels.lock", DATA / "debs.lock"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~%-]*")


@dataclass(frozen=True)
class Wheel:
    file: str  # name-version-python-abi-platforms.whl
    sha256: str
    bytes: int

    @property
    def name(self) -> str:
        return self.file.split("-")[0]

    @property
    def version(self) -> str:
        return self.file.split("-")[1]

    @property
    def tags(self) -> tuple[str, ...]:
        """Platform tags: "any", "manylinux_2_17_aarch64"."""
        return tuple(self.file.removesuffix(".whl").split("-")[-1].split("."))

    @property
    def glibc(self) -> tuple[int, int]:
        """The C library that it needs at least, (0, 0) when none."""
        found = [re.match(r"manylinux_(\d+)_(\d+)_", tag) for tag in self.tags]
        versions = [(int(match[1]), int(match[2])) for match in found if match]
        return min(versions, default=(0, 0))


@dataclass(frozen=True)
class Deb:
    package: str
    version: str
    path: str  # in the archive: "pool/main/..."
    sha256: str
    sha1: str  # what snapshot.debian.org knows it by, when the archive has a newer one
    bytes: int
    libraries: tuple[str, ...]  # the shared libraries that are taken out of it, by file name
    part: str  # "python", "modules" (for site/) or "libraries"

    @property
    def file(self) -> str:
        return self.path.rpartition("/")[2]


def wheels_for(machine: str, python: str) -> tuple[Wheel, ...] | None:
    """The wheels for a machine ("aarch64") and a Python ("3.11"); None when some of them do not exist."""
    return _wheel_sets().get(f"{machine} {python}")


def debs_for(architecture: str) -> tuple[Deb, ...]:
    """What a Python of its own is made of, for Debian's `architecture`; empty for one that is not known."""
    return _deb_sets().get(architecture, ())


def wheels_of(platform: Platform, python: str) -> tuple[Wheel, ...]:
    """Raises `UsageError` when `python` cannot serve on `platform`."""
    found = wheels_for(platform.machine, OWN_PYTHON if python == OWN else python)
    if python not in platform.pythons or found is None:
        able = ", ".join(platform.pythons)
        raise UsageError(
            f"--python {python}: not all wheels exist for {platform.name}", f"It may be: {able}."
        )
    return found


def least_glibc(wheels: Sequence[Wheel]) -> tuple[int, int]:
    """The C library that all of them need at least."""
    return max((wheel.glibc for wheel in wheels), default=(0, 0))


@cache
def _wheel_sets() -> dict[str, tuple[Wheel, ...]]:
    return read_wheels(WHEELS_LOCK.read_text(encoding="utf-8"))


@cache
def _deb_sets() -> dict[str, tuple[Deb, ...]]:
    return read_debs(DEBS_LOCK.read_text(encoding="utf-8"))


def read_wheels(text: str) -> dict[str, tuple[Wheel, ...]]:
    """Wheels by "machine python". Raises `ValueError` for a name that is a path, or a hash that is none."""
    held = json.loads(text)
    known = {
        file: Wheel(file, _hash(one["sha256"]), int(one["bytes"])) for file, one in held["wheels"].items()
    }
    for file in known:
        if not file.endswith(".whl") or file.count("-") < 4:
            raise ValueError(f"{file!r} is no name of a wheel")
        _file_name(file)
    return {key: tuple(known[file] for file in files) for key, files in held["sets"].items()}


def read_debs(text: str) -> dict[str, tuple[Deb, ...]]:
    """Debian packages by architecture; raises as `read_wheels`."""
    return {key: tuple(map(_deb, debs)) for key, debs in json.loads(text).items()}


def _deb(held: dict[str, Any]) -> Deb:
    for part in held["path"].split("/"):
        _file_name(part)
    libraries = tuple(_file_name(name) for name in held["libraries"])
    return Deb(**{**held, "sha256": _hash(held["sha256"]), "libraries": libraries})


def _hash(text: str) -> str:
    if not _SHA256.fullmatch(text):
        raise ValueError(f"{text!r} is no SHA-256")
    return text


def _file_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(f"{text!r} is no file's name")
    return text
