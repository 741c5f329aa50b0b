"""Values of records that a device wrote: anything may be missing, of another type, or hostile."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rpi_runtime.printable import printable as shown_safely

MAX_TEXT = 4000  # characters of one text; a longer one is cut


def printable(text: str) -> str:
    """What a page may hold of it."""
    shown = shown_safely(text)
    return shown if len(shown) <= MAX_TEXT else f"{shown[:MAX_TEXT]}…"


def text(record: Mapping[str, Any], key: str, default: str = "") -> str:
    value = record.get(key)
    if isinstance(value, str):
        return printable(value)
    return default if value is None or isinstance(value, (dict, list)) else printable(str(value))


def name(record: Mapping[str, Any], key: str) -> str:
    """What tells one thing from another: nothing is cut off. Raises ValueError without a text."""
    value = record.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key} is {value!r}")
    return value


def number(record: Mapping[str, Any], key: str) -> float | None:
    """None for what is no finite number."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:  # an integer of 400 digits
        return None
    return found if math.isfinite(found) and abs(found) < 1e18 else None


def count(record: Mapping[str, Any], key: str) -> int:
    return int(number(record, key) or 0)


def flag(record: Mapping[str, Any], key: str) -> bool | None:
    value = record.get(key)
    return value if isinstance(value, bool) else None


def mapping(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def rows(record: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = record.get(key)
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def counts(record: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """Of a list of whole numbers above 0; empty for anything else."""
    value = record.get(key)
    if not isinstance(value, list) or not all(type(one) is int and 0 < one < 1 << 31 for one in value):
        return ()
    return tuple(value)


def numbers(record: Mapping[str, Any], key: str) -> dict[str, float]:
    """Of a mapping from names to numbers; what is no number is left out."""
    found = mapping(record, key)
    pairs = ((printable(name), number(found, name)) for name in found)
    return {name: value for name, value in pairs if value is not None}
