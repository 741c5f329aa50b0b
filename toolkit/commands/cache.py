"""`toolkit cache`: the packed weights that earlier runs have left, and how to be rid of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from rpi_runtime import verified
from rpi_runtime.backends import weight_cache
from rpi_runtime.errors import UsageError
from toolkit import report
from toolkit.commands import options as opt

_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"))


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove them.")] = False,
    older_than: Annotated[
        float | None,
        typer.Option(
            min=0, help="With --clear: only those not used for so many days.", show_default="all of them"
        ),
    ] = None,
    device: opt.Device = None,
    as_json: opt.Json = False,
) -> None:
    """Show or remove the files of packed weights that make the next start fast.

    A file that is removed is made again when its graph is next opened. The least recently used ones go by
    themselves when all take more than 4 GB. Beside them lie small notes: what graphs were measured to take,
    and which bundles were checked. --clear removes them, too.
    """
    if older_than is not None and not clear:
        raise UsageError(f"--older-than {older_than:g} says what to remove", "Add --clear.")
    folder = weight_cache.default_folder()
    now, found = time.time(), weight_cache.entries(folder)
    removed: list[weight_cache.Entry] = []
    if clear:
        wanted = [entry for entry in found if now - entry.last_used >= 86400 * (older_than or 0)]
        kept = weight_cache.clear(folder, wanted)
        removed = [entry for entry in wanted if entry not in kept]
        for entry in kept:
            report.warning(f"{entry.graph} is being opened by another process: its cache stays")
        found = [entry for entry in found if entry not in removed]
    notes = _notes(folder)
    forgotten: list[Path] = []
    if clear and older_than is None:
        for note in notes:
            note.unlink(missing_ok=True)
        notes, forgotten = [], notes
    if as_json:
        report.print_json(
            {
                "folder": folder,
                "limit_bytes": weight_cache.DEFAULT_LIMIT_BYTES,
                "caches": found,
                "removed": removed,
                "notes": notes,
                "removed_notes": forgotten,
            }
        )
        return
    if clear:
        more = f", and {report.count(len(forgotten), 'note')} on bundles" if forgotten else ""
        report.out.print(f"removed {_count(removed)}{more}", highlight=False)
    if not found:
        report.out.print(f"no packed weights in {folder}", highlight=False, soft_wrap=True)
    else:
        report.table(
            f"{folder}: {_count(found)}, limit {report.megabytes(weight_cache.DEFAULT_LIMIT_BYTES)}",
            ("graph", "runtime", "size", "last used"),
            [(e.graph, e.runtime, report.megabytes(e.bytes), _ago(now - e.last_used)) for e in found],
            right=("size",),
        )
    if notes:
        report.out.print(f"{report.count(len(notes), 'note')} on bundles beside them", highlight=False)


def _notes(folder: Path) -> list[Path]:
    """Files on what graphs were measured to take, and on which bundles were checked."""
    checked = verified.state_file()
    return [*sorted(folder.glob("*.footprint")), *([checked] if checked and checked.exists() else [])]


def _count(entries: list[weight_cache.Entry]) -> str:
    size = report.megabytes(sum(entry.bytes for entry in entries))
    return f"{len(entries)} cache{'' if len(entries) == 1 else 's'}, {size}"


def _ago(seconds: float) -> str:
    for length, unit in _UNITS:
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'' if count == 1 else 's'} ago"
    return "just now"
