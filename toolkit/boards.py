"""Boards that a plan can be made for without one at hand: memory, cores, what runtime their CPU bears."""

from __future__ import annotations

from dataclasses import dataclass

from delegates.cpu import LSE_ATOMICS, CpuFeatures, compiled_model_runs_here
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
    has_lse: bool  # Cortex-A76 and later

    @property
    def budget(self) -> int:
        """Bytes that a process may hold there, when nothing else runs: what `--memory auto` would take."""
        return int(AUTO_SHARE * ((self.memory_mib << 20) - _SYSTEM_BYTES))

    @property
    def backend(self) -> str:
        cpu = CpuFeatures("aarch64", frozenset({LSE_ATOMICS} if self.has_lse else ()))
        return "compiled" if compiled_model_runs_here(cpu).runs else "interpreter"


def _family(prefix: str, model: str, sizes_gib: tuple[int, ...], has_lse: bool) -> list[Board]:
    return [Board(f"{prefix}-{gib}gb", f"{model}, {gib} GB", gib << 10, 4, has_lse) for gib in sizes_gib]


BOARDS = {
    board.name: board
    for board in (
        Board("pi-zero2", "Raspberry Pi Zero 2 W", 512, 4, has_lse=False),
        Board("pi3", "Raspberry Pi 3 B+", 1024, 4, has_lse=False),
        *_family("pi4", "Raspberry Pi 4", (1, 2, 4, 8), has_lse=False),
        *_family("pi5", "Raspberry Pi 5", (1, 2, 4, 8, 16), has_lse=True),
    )
}


def board(name: str) -> Board:
    """Raises `UsageError`, naming the nearest, for one that is not known."""
    if name not in BOARDS:
        raise nearest(name, BOARDS, "device")
    return BOARDS[name]
