"""A page of HTML as a file: refused at once where it cannot be, written whole or not at all."""

from __future__ import annotations

import contextlib
from pathlib import Path

from rpi_runtime.errors import ResourceError, UsageError


def check_page(target: Path, option: str = "") -> None:
    """Refuses at once what would fail, or do harm, after the work; `option` is how a user named it. Raises
    `UsageError`."""
    named = f"{option} {target}".strip()
    if target.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{named} is not a .html", "Name the page so.")
    if target.is_dir():
        raise UsageError(f"{named} is a folder", "Name a file in it.")
    if not target.parent.is_dir():
        raise UsageError(f"{named}: there is no folder {target.parent}", "Create it first.")


def write_whole(target: Path, page: str, option: str = "") -> None:
    """Raises `ResourceError`."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        raise ResourceError(
            f"{f'{option} {target}'.strip()} cannot be written: {error.strerror}",
            "Name a file in a folder that you may write.",
        ) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
