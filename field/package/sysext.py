"""A system extension (systemd-sysext): a squashfs image that is merged over a read-only /usr."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from field.package.deb import starter
from field.package.errors import CannotGather
from field.package.package import Package
from field.package.tree import EPOCH, Source, files_of
from field.platforms import Platform
from rpi_runtime.errors import ResourceError, UsageError

PREFIX = "/usr/lib/hypervl-edge"
_ARCHITECTURES = {"aarch64": "arm64", "armv7l": "arm", "x86_64": "x86-64"}  # as systemd spells them


def check_sysext(platform: Platform) -> None:
    """Raises `UsageError` or `CannotGather`: what would be found out late."""
    if platform.android:
        raise UsageError("--sysext: Android has no systemd", "Make an archive: leave --sysext out.")
    if shutil.which("mksquashfs") is None:
        raise CannotGather(
            "mksquashfs, which makes the image, is not installed", "sudo apt install squashfs-tools"
        )


def write_sysext(package: Package, target: Path) -> None:
    """`target`, whose name before ".raw" is the extension's; it is there when it is whole."""
    name = target.stem
    release = f"ID=_any\nARCHITECTURE={_ARCHITECTURES[package.runtime.platform.machine]}\n"
    sources: list[Source] = [
        *package.installed(PREFIX[1:]),
        (f"{PREFIX[1:]}/current", package.current.encode()),
        ("usr/bin/toolkit", starter(PREFIX)),
        (f"usr/lib/extension-release.d/extension-release.{name}", release.encode()),
    ]
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".sysext-") as work:
        tree, image = Path(work) / "tree", Path(work) / "image.raw"
        for place, source in sources:
            _lay(tree / place, source)
        for folder, _, _ in os.walk(tree):
            Path(folder).chmod(0o755)
        # One processor: the order of blocks is then that of the files.
        times = ["-all-time", str(EPOCH), "-mkfs-time", str(EPOCH)]
        fixed = ["-all-root", "-noappend", "-no-xattrs", "-no-progress", "-comp", "xz", "-processors", "1"]
        clean = {key: value for key, value in os.environ.items() if key != "SOURCE_DATE_EPOCH"}
        done = subprocess.run(
            ["mksquashfs", str(tree), str(image), *fixed, *times], capture_output=True, text=True, env=clean
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise ResourceError(
                f"mksquashfs: {said[-1] if said else done.returncode}", "Nothing was written."
            )
        image.replace(target)


def _lay(place: Path, source: Path | bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(source, bytes):
        place.write_bytes(source)
        place.chmod(0o755 if source.startswith(b"#!") else 0o644)
    elif source.is_dir():
        for path, file in files_of(source):
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place / path)
    else:
        shutil.copyfile(source, place)
        place.chmod(0o644)
