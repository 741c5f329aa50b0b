"""A package that is made in a moment: its toolkit is a shell script that says how it was called."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from field.package.contents import OURS
from field.package.package import Package, PackedBundle, bundle_id, write_archive
from field.package.runtime import Runtime, runtime_id
from field.platforms import OWN, platform

TOOLKIT = '#!/bin/sh\necho "$HYPERVL_BUNDLE: $*"\n'
# What install.sh and uninstall.sh may use: all of it is in coreutils, busybox and toybox.
TOOLS = tuple(
    "cat chmod cp df dirname echo grep head mkdir mv rm rmdir sed sh sha256sum sync tail".split()  # noqa: SIM905
)


def runtime(folder: Path, target: str = "pi-arm64", python: str = "3.11", says: str = TOOLKIT) -> Runtime:
    made = folder / "runtime"
    (made / "bin").mkdir(parents=True)
    (made / "site/some").mkdir(parents=True)
    (made / "bin/toolkit").write_text(says)
    (made / "bin/toolkit").chmod(0o755)
    (made / "site/some/module.py").write_text("answer = 42\n")
    glibc = (0, 0) if python == OWN else (2, 27)
    digits = runtime_id(made)
    made = made.rename(folder / digits)
    return Runtime(made, digits, platform(target), python, False, glibc, {OURS: 100})


def bundle(folder: Path, name: str = "nano", text: str = "{}") -> PackedBundle:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "manifest.json"
    file.write_text(text)
    return PackedBundle(bundle_id(file), name, (("manifest.json", file, ""),), len(text), gpu=False)


def unpacked(package: Package, folder: Path) -> Path:
    """The folder that a user gets out of the archive."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / "package.tar.gz"
    write_archive(package, archive)
    with tarfile.open(archive) as held:
        held.extractall(folder, filter="data")
    return folder / "hypervl-edge"


class Board:
    """Runs install.sh under dash, with a PATH on which machine and Python are what a test says."""

    def __init__(
        self,
        folder: Path,
        machine: str = "aarch64",
        python: str = "3.11",
        glibc: str = "glibc-2.36",
        shell: Sequence[str] = (),
        tools: Path | None = None,
    ) -> None:
        """`tools` is a program that is all TOOLS, by its name; without it they are this machine's."""
        self.shell = list(shell) or [shutil.which("dash") or "/bin/sh"]
        self.folder, self.home = folder, folder / "home"
        self.bin = folder / "bin"
        self.home.mkdir(parents=True)
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(tools or shutil.which(tool) or f"/bin/{tool}")
        self.program("uname", f"echo {machine}")
        if python:
            whole = f'case "$2" in *ctypes*) echo {python} 64 {glibc} ;; *) echo {python} ;; esac'
            self.program("python3", whole)

    @property
    def prefix(self) -> Path:
        return self.home / ".local/share/hypervl-edge"

    def program(self, name: str, script: str) -> None:
        place = self.bin / name
        place.unlink(missing_ok=True)  # a link to this machine's own, which must not be written through
        place.write_text(f"#!/bin/sh\n{script}\n")
        place.chmod(0o755)

    def sh(self, script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.bin), "HOME": str(self.home)}
        return subprocess.run(
            [*self.shell, str(script), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            cwd=self.folder,
        )


def tree(folder: Path) -> list[str]:
    return sorted(
        str((Path(parent) / name).relative_to(folder))
        for parent, folders, names in os.walk(folder)
        for name in (*names, *(f for f in folders if not any((Path(parent) / f).iterdir())))
    )
