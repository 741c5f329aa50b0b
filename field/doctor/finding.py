"""What a check found, in the words that a person reads."""

from __future__ import annotations

from dataclasses import dataclass

FINE, WARNING, PROBLEM = "fine", "warning", "problem"
# Where neither the device's Python nor its C library will do.
DEBIAN = ("debian", "raspbian", "ubuntu")  # as os-release has it: there is apt
OWN_PYTHON = "toolkit package --python own: such a package brings a Python 3.11 and its C library."


@dataclass(frozen=True)
class Finding:
    check: str  # stays the same from version to version: "cpu.lse"
    level: str  # FINE, WARNING (it works, but) or PROBLEM (it does not)
    found: str  # with its value
    follows: str = ""  # for this toolkit
    remedy: str = ""  # of what is not fine


def megabytes(count_bytes: float) -> str:
    return f"{count_bytes / 1e6:,.0f} MB" if count_bytes < 10e9 else f"{count_bytes / 1e9:,.1f} GB"
