"""Which runtime there is for a machine, as the package index has wheels of it (pip download, each tag)."""

from __future__ import annotations

from dataclasses import dataclass

from field.package.lock import wheels_for
from field.platforms import PLATFORMS, PYTHONS


@dataclass(frozen=True)
class Runtime:
    package: str
    version: str  # that everything here was checked with
    pythons: tuple[str, ...]  # with a wheel
    glibc: tuple[int, int]  # that its wheels need at least

    @property
    def name(self) -> str:
        return f"{self.package} {self.version}"


_LITERT = Runtime("ai-edge-litert", "2.3.0", ("3.10", "3.11", "3.12", "3.13", "3.14"), (2, 27))
RUNTIMES = {
    "aarch64": _LITERT,
    "x86_64": _LITERT,
    "armv7l": Runtime("tflite-runtime", "2.14.0", ("3.8", "3.9", "3.10", "3.11"), (2, 34)),
}
# Pythons of a device that `toolkit package` and `toolkit deploy` use; on 32 bits they bring their own.
PACKAGED = {
    platform.machine: tuple(
        python for python in PYTHONS if python in platform.pythons and wheels_for(platform.machine, python)
    )
    for platform in PLATFORMS.values()
    if not platform.android
}
