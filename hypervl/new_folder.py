"""Writing a folder so that nobody ever sees half of it: beside its place, then renamed."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rpi_runtime.errors import ResourceError, UsageError


@contextmanager
def new_folder(
    target: Path, *, replace: bool, ours: Callable[[str], bool], needed_bytes: int
) -> Iterator[Path]:
    """Yields an empty folder that becomes `target` when the block ends well, and is gone when it does not.

    With `replace`, an existing `target` is swapped for it in one step, provided that it holds nothing but
    files whose names are `ours`: a mistyped path must not cost anybody a folder.

    Raises `UsageError` for a target that exists or is another's, `ResourceError` when the disk has not
    `needed_bytes` free.
    """
    target = target.absolute()
    exists = os.path.lexists(target)
    check_target(target, replace=replace, ours=ours)
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < needed_bytes:
        raise ResourceError(
            f"{target} needs {needed_bytes / 1e6:,.0f} MB, its disk has {free / 1e6:,.0f} MB free",
            "Free some space, or write to another disk.",
        )
    # The name is always the same, so that what a killed run left behind goes when the next one starts.
    scratch = target.with_name(f".{target.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
        if not exists:
            scratch.rename(target)
        elif not exchange(scratch, target):
            aside = target.with_name(f".{target.name}.replaced")
            target.rename(aside)
            scratch.rename(target)
            shutil.rmtree(aside)
    finally:
        # Behind an exchange this is the old folder.
        shutil.rmtree(scratch, ignore_errors=True)


def check_target(target: Path, *, replace: bool, ours: Callable[[str], bool]) -> None:
    """Raises `UsageError` for a target that `new_folder` would refuse: to be asked before hours of work."""
    if os.path.lexists(target):
        if not replace:
            raise UsageError(f"{target} exists already", "Choose another name, or replace it with --force.")
        _refuse_foreign(target, ours)


def _refuse_foreign(target: Path, ours: Callable[[str], bool]) -> None:
    if target.is_symlink() or not target.is_dir():
        raise UsageError(f"{target} is not a folder, and is not replaced", "Choose another name.")
    foreign = sorted(p.name for p in target.iterdir() if not p.is_file() or not ours(p.name))
    if foreign:
        raise UsageError(f"{target} holds {foreign[0]!r}, and is not replaced", "Choose another name.")


def exchange(one: Path, other: Path) -> bool:
    """Swaps two paths in one step; False where the system cannot (not every system and disk can)."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    current_folder, exchange_flag = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of <linux/fs.h>
    return bool(
        renameat2(current_folder, os.fsencode(one), current_folder, os.fsencode(other), exchange_flag) == 0
    )
