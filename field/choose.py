"""Which runtime a device gets."""

from __future__ import annotations

from field.machine import Machine, Python
from field.package.lock import least_glibc, wheels_for
from field.platforms import OWN, PLATFORMS, Platform
from rpi_runtime.errors import ResourceError, UsageError


def platform_of(machine: Machine) -> Platform:
    """Raises `ResourceError` for a machine that no runtime exists for."""
    if machine.is_android:
        name = {"aarch64": "android-arm64"}.get(machine.machine)
    elif machine.system == "Linux":
        pi = machine.model.startswith("Raspberry Pi")
        name = {
            "aarch64": "pi-arm64" if pi else "linux-arm64",
            "armv7l": "pi-armv7",
            "x86_64": "linux-x64",
        }.get(machine.machine)
    else:
        name = None
    if name is None:
        system = "Android" if machine.is_android else machine.system or "an unknown system"
        raise ResourceError(
            f"no runtime exists for {system} on {machine.machine or 'an unknown CPU'}",
            f"There are runtimes for {', '.join(PLATFORMS)}.",
        )
    return PLATFORMS[name]


def python_of(machine: Machine, platform: Platform, asked: str | None = None) -> str:
    """The newest Python there that will do, or `OWN`, which comes along; or the one that is `asked` for.
    Raises `UsageError` when that will not do."""
    if asked is not None:
        _check_asked(machine, platform, asked)
        return asked
    able = [python for python in machine.pythons if why_not(machine, platform, python) == ""]
    if not able or platform.python == OWN:
        return OWN
    return max((python.minor for python in able), key=lambda minor: int(minor.split(".")[1]))


def _check_asked(machine: Machine, platform: Platform, asked: str) -> None:
    if asked not in platform.pythons:
        raise UsageError(
            f"--python {asked}: not for {platform.name}", f"It may be: {', '.join(platform.pythons)}."
        )
    if asked == OWN:
        return
    found = next((python for python in machine.pythons if python.minor == asked), None)
    why = why_not(machine, platform, found) if found else f"Python {asked} is not there"
    if why:
        raise UsageError(f"--python {asked}: {why}", "Leave --python out, or --python own brings one along.")


def why_not(machine: Machine, platform: Platform, python: Python) -> str:
    """Why the runtime cannot use this Python of the device's; "" when it can."""
    wheels = wheels_for(platform.machine, python.minor) if python.minor in platform.pythons else None
    if wheels is None:
        return f"no wheels exist for Python {python.minor}"
    if python.bits != 64:
        return f"it has {python.bits} bits"
    if python.missing:
        return f"it has no {', '.join(python.missing)}"
    if machine.libc != "glibc":
        return f"the C library is {machine.libc or 'unknown'}, and wheels need glibc"
    if not machine.library("libstdc++.so.6"):
        return "libstdc++.so.6 is missing"
    least = least_glibc(wheels)
    has = tuple(int(part) for part in machine.libc_version.split(".")[:2] if part.isdigit())
    if has < least:
        return f"glibc is {machine.libc_version}, and the wheels need {least[0]}.{least[1]}"
    return ""
