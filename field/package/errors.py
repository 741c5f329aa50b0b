"""What goes wrong while a package is made."""

from __future__ import annotations

from rpi_runtime.errors import CheckFailed, ResourceError


class CannotGather(ResourceError):
    """A part is neither in the cache nor to be had; nothing was written."""


class NotAsLocked(CheckFailed):
    """A part is not, to the byte, what the lock says, or holds what no such part should."""
