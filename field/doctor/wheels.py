"""Which runtime there is for a machine, as the package index has wheels of it (pip download, each tag)."""

from __future__ import annotations

from dataclasses import dataclass


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
# `toolkit package` locks the wheels of these; on 32 bits, where NumPy has none, it brings its own Python.
PACKAGED = {"aarch64": ("3.11", "3.12", "3.13"), "x86_64": ("3.11", "3.12", "3.13"), "armv7l": ()}
