"""Writes field/data/debs.lock: the Debian packages that a Python with its own C library is made of.

`python scripts/lock_debs.py` reads the index of Debian bookworm for each architecture, and downloads each
package for its SHA-1, by which snapshot.debian.org has it when a point release has taken it off the archive.
Run it when the archive has newer ones (it says what changed), or with another list below.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "field/data/debs.lock"
ARCHIVE, SUITE = "https://deb.debian.org/debian", "bookworm"
LOADERS = {"arm64": "ld-linux-aarch64.so.1", "armhf": "ld-linux-armhf.so.3", "amd64": "ld-linux-x86-64.so.2"}
# Packages of Python, and per package of libraries those that are taken: what Python, NumPy, Pillow,
# tokenizers and the runtime name as NEEDED, and nothing else. OpenSSL's libcrypto is for hashlib, whose
# own SHA-256 is slower.
PYTHON = ("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib")
LIBRARIES: dict[str, tuple[str, ...]] = {
    "libc6": ("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libutil.so.1"),
    "libstdc++6": ("libstdc++.so.6",),
    "libgcc-s1": ("libgcc_s.so.1",),
    "gcc-12-base": (),  # the licence of the two
    "zlib1g": ("libz.so.1",),
    "libexpat1": ("libexpat.so.1",),
    "libffi8": ("libffi.so.8",),
    "libbz2-1.0": ("libbz2.so.1.0",),
    "liblzma5": ("liblzma.so.5",),
    "libssl3": ("libcrypto.so.3",),
}
# Where NumPy and Pillow have no wheels. Pillow draws text with FreeType and
# changes colour profiles with LittleCMS: nothing here does on such a board.
MODULES = ("python3-numpy", "python3-pil")
MODULE_LIBRARIES: dict[str, tuple[str, ...]] = {
    "libblas3": ("libblas.so.3",),
    "liblapack3": ("liblapack.so.3",),
    "libgfortran5": ("libgfortran.so.5",),
    "libjpeg62-turbo": ("libjpeg.so.62",),
    "libopenjp2-7": ("libopenjp2.so.7",),
    "libtiff6": ("libtiff.so.6",),
    "libzstd1": ("libzstd.so.1",),
    "libdeflate0": ("libdeflate.so.0",),
    "libjbig0": ("libjbig.so.0",),
    "liblerc4": ("libLerc.so.4",),
    "libwebp7": ("libwebp.so.7",),
    "libwebpdemux2": ("libwebpdemux.so.2",),
    "libwebpmux3": ("libwebpmux.so.3",),
    "libimagequant0": ("libimagequant.so.0",),
    "libgomp1": ("libgomp.so.1",),
    "libxcb1": ("libxcb.so.1",),
    "libxau6": ("libXau.so.6",),
    "libxdmcp6": ("libXdmcp.so.6",),
    "libbsd0": ("libbsd.so.0",),
    "libmd0": ("libmd.so.0",),
}


def main() -> int:
    before = json.loads(LOCK.read_text()) if LOCK.exists() else {}
    locked = {}
    for architecture, loader in LOADERS.items():
        index = packages(architecture)
        libraries = {**LIBRARIES, "libc6": (loader, *LIBRARIES["libc6"])}
        wanted = [(name, "python", ()) for name in PYTHON]
        if architecture == "armhf":
            wanted += [(name, "modules", ()) for name in MODULES]
            libraries |= MODULE_LIBRARIES
        wanted += [(name, "libraries", taken) for name, taken in libraries.items()]
        locked[architecture] = [entry(index[name], part, taken) for name, part, taken in wanted]
        old = {(deb["package"], deb["version"]) for deb in before.get(architecture, [])}
        new = [deb for deb in locked[architecture] if (deb["package"], deb["version"]) not in old]
        print(f"{architecture}: {len(locked[architecture])} packages, {len(new)} of them new")
    text = json.dumps(locked, indent=1)
    # A line for each package.
    LOCK.write_text(re.sub(r"\n {3,}|\n  (?=\})", " ", text) + "\n")
    return 0


def packages(architecture: str) -> dict[str, dict[str, str]]:
    """Fields of each package of the archive, by its name."""
    data = fetch(f"{ARCHIVE}/dists/{SUITE}/main/binary-{architecture}/Packages.xz")
    found = {}
    for block in lzma.decompress(data).decode().split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.splitlines() if re.match(r"[A-Za-z0-9-]+: ", line)
        )
        if fields:
            found[fields["Package"]] = fields
    return found


def entry(fields: dict[str, str], part: str, libraries: tuple[str, ...]) -> dict[str, object]:
    data = fetch(f"{ARCHIVE}/{fields['Filename']}")
    if hashlib.sha256(data).hexdigest() != fields["SHA256"]:
        raise SystemExit(f"error: {fields['Filename']} is not what the index says")
    return {
        "package": fields["Package"],
        "version": fields["Version"],
        "path": fields["Filename"],
        "sha256": fields["SHA256"],
        "sha1": hashlib.sha1(data).hexdigest(),
        "bytes": len(data),
        "libraries": list(libraries),
        "part": part,
    }


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as answer:
        data: bytes = answer.read()
        return data


if __name__ == "__main__":
    sys.exit(main())
