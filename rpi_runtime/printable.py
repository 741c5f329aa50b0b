"""Texts of others, such as a model's words or a name in a file, made safe to show."""

from __future__ import annotations

_SPACES = "\n\t\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{THIN SPACE}\N{IDEOGRAPHIC SPACE}"


def printable(text: str) -> str:
    """Without characters that steer a terminal, that no page may hold, or that turn what stands around them
    (as U+202E does)."""
    return "".join(c if c.isprintable() or c in _SPACES else "\N{REPLACEMENT CHARACTER}" for c in text)
