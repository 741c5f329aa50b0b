"""Builds the external delegate of the tests, for this machine or for aarch64, and prints where it lies.

    python scripts/external_delegate.py [--arch arm64]

It is made of `tests/delegates/native/external_delegate.c` and the headers of TensorFlow Lite 2.14.1 out of
Debian's source. That for aarch64 needs no root either: Debian's cross compiler is unpacked beside it
(200 MB). All of it is kept under `.cache`.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

from emulation import CACHE, ROOT_SUITE, Unavailable, debian, run, unpacked, unpacked_source
from nnapi_delegate import SOURCE_MEMBERS, SOURCE_SUITE, VERSION

SOURCE_FILE = Path(__file__).resolve().parents[1] / "tests/delegates/native/external_delegate.c"
ARCHES = ("host", "arm64")
_FLAGS = ("-O1", "-g0", "-std=gnu11", "-Wall", "-fPIC", "-shared", "-fvisibility=hidden")


def prepare(arch: str = "host") -> Path:
    """The delegate's library, built when its source has changed; raises `Unavailable` where that cannot be
    done."""
    digest = hashlib.sha256(SOURCE_FILE.read_bytes()).hexdigest()[:12]
    target = CACHE / f"external-delegate-{digest}" / arch / "libtest_delegate.so"
    if target.exists():
        return target
    mirror, host = debian("apt-get", "dpkg-deb")
    name = f"tensorflow-{VERSION}"
    headers = unpacked_source(name, mirror, SOURCE_SUITE, "tensorflow", VERSION, SOURCE_MEMBERS)
    compiler, links = _host_compiler() if arch == "host" else _cross_compiler(mirror, host)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        made = Path(work) / target.name
        # What links comes behind the source that needs it.
        run([*compiler, *_FLAGS, f"-I{headers}", "-o", str(made), str(SOURCE_FILE), *links])
        made.replace(target)
    return target


def _host_compiler() -> tuple[list[str], list[str]]:
    if shutil.which("gcc") is None:
        raise Unavailable("gcc not found: the delegate is built with it")
    return ["gcc"], []


def _cross_compiler(mirror: str, host: str) -> tuple[list[str], list[str]]:
    packages = ("gcc-12-aarch64-linux-gnu", "libc6-dev-arm64-cross")
    tree = unpacked("cross-arm64", mirror, ROOT_SUITE, host, packages, dependencies=True)
    target = tree / "usr/aarch64-linux-gnu"
    shared = next(tree.glob("usr/lib/*/libmpc.so.3")).parent  # what the compiler itself is linked with
    compiler = [str(tree / "usr/bin/aarch64-linux-gnu-gcc-12"), f"--sysroot={tree}", "-isystem"]
    # Debian's libc.so is a text that names paths of an installed compiler.
    links = ["-nostdlib", f"-L{target / 'lib'}", "-l:libc.so.6"]
    return ["env", f"LD_LIBRARY_PATH={shared}", *compiler, str(target / "include")], links


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--arch", choices=ARCHES, default="host")
    try:
        print(prepare(parser.parse_args().arch))
    except Unavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
