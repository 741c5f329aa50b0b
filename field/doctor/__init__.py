"""Can a device do the job? Findings from what `field/machine.py` knows of it.

`examine` is a function of these facts alone, so a recorded device can be examined again anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from field.doctor import board, cpu, delegates, memory, software
from field.doctor.finding import FINE, PROBLEM, WARNING, Finding
from field.machine import Machine

__all__ = ["FINE", "PROBLEM", "WARNING", "Finding", "examine"]

Check = Callable[[Machine], Iterator[Finding]]

_CHECKS: tuple[Check, ...] = (
    *software.SYSTEM,
    *cpu.CHECKS,
    *memory.CHECKS,
    *software.CHECKS,
    *delegates.CHECKS,
    *board.CHECKS,
)


def examine(machine: Machine) -> tuple[Finding, ...]:
    return tuple(finding for check in _CHECKS for finding in check(machine))
