"""The work folder `<BUNDLE>.partial` beside a bundle: locked, resumable, and swapped in when whole.

lock        held while a convert runs
stages/     result of each finished stage        logs/    what each stage's process printed
work/       float32 graphs                       scratch/ temporary files of the running stage
bundle/     the files of the new bundle
previous/   the old bundle, for a moment, where the kernel cannot exchange two folders
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from converters.stage_worker import sync_folder
from converters.stages import StageFailed
from hypervl.new_folder import exchange
from rpi_runtime.errors import ResourceError, UsageError
from rpi_runtime.manifest import FOOTPRINT_FILE, MANIFEST_FILE

_BUNDLE_FILES = (
    MANIFEST_FILE,
    FOOTPRINT_FILE,
    "*.tflite",
    "*.sample.npz",
    "embedding.*",
    "tokenizer.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class Workspace:
    bundle: Path  # where the bundle will be
    folder: Path  # the work folder

    @property
    def new_bundle(self) -> Path:
        return self.folder / "bundle"

    def publish(self) -> None:
        """Puts the new bundle in its place; a reader finds the old one whole or the new one whole."""
        new, place, previous = self.new_bundle, self.bundle, self.folder / "previous"
        _need_replaceable(place)  # it may have changed during the hours of a convert
        if not place.exists():
            new.rename(place)
        elif not exchange(new, place):
            place.rename(previous)
            new.rename(place)
        sync_folder(place.parent)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def workspace(bundle: Path) -> Iterator[Workspace]:
    """The locked work folder for `bundle`.

    An error leaves it for the next run to resume, unless nothing was finished. Raises `UsageError` when
    something that is not a bundle is in the way or another convert is at work, `ResourceError` without
    permission or space.
    """
    place = Path(os.path.realpath(bundle))
    with _plain_words(place):
        _need_replaceable(place)
        folder = place.with_name(place.name + ".partial")
        lock = _lock(folder, place)
        try:
            _recover(place, folder / "previous")
            try:
                yield Workspace(place, folder)
            except BaseException as error:
                if not isinstance(error, StageFailed) and not _holds_results(folder):
                    shutil.rmtree(folder, ignore_errors=True)
                raise
        finally:
            os.close(lock)


def _need_replaceable(place: Path) -> None:
    """A convert replaces a bundle or an empty folder, never anything else a user may have put there."""
    if not place.exists():
        return
    if place.is_mount():
        raise UsageError(
            f"{place} is a mount point, which cannot be exchanged", f"Write to {place / 'bundle'}."
        )
    if not place.is_dir():
        raise UsageError(f"{place} exists and is a file", "Choose another name for the bundle.")
    names = sorted(p.name for p in place.iterdir())
    if names and MANIFEST_FILE not in names:
        raise UsageError(f"{place} exists and is not a bundle", "Choose another name, or remove it yourself.")
    foreign = [n for n in names if not any(fnmatch(n, pattern) for pattern in _BUNDLE_FILES)]
    if foreign:
        raise UsageError(
            f"{place} holds files that no convert made: {', '.join(foreign[:5])}",
            "Move them elsewhere or choose another name: the whole folder would be replaced.",
        )


def _lock(folder: Path, place: Path) -> int:
    """An open file that holds the lock until it is closed."""
    if folder.exists() and not (folder / "lock").exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} exists and is not the work folder of a convert", "Remove or rename it.")
    while True:
        folder.mkdir(exist_ok=True)
        try:
            handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the convert that held it has just finished and removed the folder
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise UsageError(
                f"another convert is writing {place}", "Wait for it to end, or choose another name."
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), (folder / "lock").stat()):
                return handle
        os.close(handle)


def _recover(place: Path, previous: Path) -> None:
    """Ends an exchange that was cut off between its two renames."""
    if previous.exists():
        if place.exists():
            shutil.rmtree(previous)
        else:
            previous.rename(place)


def _holds_results(folder: Path) -> bool:
    return any(p.is_file() for name in ("work", "bundle", "previous") for p in (folder / name).rglob("*"))


@contextlib.contextmanager
def _plain_words(place: Path) -> Iterator[None]:
    """Turns errors of the file system into messages with what is free and what to do."""
    try:
        yield
    except OSError as error:
        where = error.filename or place
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(place.parent).free
            raise ResourceError(
                f"the disk is full: {free / 1e6:,.1f} MB free while writing {where}",
                "Free some space or write to another disk, then run again: finished stages are kept.",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ResourceError(
                f"cannot write {where}: {error.strerror}", "Choose a place for the bundle that you may write."
            ) from error
        if isinstance(error, FileNotFoundError) and not place.parent.exists():
            raise UsageError(
                f"{place.parent}: no such folder", "Create it first, or choose another place."
            ) from error
        raise
