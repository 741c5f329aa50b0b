"""What this CPU can do, as far as the choice of a runtime depends on it.

Source: the `Features` (aarch64) or `flags` (x86) line of /proc/cpuinfo.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

LSE_ATOMICS = (
    "atomics"  # ARMv8.1 atomic instructions: Cortex-A76 (Pi 5) yes, Cortex-A53 and A72 (Pi 3, Pi 4) no
)
DOT_PRODUCT = "asimddp"


@dataclass(frozen=True)
class CpuFeatures:
    """`names` is what every core has: a scheduler may move a thread to any of them."""

    machine: str  # "aarch64", "armv7l", "x86_64"
    names: frozenset[str]


@dataclass(frozen=True)
class Verdict:
    loads: bool
    reason: str  # readable either way


def cpu_features(cpuinfo: Path = CPUINFO, machine: str | None = None) -> CpuFeatures:
    """Reads the features of this CPU. An unreadable or foreign file gives no names, never an error."""
    try:
        text = cpuinfo.read_text(encoding="ascii", errors="replace")
    except OSError:
        text = ""
    return features_in(text, machine or platform.machine())


def features_in(cpuinfo: str, machine: str) -> CpuFeatures:
    """The same of a text, that of another `machine` perhaps."""
    per_core = [
        frozenset(value.split())
        for key, _, value in (line.partition(":") for line in cpuinfo.splitlines())
        if key.strip().lower() in ("features", "flags")
    ]
    return CpuFeatures(machine, frozenset.intersection(*per_core) if per_core else frozenset())


def gpu_library_loads_here(cpu: CpuFeatures) -> Verdict:
    """Whether LiteRT's GPU library may be loaded in this process at all.

    It was compiled with LSE atomics and kills the process (exit 132) on an aarch64 CPU without them: seen
    with ai-edge-litert 2.1.2 to 2.3.0 on a Cortex-A72. Where the features cannot be read, "no" is the answer
    that keeps the process alive.
    """
    if cpu.machine not in ("aarch64", "arm64"):
        return Verdict(True, f"{cpu.machine} CPU")
    if LSE_ATOMICS in cpu.names:
        return Verdict(True, "aarch64 CPU with LSE atomics")
    if cpu.names:
        return Verdict(False, "this CPU has no LSE atomics")
    return Verdict(False, "the CPU's features cannot be read, LSE atomics among them")
