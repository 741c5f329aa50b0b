"""The errors a user sees: one base class, one exit code each.

A message says what was wrong, with the value; `remedy` says what to do next. The command line prints both and
leaves with `exit_code`. Anything that is not an `EdgeError` is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    FINE = 0
    CHECK_FAILED = 1
    WRONG_USAGE = 2
    COULD_NOT_CHECK = 3


class EdgeError(Exception):
    """Shown to the user as one or two lines, without a traceback."""

    exit_code: ExitCode = ExitCode.COULD_NOT_CHECK

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n{self.remedy}" if self.remedy else self.message


class UsageError(EdgeError):
    """The user asked for something that does not exist or cannot be combined (exit 2)."""

    exit_code = ExitCode.WRONG_USAGE


class CheckFailed(EdgeError):
    """A check ran and found something: a parity miss, a changed file (exit 1)."""

    exit_code = ExitCode.CHECK_FAILED


class BundleError(EdgeError):
    """A bundle or one of its files cannot be read or trusted."""


class CheckpointError(EdgeError):
    """A checkpoint folder is missing parts, or its tensors do not fit its config."""


class ImageError(EdgeError):
    """A picture cannot be opened, or is one that nobody should open."""


class ResourceError(EdgeError):
    """Not enough memory, disk or permission, or a CPU that cannot run this."""


class DelegateFailed(ResourceError):
    """A delegate failed with a graph, which can still be opened without it."""


def nearest(wrong: str, known: Iterable[str], what: str) -> UsageError:
    """A `UsageError` for an unknown name that offers the nearest right one and lists the rest."""
    names = sorted(known)
    close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.4)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return UsageError(f"unknown {what} {wrong!r}", f"{hint}Known: {', '.join(names)}.")
