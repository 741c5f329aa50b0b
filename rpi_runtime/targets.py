"""How users name what a graph is to run on."""

from __future__ import annotations

from delegates.nnapi import LEVELS
from delegates.npu import VENDORS
from delegates.targets import DEFAULT_NNAPI_LEVEL, DELEGATES, Target
from rpi_runtime.errors import UsageError, nearest


def parse_target(text: str, nnapi_level: int | None = None) -> Target:
    """Reads `cpu`, `gpu`, `nnapi`, `nnapi:<feature level>`, `npu:<vendor>` and `npu:<vendor>:<SoC>`.
    `nnapi_level` is that of `nnapi` alone. Raises `UsageError`, with the nearest right name."""
    name, *values = text.strip().split(":")
    name = name.lower()
    if name == "external":
        raise UsageError(
            f"{text!r}: what an external delegate takes, its library alone knows",
            "See it when running: toolkit run --delegate external:PATH.",
        )
    if name not in DELEGATES:
        raise nearest(name, DELEGATES, "delegate")
    if name == "nnapi":
        return Target(name, nnapi_level=_level(text, values, nnapi_level))
    if nnapi_level is not None:
        raise UsageError(f"a feature level of NNAPI is given, and the delegate is {name}", "Leave one out.")
    if name == "npu":
        return _npu(text, values)
    if values:
        raise UsageError(f"delegate {text!r}: {name} takes no value", f"Use {name}.")
    return Target(name)


def _npu(text: str, values: list[str]) -> Target:
    vendors = f"Name its vendor: {', '.join(f'npu:{vendor}' for vendor in VENDORS)}."
    if not values or len(values) > 2 or not values[0]:
        raise UsageError(f"delegate {text!r} is not npu:<vendor> or npu:<vendor>:<SoC>", vendors)
    vendor, soc = values[0].lower(), values[1] if len(values) == 2 else ""
    if vendor not in VENDORS:
        raise nearest(vendor, VENDORS, "NPU vendor")
    spelled = {name.lower(): name for name in VENDORS[vendor].targets}
    if soc and soc.lower() not in spelled:
        raise nearest(soc, VENDORS[vendor].targets, f"SoC of {VENDORS[vendor].maker}")
    return Target("npu", vendor=vendor, soc=spelled[soc.lower()] if soc else "")


def _level(text: str, values: list[str], asked: int | None) -> int:
    if len(values) > 1 or (values and asked is not None):
        raise UsageError(f"delegate {text!r} names more than one feature level", "Give one, as in nnapi:29.")
    known = ", ".join(f"{level} ({title})" for level, title in LEVELS.items())
    if not values:
        level = DEFAULT_NNAPI_LEVEL if asked is None else asked
    elif values[0].isdecimal():
        level = int(values[0])
    else:
        raise UsageError(f"delegate {text!r}: {values[0]!r} is not a feature level", f"Known: {known}.")
    if level not in LEVELS:
        raise UsageError(f"NNAPI has no feature level {level}", f"Known: {known}.")
    return level
