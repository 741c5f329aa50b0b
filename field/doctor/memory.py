"""Memory, swap and disk: which models fit, and where an installation goes."""

from __future__ import annotations

from collections.abc import Iterator

from field.doctor.finding import DEBIAN, FINE, PROBLEM, WARNING, Finding, megabytes
from field.machine import Machine
from rpi_runtime.memory_plan import AUTO_SHARE

# The least budgets that answer about a picture (`toolkit plan`, docs/memory.md): of the built-in model with
# a context of 256, and of 0.6 B parameters at int4.
_NANO_BYTES = 120e6
_LARGE_BYTES = 640e6
# With its own Python 136 MB, and its archive 42 MB on the way (docs/package.md).
_RUNTIME_BYTES = 180e6
# A bundle of 0.6 B at int4, its packed weights, and the bundle that it replaces.
_ROOM_BYTES = 1.5e9
_SMALL_BOARD = 1 << 30


def _total(machine: Machine) -> Iterator[Finding]:
    if machine.memory_bytes:
        yield Finding("memory", FINE, f"{megabytes(machine.memory_bytes)} in all")
    else:
        yield Finding(
            "memory",
            WARNING,
            "not told (/proc/meminfo)",
            "No budget can be planned.",
            "Give --memory yourself.",
        )


def _available(machine: Machine) -> Iterator[Finding]:
    if not machine.memory_bytes:
        return
    free = machine.free_memory_bytes
    where = " with swap" if machine.swap_free_bytes else ""
    if free < machine.available_bytes + machine.swap_free_bytes:
        where = " under the limit of its container"
    auto = int(AUTO_SHARE * free)
    found = f"{megabytes(free)} free{where}; --memory auto takes {megabytes(auto)}"
    if auto < _NANO_BYTES:
        yield Finding(
            "memory.free",
            PROBLEM,
            found,
            f"Not even the built-in model fits: it needs {megabytes(_NANO_BYTES)}.",
            "Close other programs (a desktop, a browser), or raise the container's limit.",
        )
    elif auto < _LARGE_BYTES:
        yield Finding(
            "memory.free",
            FINE,
            found,
            f"Room for the built-in model ({megabytes(_NANO_BYTES)}), not for 0.6 B parameters at int4 "
            f"({megabytes(_LARGE_BYTES)}); toolkit plan asks about a bundle.",
        )
    else:
        yield Finding(
            "memory.free", FINE, found, f"Room for 0.6 B parameters at int4 ({megabytes(_LARGE_BYTES)})."
        )


def _swap(machine: Machine) -> Iterator[Finding]:
    apt = ": sudo apt install zram-tools" if machine.os_id in DEBIAN else ""
    small = 0 < machine.memory_bytes <= _SMALL_BOARD and not machine.is_android  # which has its own
    on_disk = [name for name in machine.swaps if "zram" not in name]
    if not machine.swap_bytes:
        yield Finding(
            "memory.swap",
            WARNING if small else FINE,
            "none",
            "When memory runs out the kernel ends a process, and nothing gives way before." if small else "",
            f"Add compressed swap in memory (zram{apt})." if small else "",
        )
    elif on_disk and small:
        without = int(AUTO_SHARE * machine.available_bytes / 1e6)
        yield Finding(
            "memory.swap",
            WARNING,
            f"{megabytes(machine.swap_bytes)} in {', '.join(on_disk)}",
            "--memory auto counts it, and an answer that swaps to a card is slow and wears it.",
            f"Give --memory {without}MB, which is free without it.",
        )
    elif on_disk:
        found = f"{megabytes(machine.swap_bytes)} in {', '.join(on_disk)}"
        yield Finding("memory.swap", FINE, found, "--memory auto counts it.")
    else:
        yield Finding(
            "memory.swap", FINE, f"{megabytes(machine.swap_bytes)} in {', '.join(machine.swaps) or 'swap'}"
        )


def _disk(machine: Machine) -> Iterator[Finding]:
    if not machine.disk_bytes:
        return
    clean = " (sudo apt clean; sudo journalctl --vacuum-size=20M)" if machine.os_id in DEBIAN else ""
    found = f"{megabytes(machine.free_bytes)} free of {megabytes(machine.disk_bytes)} at {machine.place}"
    if machine.free_bytes < _RUNTIME_BYTES:
        yield Finding(
            "disk.free",
            PROBLEM,
            found,
            f"The runtime alone takes {megabytes(_RUNTIME_BYTES)} while it is copied.",
            f"Free some{clean}, or name another place with --prefix.",
        )
    elif machine.free_bytes < _ROOM_BYTES:
        yield Finding(
            "disk.free",
            WARNING,
            found,
            f"Enough for a small model. One of 0.6 B with its packed weights, and the one before it, wants "
            f"{megabytes(_ROOM_BYTES)}.",
            "Free some before a large model, or name another place with --prefix.",
        )
    else:
        yield Finding("disk.free", FINE, found)


def _place(machine: Machine) -> Iterator[Finding]:
    remedy = "Name another place: --prefix PATH."
    if not machine.place_is_writable:
        yield Finding("disk.place", PROBLEM, f"{machine.place or 'no home'} may not be written", "", remedy)
    elif not machine.place_allows_programs:
        yield Finding(
            "disk.place",
            PROBLEM,
            f"{machine.place} is mounted noexec",
            "Programs and libraries there cannot be started.",
            f"{remedy} Or mount it anew: sudo mount -o remount,exec.",
        )
    else:
        yield Finding("disk.place", FINE, f"{machine.place} may be written, programs run there")


CHECKS = (_total, _available, _swap, _disk, _place)
