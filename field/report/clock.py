"""Where on a time axis a record lies, in s since the first one.

A board without a battery for its clock starts in 1970, or where it was switched off, and jumps when it finds
a time server. `t` of a record is that clock; `ran_s` counts only while the test runs, and never jumps.
"""

from __future__ import annotations

_JUMP_S = 7 * 86400.0  # a device that is away for longer is a clock that was set


class TimeAxis:
    """Give it the records of a device in the order in which they were written."""

    def __init__(self) -> None:
        self._at = 0.0
        self._t: float | None = None
        self._ran_s: float | None = None

    @property
    def now(self) -> float:
        """Of the last record."""
        return self._at

    def place(self, t: float | None, ran_s: float | None) -> float:
        passed = None if t is None or self._t is None else t - self._t
        ran = 0.0 if ran_s is None or self._ran_s is None else max(0.0, ran_s - self._ran_s)
        # The time of day goes on while the test does not run, never slower than the test.
        is_told = passed is not None and ran - 1 <= passed <= ran + _JUMP_S
        self._at += max(0.0, passed) if is_told and passed is not None else ran
        self._t = self._t if t is None else t
        self._ran_s = self._ran_s if ran_s is None else ran_s
        return self._at
