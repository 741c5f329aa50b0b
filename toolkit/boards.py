"""Boards that a plan can be made for without one at hand: their memory and cores."""

from __future__ import annotations

from dataclasses import dataclass

from rpi_runtime.errors import nearest
from rpi_runtime.memory_plan import AUTO_SHARE

# What firmware, kernel and an idle Raspberry Pi OS Lite (64 bits, Bookworm) take: of a Pi Zero 2 W's 512 MiB
# 291.6 were available. Source: docs.printercow.com/guide/32bit-vs-64bit.html; assumed of all boards.
_SYSTEM_BYTES = round((512 - 291.6) * (1 << 20))


@dataclass(frozen=True)
class Board:
    name: str
    model: str
    memory_mib: int
    cores: int

    @property
    def budget(self) -> int:
        """Bytes that a process may hold there, when nothing else runs: what `--memory auto` would take."""
        return int(AUTO_SHARE * ((self.memory_mib << 20) - _SYSTEM_BYTES))


def _family(prefix: str, model: str, sizes_gib: tuple[int, ...]) -> list[Board]:
    return [Board(f"{prefix}-{gib}gb", f"{model}, {gib} GB", gib << 10, 4) for gib in sizes_gib]


BOARDS = {
    board.name: board
    for board in (
        Board("pi-zero2", "Raspberry Pi Zero 2 W", 512, 4),
        Board("pi3", "Raspberry Pi 3 B+", 1024, 4),
        *_family("pi4", "Raspberry Pi 4", (1, 2, 4, 8)),
        *_family("pi5", "Raspberry Pi 5", (1, 2, 4, 8, 16)),
    )
}


def board(name: str) -> Board:
    """Raises `UsageError`, naming the nearest, for one that is not known."""
    if name not in BOARDS:
        raise nearest(name, BOARDS, "device")
    return BOARDS[name]
