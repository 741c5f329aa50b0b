"""What a package can be made for: a machine, the Python that serves there, and what such a board loses."""

from __future__ import annotations

from dataclasses import dataclass

from rpi_runtime.errors import nearest

OWN = "own"  # in place of a Python's version: the package brings a Python and its C library
PYTHONS = ("3.11", "3.12", "3.13")  # that a package may use where they are installed
OWN_PYTHON = "3.11"  # Debian bookworm's

ANDROID_PREFIX = "/data/local/tmp/hypervl-edge"


@dataclass(frozen=True)
class Platform:
    name: str
    machine: str  # as wheels are tagged: "aarch64", "armv7l", "x86_64"
    kernels: tuple[str, ...]  # what `uname -m` may say there
    debian: str  # Debian's name of the architecture
    loader: str  # the C library's program loader, by its file name
    python: str  # by default: one of PYTHONS, or OWN
    shell: str = "/bin/sh"
    loses: tuple[str, ...] = ()  # what such a device does without, a sentence each

    @property
    def android(self) -> bool:
        return self.shell.startswith("/system/")

    @property
    def pythons(self) -> tuple[str, ...]:
        """Those that a package for it may use. No wheel exists for Android's C library, and NumPy and Pillow
        have none for 32 bits."""
        return (OWN,) if self.python == OWN else (*PYTHONS, OWN)


_ARM64 = ("aarch64", ("aarch64", "arm64"), "arm64", "ld-linux-aarch64.so.1")
_PI_32 = (
    "No ai-edge-litert exists for 32 bits: tflite-runtime 2.14 (2023) runs the graphs, on the CPU alone.",
    "No cache of packed weights: each start packs them again, and each signature keeps a copy of its own.",
    "NumPy 1.24 and Pillow 9.4 are Debian's, as old as Debian 12, with its own Python 3.11.",
    "A process has at most 3 GB, whatever the board has.",
)
_PHONE = (
    "A phone's own C library runs none of this: Debian 12's C library and Python 3.11 are in the package.",
    "No GPU, NNAPI or NPU driver of the phone can be loaded: they need the phone's own C library. "
    "The CPU computes.",
)

PLATFORMS = {
    platform.name: platform
    for platform in (
        Platform("pi-arm64", *_ARM64, "3.11"),
        Platform(
            "pi-armv7",
            "armv7l",
            ("armv7l", "armv8l", "aarch64"),
            "armhf",
            "ld-linux-armhf.so.3",
            OWN,
            loses=_PI_32,
        ),
        Platform("linux-arm64", *_ARM64, "3.11"),
        Platform("linux-x64", "x86_64", ("x86_64",), "amd64", "ld-linux-x86-64.so.2", "3.11"),
        Platform("android-arm64", *_ARM64, OWN, shell="/system/bin/sh", loses=_PHONE),
    )
}


def platform(name: str) -> Platform:
    """Raises `UsageError` with the nearest name."""
    if name not in PLATFORMS:
        raise nearest(name, PLATFORMS, "target")
    return PLATFORMS[name]
