"""Pictures that come while a field test runs: of a camera's command, or as files in a folder that is watched.

Each is kept under the name of its content, so that a picture is what its record says for good.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from field.plan import Camera, Watch

POLL_S = 0.5
SHOT_TIMEOUT_S = 120.0
# Names that programs give to what they have not written to its end.
_UNFINISHED = (".part", ".partial", ".tmp", ".temp", ".crdownload", ".filepart", ".swp", "~")
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class LivePicture:
    name: str
    sha256: str
    file: Path


class NoShot(Exception):
    """Why the camera's command gave no picture."""


class Source(Protocol):
    def next(self, number: int, is_over: Callable[[], bool]) -> LivePicture | None:
        """A new picture, the `number`th; None when it is over before one comes. Raises `NoShot`."""


class CameraSource:
    def __init__(self, camera: Camera, folder: Path) -> None:
        self._camera, self._folder = camera, folder
        self._due = time.monotonic()

    def next(self, number: int, is_over: Callable[[], bool]) -> LivePicture | None:
        while time.monotonic() < self._due:
            if is_over():
                return None
            time.sleep(min(POLL_S, max(0.0, self._due - time.monotonic())))
        self._due = time.monotonic() + self._camera.every_s
        name = f"camera-{number + 1:06}.jpg"
        shot = self._folder / f"shot-{name}"
        script = self._camera.command.replace("{output}", shlex.quote(str(shot)))
        try:
            done = subprocess.run(
                ["/bin/sh" if Path("/bin/sh").exists() else "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=SHOT_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            raise NoShot(f"the camera's command did not end in {SHOT_TIMEOUT_S:g} s") from None
        if done.returncode or not shot.exists() or not shot.stat().st_size:
            said = (done.stderr.strip() or done.stdout.strip() or "it wrote no picture").splitlines()[-1]
            raise NoShot(f"the camera's command ended with code {done.returncode}: {said}")
        kept = keep(shot, name, self._folder)
        shot.unlink()
        return kept


class FolderSource:
    def __init__(self, watch: Watch, folder: Path, known: set[tuple[str, str]]) -> None:
        """`known` are names and sha256 of the pictures that were asked about already."""
        self._watched, self._folder, self._known = Path(watch.folder), folder, known
        self._new = NewFiles(self._watched)

    def next(self, number: int, is_over: Callable[[], bool]) -> LivePicture | None:
        while not is_over():
            for path in self._new.stable():
                try:
                    found = keep(path, path.name, self._folder)
                except OSError:  # it went away
                    continue
                if (found.name, found.sha256) not in self._known:
                    self._known.add((found.name, found.sha256))
                    return found
            time.sleep(POLL_S)
        return None


class NewFiles:
    """Files of a folder, each given once for its size and time, when two looks in a row found the same."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[str, tuple[int, int]] = {}
        self._given: dict[str, tuple[int, int]] = {}

    def stable(self) -> Iterator[Path]:
        """Of this look, in the order of their times; look again after a moment."""
        found: dict[str, tuple[int, int]] = {}
        try:
            entries = list(os.scandir(self._folder))
        except OSError:  # not there yet, or no more, as a stick that is pulled out
            entries = []
        for entry in entries:
            if is_picture_name(entry.name):
                try:
                    told = entry.stat()
                    if entry.is_file() and told.st_size:
                        found[entry.name] = (told.st_size, told.st_mtime_ns)
                except OSError:
                    continue
        before, self._seen = self._seen, found
        for name, state in sorted(found.items(), key=lambda one: (one[1][1], one[0])):
            if before.get(name) == state and self._given.get(name) != state:
                self._given[name] = state
                yield self._folder / name


def is_picture_name(name: str) -> bool:
    """Not hidden, and not what another program has not written to its end."""
    return not name.startswith(".") and not name.lower().endswith((*_UNFINISHED, ".jsonl", ".json"))


def keep(path: Path, name: str, folder: Path) -> LivePicture:
    """A copy of `path` in `folder`, named by its content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    sha256 = digest.hexdigest()
    target = folder / file_name(sha256, name)
    if not target.exists():
        partial = target.with_name(f"{target.name}.partial")
        shutil.copyfile(path, partial)
        partial.replace(target)
    return LivePicture(name, sha256, target)


def file_name(sha256: str, name: str) -> str:
    """What a picture is called in a folder `pictures`."""
    suffix = Path(name).suffix.lower()
    return f"{sha256}{suffix if suffix[1:].isalnum() and len(suffix) < 8 else ''}"
