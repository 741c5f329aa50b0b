"""Vulkan without a GPU: LiteRT's GPU accelerator runs on it, on this machine's CPU.

    python scripts/software_vulkan.py [swiftshader | lavapipe]

prints the environment variables with which a process finds it. SwiftShader (from Debian's chromium-common)
computes in float32, lavapipe (Mesa) also in float16, as phones do. Nothing is installed: the packages are
unpacked under `.cache/emulation`.
"""

from __future__ import annotations

import sys

from emulation import Unavailable, debian, unpacked


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SWIFTSHADER, LAVAPIPE = "swiftshader", "lavapipe"
_SUITE = "bookworm"
_LAVAPIPE_SUITE = "bookworm-backports"  # bookworm's own Mesa 22 does not run the accelerator
# What it needs beside the C and C++ libraries, which must be those of this machine.
_LAVAPIPE = _words(
    "mesa-vulkan-drivers libllvm15 libz3-4 libdrm2 libxml2 libicu72 libedit2 libbsd0 libmd0 libtinfo6 "
    "libffi8 libexpat1 libzstd1 zlib1g liblzma5 libwayland-client0 libxcb1 libxau6 libxdmcp6 libx11-xcb1 "
    "libxshmfence1 libxcb-dri3-0 libxcb-present0 libxcb-randr0 libxcb-shm0 libxcb-sync1 libxcb-xfixes0"
)


def environment(driver: str = SWIFTSHADER) -> dict[str, str]:
    """Variables for a process that shall find `driver`, and no other Vulkan; fetched on the first call
    (SwiftShader 27 MB, lavapipe 50 MB). Raises `Unavailable` where it cannot be had."""
    mirror, host = debian("apt-get", "dpkg-deb")
    loader = unpacked("vulkan-loader", mirror, _SUITE, host, ("libvulkan1",), dependencies=False)
    if driver == LAVAPIPE:
        tree = unpacked("lavapipe", mirror, _LAVAPIPE_SUITE, host, _LAVAPIPE, dependencies=False)
        manifest = next(tree.glob("usr/share/vulkan/icd.d/lvp_icd*.json"))
    else:
        tree = unpacked("swiftshader", mirror, _SUITE, host, ("chromium-common",), dependencies=False)
        manifest = tree / "usr/lib/chromium/vk_swiftshader_icd.json"
    folders = ("usr/lib/*-linux-gnu", "lib/*-linux-gnu")
    libraries = [found for root in (loader, tree) for name in folders for found in sorted(root.glob(name))]
    return {"LD_LIBRARY_PATH": ":".join(map(str, libraries)), "VK_ICD_FILENAMES": str(manifest)}


def main(arguments: list[str]) -> int:
    try:
        found = environment(*arguments[:1])
    except Unavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    for name, value in found.items():
        print(f"export {name}={value}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
