"""A Debian package, for images made by pi-gen or rpi-image-gen: the same files, under /opt/hypervl-edge."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from field.package.contents import own_version
from field.package.launchers import filled
from field.package.package import Package
from field.package.tree import EPOCH, Source, files_of, pack
from field.platforms import OWN
from rpi_runtime.errors import UsageError

PREFIX = "/opt/hypervl-edge"
_STARTER = '#!/bin/sh\nexec {}/bin/toolkit "$@"\n'
_DESCRIPTION = """\
Description: vision-language model on a small board
 Asks a vision-language model about pictures, on this device alone. Runtime
 and libraries lie in /opt/hypervl-edge, apart from the system's.
"""
_COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: hypervl-edge
Comment: The libraries in it have licences of their own, which lie beside them:
 {prefix}/runtimes/*/site/*.dist-info{own}

Files: *
Copyright: the authors of hypervl-edge
License: Apache-2.0
 On Debian systems, the text of this licence is in /usr/share/common-licenses/Apache-2.0.
"""


def starter(prefix: str) -> bytes:
    """/usr/bin/toolkit, for what is installed in `prefix`."""
    return _STARTER.format(prefix).encode()


def write_deb(package: Package, target: Path, on_bytes: Callable[[int], object] = lambda count: None) -> None:
    """`target`, a .deb (deb(5)); it is there when it is whole. The same package gives the same bytes. Raises
    `UsageError` for Android."""
    platform = package.runtime.platform
    if platform.android:
        raise UsageError("--deb: Android has no dpkg", "Make an archive: leave --deb out.")
    own = f",\n {PREFIX}/runtimes/*/root/usr/share/doc" if package.runtime.python == OWN else ""
    sources: list[Source] = [
        *package.installed(f".{PREFIX}"),
        (f".{PREFIX}/current", package.current.encode()),
        ("./usr/bin/toolkit", starter(PREFIX)),
        ("./usr/share/doc/hypervl-edge/copyright", _COPYRIGHT.format(prefix=PREFIX, own=own).encode()),
    ]
    control: list[Source] = [
        ("./control", _control(package).encode()),
        ("./md5sums", _md5sums(sources).encode()),
        ("./prerm", filled("prerm.sh", platform).encode()),
    ]
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        with tempfile.TemporaryFile(dir=target.parent) as data, partial.open("wb") as out:
            _pack_gzip(data, sources, on_bytes)
            held = io.BytesIO()
            _pack_gzip(held, control)
            out.write(b"!<arch>\n")
            for name, member in (
                ("debian-binary", io.BytesIO(b"2.0\n")),
                ("control.tar.gz", held),
                ("data.tar.gz", data),
            ):
                _add(out, name, member)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _control(package: Package) -> str:
    runtime = package.runtime
    depends = ""
    if runtime.python != OWN:
        major, minor = map(int, runtime.python.split("."))
        glibc = ".".join(map(str, runtime.glibc))
        python = f"python3 (>= {runtime.python}), python3 (<< {major}.{minor + 1})"
        depends = f"Depends: {python}, libc6 (>= {glibc}), libstdc++6\n"
    fields = {
        "Package": "hypervl-edge",
        "Version": own_version(),
        "Architecture": runtime.platform.debian,
        "Maintainer": "hypervl-edge <hypervl-edge@localhost>",
        "Installed-Size": str(-(-package.bytes // 1024)),
        "Section": "science",
        "Priority": "optional",
    }
    return "".join(f"{name}: {value}\n" for name, value in fields.items()) + depends + _DESCRIPTION


def _md5sums(sources: list[Source]) -> str:
    lines = []
    for place, source in sources:
        files = files_of(source) if isinstance(source, Path) and source.is_dir() else [("", source)]
        for path, file in files:
            data = file if isinstance(file, bytes) else file.read_bytes()
            name = f"{place}/{path}".rstrip("/").removeprefix("./")
            lines.append(f"{hashlib.md5(data, usedforsecurity=False).hexdigest()}  {name}\n")
    return "".join(lines)


def _pack_gzip(
    into: io.IOBase, sources: list[Source], on_bytes: Callable[[int], object] = lambda n: None
) -> None:
    with gzip.GzipFile(filename="", mode="wb", fileobj=into, mtime=0, compresslevel=6) as zipped:
        pack(zipped, sources, on_bytes)


def _add(out: io.BufferedWriter, name: str, member: io.IOBase) -> None:
    """A member of an ar archive."""
    size = member.seek(0, os.SEEK_END)
    member.seek(0)
    out.write(f"{name:<16}{EPOCH:<12}{0:<6}{0:<6}{'100644':<8}{size:<10}`\n".encode())
    while piece := member.read(1 << 20):
        out.write(piece)
    out.write(b"\n" * (size % 2))
