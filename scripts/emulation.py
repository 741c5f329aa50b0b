"""An aarch64 Python with the device's own wheels, run under QEMU: a Raspberry Pi's CPU without the board.

`python scripts/emulation.py --cpu cortex-a72 -- -m toolkit.cli run BUNDLE ...` runs that on an emulated
Pi 4. Nothing is installed on this machine and no root is needed: Debian's packages are downloaded with a
private apt state and unpacked into `.cache/emulation`. QEMU comes from bookworm-backports, because version
7.2 shows programs this machine's /proc/cpuinfo, not the emulated CPU's. Emulated times say nothing about a
board's speed.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("HYPERVL_CACHE", Path(__file__).resolve().parent.parent / ".cache")) / "emulation"
QEMU_SUITE = "bookworm-backports"
ROOT_SUITE = "bookworm"
ROOT_PACKAGES = ("python3.11-minimal", "libpython3.11-stdlib", "libstdc++6", "zlib1g", "libc6")
# pip matches each platform tag literally, so every tag a wheel may carry is named.
PLATFORMS = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
WHEELS = ("ai-edge-litert==2.3.0", "numpy>=2,<2.4", "pillow", "tokenizers", "jinja2", "typer")
OLD_WHEELS = ("tflite-runtime==2.14.0", "numpy<2", "pillow", "tokenizers", "jinja2", "typer")
PI4, PI5 = "cortex-a72", "cortex-a76"


class Unavailable(Exception):
    """The emulator or its root cannot be had here; the text says why."""


@dataclass(frozen=True)
class Emulator:
    """Runs `python3.11` of an unpacked aarch64 Debian."""

    qemu: Path
    root: Path
    site_packages: Path

    def python(
        self, arguments: list[str], cpu: str, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs `python3.11 arguments` on an emulated `cpu` ("cortex-a72" is a Pi 4, "cortex-a76" a Pi 5)."""
        repo = Path(__file__).resolve().parent.parent
        inside = {
            "PYTHONPATH": f"{repo}{os.pathsep}{self.site_packages}",
            "PYTHONHOME": str(self.root / "usr"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": os.environ.get("HOME", "/"),
            "PATH": os.environ["PATH"],
            "QEMU_CPU": cpu,
            **(env or {}),
        }
        python = self.root / "usr/bin/python3.11"
        command = [str(self.qemu), "-L", str(self.root), str(python), *arguments]
        return subprocess.run(command, env=inside, capture_output=True, text=True, check=False)

    def launcher(self, path: Path) -> Path:
        """Writes a program to `path` that starts this Python, for a child of it: QEMU hands a program for the
        emulated CPU to this machine's kernel, which cannot run it. The environment must be its parent's."""
        python = self.root / "usr/bin/python3.11"
        command = shlex.join(map(str, [self.qemu, "-L", self.root, python]))
        path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        path.chmod(0o755)
        return path


def prepare() -> Emulator:
    """Downloads and unpacks what is missing (150 MB, once); raises `Unavailable` when it cannot be had."""
    mirror, host = debian("apt-get", "dpkg-deb")
    qemu = (
        unpacked("qemu", mirror, QEMU_SUITE, host, ("qemu-user",), dependencies=False)
        / "usr/bin/qemu-aarch64"
    )
    root = unpacked("root-arm64", mirror, ROOT_SUITE, "arm64", ROOT_PACKAGES, dependencies=True)
    return Emulator(qemu, root, wheels())


@contextmanager
def making(name: str) -> Iterator[Path]:
    """The place of `name` in the cache, which no other process makes at this time."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield CACHE / name


def debian(*tools: str) -> tuple[str, str]:
    """The archive that packages come from, and the architecture of this machine, which must have `tools`."""
    for tool in tools:
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} not found: what is emulated is made of Debian packages with it")
    CACHE.mkdir(parents=True, exist_ok=True)
    host = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True).stdout.strip()
    return _mirror(), host


def _mirror() -> str:
    """The archive that this machine's apt already uses for Debian itself."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"],
        capture_output=True,
        text=True,
    )
    for line in listed.stdout.splitlines():
        uri, _, release = line.partition(" ")
        if release.startswith("bookworm") and "security" not in uri:
            return uri
    raise Unavailable("apt knows no archive of Debian bookworm here")


