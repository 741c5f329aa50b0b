"""Figures as people read them."""

from __future__ import annotations

from datetime import datetime, timezone

from vqa.intervals import Share

NONE = "–"
_SPACE = "\N{NO-BREAK SPACE}"


def milliseconds(ms: float | None) -> str:
    if ms is None:
        return NONE
    if ms >= 1000:
        return f"{ms / 1000:,.1f} s" if ms >= 10_000 else f"{ms / 1000:.2f} s"
    return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.1f} ms"


def megabytes(count_bytes: float) -> str:
    return f"{count_bytes / 1e6:,.1f} MB" if count_bytes else NONE


def gigabytes(count_bytes: float) -> str:
    return f"{count_bytes / 1e9:,.1f} GB" if count_bytes >= 1e9 else megabytes(count_bytes)


def percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.0f}{_SPACE}%"


def interval(share: Share | None) -> str:
    return NONE if share is None else f"{100 * share.low:.0f} to {100 * share.high:.0f}{_SPACE}%"


def decimal(value: float | None, unit: str = "", digits: int = 1) -> str:
    if value is None:
        return NONE
    return f"{value:,.{digits}f} {unit}".strip()


def duration(seconds: float) -> str:
    whole = round(seconds)
    for size, unit, smaller, smaller_unit in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit} {rest} {smaller_unit}" if rest else f"{whole // size} {unit}"
    return f"{seconds:.0f} s"


def moment(t: float | None) -> str:
    """By UTC. "" for what is no time that a calendar has."""
    try:
        return "" if t is None else datetime.fromtimestamp(t, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return ""


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