def unpacked(
    name: str, mirror: str, suite: str, arch: str, packages: tuple[str, ...], *, dependencies: bool
) -> Path:
    """Folder with `packages` of `suite` unpacked (not installed), made once under the cache."""
    with making(name) as target:
        if target.exists():
            return target
        with tempfile.TemporaryDirectory(dir=CACHE) as work_name:
            work = Path(work_name)
            apt = _apt(work, "deb", mirror, suite, arch)
            if dependencies:
                run([*apt, "install", "--yes", "--download-only", *packages])
            else:
                run([*apt, "download", *packages], cwd=work / "archives")
            tree = work / "unpacked"
            tree.mkdir()
            for deb in sorted((work / "archives").glob("*.deb")):
                run(["dpkg-deb", "-x", str(deb), str(tree)])
            tree.rename(target)
        return target


def unpacked_source(
    name: str, mirror: str, suite: str, package: str, version: str, members: tuple[str, ...]
) -> Path:
    """Folder with those `members` (patterns, as tar takes them) of a source package of `suite`, whose version
    must begin with `version`, made once under the cache."""
    with making(name) as target:
        if target.exists():
            return target
        with tempfile.TemporaryDirectory(dir=CACHE) as work_name:
            work = Path(work_name)
            apt = _apt(work, "deb-src", mirror, suite, "")
            # Its signature may need a key that is not here; the archive itself is signed.
            with suppress(Unavailable):
                run([*apt, "source", "--download-only", package], cwd=work / "archives")
            found = sorted((work / "archives").glob(f"{package}_*.orig.tar.*"))
            if not found or not found[0].name.startswith(f"{package}_{version}"):
                raise Unavailable(f"{suite} has no source of {package} {version}")
            tree = work / "unpacked"
            tree.mkdir()
            patterns = ["--strip-components=1", "--wildcards", *members]
            run(["tar", "-xf", str(found[0]), "-C", str(tree), *patterns])
            tree.rename(target)
        return target


def _apt(work: Path, kind: str, mirror: str, suite: str, arch: str) -> list[str]:
    """apt-get with a state of its own in `work`, which knows `suite` alone, or with what it is a backport to;
    `kind` is "deb" or "deb-src"."""
    for folder in (
        "lists/partial",
        "archives/partial",
        "etc/apt.conf.d",
        "etc/preferences.d",
        "etc/trusted.gpg.d",
    ):
        (work / folder).mkdir(parents=True)
    (work / "status").touch()
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    suites = [suite, suite.removesuffix("-backports")] if suite.endswith("-backports") else [suite]
    sources = [f"{kind} [signed-by={keyring}] {mirror} {name} main\n" for name in suites]
    (work / "sources.list").write_text("".join(sources))
    settings = {
        "Dir::State": work,
        "Dir::State::status": work / "status",
        "Dir::State::lists": work / "lists",
        "Dir::Cache": work,
        "Dir::Cache::archives": work / "archives",
        "Dir::Etc": work / "etc",
        "Dir::Etc::sourcelist": work / "sources.list",
        "APT::Install-Recommends": "false",
        "APT::Default-Release": suite,
        "APT::Sandbox::User": "",
        **({"APT::Architecture": arch, "APT::Architectures": arch} if arch else {}),
        # A mirror's copy of sid may be some weeks old.
        **({"Acquire::Check-Valid-Until": "false"} if suite == "sid" else {}),
    }
    apt = ["apt-get", "-q", *(part for key, value in settings.items() for part in ("-o", f"{key}={value}"))]
    run([*apt, "update"])
    return apt


def wheels(name: str = "site-packages-arm64", packages: tuple[str, ...] = WHEELS) -> Path:
    """Folder with the aarch64 wheels of `packages`, made once under the cache; by default those of the light
    install."""
    with making(name) as target:
        if target.exists():
            return target
        with tempfile.TemporaryDirectory(dir=CACHE) as work:
            platforms = [part for tag in PLATFORMS for part in ("--platform", f"{tag}_aarch64")]
            site = Path(work) / "site"
            pip = [sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--target", str(site)]
            python = ["--python-version", "3.11", "--implementation", "cp"]
            abis = ["--abi", "cp311", "--abi", "abi3", "--abi", "none"]
            run([*pip, "--only-binary=:all:", *python, *abis, *platforms, *packages])
            site.rename(target)
        return target


def run(command: list[str], cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise Unavailable(f"`{' '.join(command[:1] + command[-2:])}` failed: {' / '.join(last)}")


def main() -> int:
    cpu, arguments = PI5, sys.argv[1:]
    if arguments[:1] == ["--cpu"]:
        cpu, arguments = arguments[1], arguments[2:]
    if arguments[:1] == ["--"]:
        arguments = arguments[1:]
    try:
        done = prepare().python(arguments, cpu)
    except Unavailable as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 3
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


if __name__ == "__main__":
    sys.exit(main())
