"""Packages at work: installed in an empty home on this machine, and on emulated boards, they give the tokens
that this project gives here. What they need is gathered once, into `.cache`."""

from __future__ import annotations

import json
import platform as this
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from field.package.deb import write_deb
from field.package.errors import CannotGather
from field.package.package import Package, PackedBundle, write_archive
from field.package.runtime import build_runtime, runtime_archive
from field.package.sysext import check_sysext, write_sysext
from field.platforms import OWN, PYTHONS, platform
from tests.conftest import script

ROOT = Path(__file__).resolve().parents[2]
PATH = "/usr/bin:/bin"
pytestmark = [pytest.mark.emulation, pytest.mark.slow]

Make = Callable[[str, str], Package]


@pytest.fixture(scope="module")
def emulation() -> ModuleType:
    return script("emulation")


@pytest.fixture(scope="module")
def cache(emulation: ModuleType) -> Path:
    folder: Path = emulation.CACHE.parent / "packages"
    return folder


@pytest.fixture
def make(cache: Path, nano_bundle: Path) -> Make:
    """`make(target, python)`: a package with the bundle."""

    def made(target: str, python: str) -> Package:
        try:
            runtime = build_runtime(platform(target), python, cache=cache)
        except CannotGather as error:
            pytest.skip(error.message)
        return Package(runtime, PackedBundle.open(nano_bundle))

    return made


@pytest.fixture(scope="module")
def here(nano_bundle: Path, photo: Path) -> dict[str, Any]:
    """The answer of this project's own Python."""
    command = [sys.executable, "-m", "toolkit.cli", *question(str(nano_bundle), photo)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def question(bundle: str, photo: Path) -> list[str]:
    asked = ["run", bundle, "--image", str(photo), "--prompt", "What is this?"]
    return [*asked, "--max-new-tokens", "8", "--json"]


class Home:
    """An empty home, with the package installed in it by its install.sh."""

    def __init__(self, folder: Path, package: Package, machine: str = "") -> None:
        self.package, self.folder = package, folder / "home"
        self.bin = folder / "bin"
        for one in (self.folder, self.bin, folder / "tmp"):
            one.mkdir()
        self.environment = {
            "HOME": str(self.folder),
            "PATH": f"{self.bin}:{PATH}",
            "TMPDIR": str(folder / "tmp"),
        }
        if machine:
            self.program("uname", f"echo {machine}")
        write_archive(package, folder / "package.tar.gz")
        subprocess.run(["tar", "-xzf", "package.tar.gz"], cwd=folder, check=True)
        self.unpacked = folder / "hypervl-edge"

    @property
    def prefix(self) -> Path:
        return self.folder / ".local/share/hypervl-edge"

    @property
    def runtime(self) -> Path:
        return self.prefix / "runtimes" / self.package.runtime.id

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.bin / name).chmod(0o755)

    def install(self) -> None:
        # The archive is not needed any more, and nothing points to where it was unpacked.
        done = self.run([str(self.unpacked / "install.sh"), "--prefix", str(self.prefix)], starter=["sh"])
        assert done.returncode == 0, done.stderr
        shutil.rmtree(self.unpacked)

    def emulate(self, emulator: str) -> None:
        """The launcher of the runtime's own Python starts it in `emulator`: this machine's kernel cannot."""
        launcher = self.runtime / "bin/python"
        text = launcher.read_text()
        launcher.write_text(text[: text.index("exec ")] + f'exec {emulator} "$@"\n')
        for one in (launcher, self.runtime / "bin/toolkit", self.prefix / "bin/toolkit"):
            one.write_text(one.read_text().replace("/system/bin/sh", "/bin/sh"))

    def toolkit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run([str(self.prefix / "bin/toolkit"), *arguments], starter=["sh"])

    def run(self, command: list[str], starter: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*starter, *command], env=self.environment, cwd=self.folder, capture_output=True, text=True
        )

    def answer(self, photo: Path) -> dict[str, Any]:
        assert self.package.bundle
        done = self.toolkit(*question(str(self.prefix / "bundles" / self.package.bundle.id), photo))
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told


def needs_this_machine() -> None:
    if (sys.platform, this.machine()) != ("linux", "x86_64"):
        pytest.skip("this machine is no x86-64 Linux")


def installed_python() -> str:
    for python in PYTHONS:
        if shutil.which(f"python{python}", path=PATH):
            return python
    pytest.skip(f"none of Python {', '.join(PYTHONS)} is in {PATH}")


def foreign(opened: set[str], *own: Path) -> set[str]:
    """Files that were opened although they are neither of the package nor of the kernel, nor tell the user's
    time zone."""
    allowed = (*(str(folder) for folder in own), "/proc/", "/sys/", "/dev/", "/etc/localtime")
    return {path for path in opened if path.startswith("/") and not path.startswith(allowed)}


def opened_files(trace: str) -> set[str]:
    """Of a trace of strace or QEMU, without those that were not there."""
    found = re.findall(r'open(?:at)?\((?:AT_FDCWD, ?)?"([^"]+)".*?\) = (-?\d+)', trace)
    return {path for path, result in found if int(result) >= 0}


# On this machine.


def test_a_package_for_this_machines_python_gives_the_same_tokens(
    make: Make, here: dict[str, Any], photo: Path, tmp_path: Path
) -> None:
    needs_this_machine()
    home = Home(tmp_path, make("linux-x64", installed_python()))
    home.install()
    assert home.toolkit("--version").stdout.startswith("hypervl-edge ")
    told = home.answer(photo)
    assert told["backend"]["name"] == "compiled"
    assert told["token_ids"] == here["token_ids"]
    assert home.run([str(home.prefix / "uninstall.sh")], ["sh"]).returncode == 0
    assert not home.prefix.exists()


def test_a_package_with_its_own_python_uses_no_file_of_the_system(
    make: Make, here: dict[str, Any], photo: Path, tmp_path: Path
) -> None:
    needs_this_machine()
    home = Home(tmp_path, make("linux-x64", OWN))
    home.install()
    assert home.answer(photo)["token_ids"] == here["token_ids"]
    strace = shutil.which("strace")
    if strace is None:
        return
    assert home.package.bundle
    trace = tmp_path / "trace"
    asked = question(str(home.prefix / "bundles" / home.package.bundle.id), photo)
    start = [strace, "-f", "-e", "trace=open,openat", "-o", str(trace)]
    launcher = home.runtime / "bin/toolkit"
    done = home.run([str(launcher), *asked], start)
    assert done.returncode == 0, done.stderr
    # The shell that launches it is the system's; its process becomes Python.
    opened = opened_files(trace.read_text().partition("root/usr/bin/python3.11")[2])
    assert str(home.runtime / "root/lib/libc.so.6") in opened
    assert foreign(opened, home.prefix, home.folder, tmp_path / "tmp", photo) == set()


def test_the_same_parts_give_the_same_bytes_in_another_cache(make: Make, cache: Path, tmp_path: Path) -> None:
    first = make("pi-arm64", "3.11").runtime
    (tmp_path / "cache").mkdir()
    shutil.copytree(cache / "wheels", tmp_path / "cache/wheels")
    second = build_runtime(platform("pi-arm64"), "3.11", cache=tmp_path / "cache")
    assert second.id == first.id
    assert second.folder != first.folder
    assert runtime_archive(second).read_bytes() == runtime_archive(first).read_bytes()
    # A Pi and any other board of 64 bits get the same.
    assert build_runtime(platform("linux-arm64"), "3.11", cache=tmp_path / "cache").id == first.id


def test_a_runtime_in_the_cache_that_somebody_changed_is_made_again(make: Make, cache: Path) -> None:
    runtime = make("linux-x64", "3.11").runtime
    module = runtime.folder / "site/toolkit/entry.py"
    before = module.read_bytes()
    module.write_text("changed")
    again = make("linux-x64", "3.11").runtime
    assert (again.id, module.read_bytes()) == (runtime.id, before)


def test_a_debian_package_runs_where_it_is_unpacked(
    make: Make, here: dict[str, Any], photo: Path, tmp_path: Path
) -> None:
    needs_this_machine()
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not here")
    package = make("linux-x64", OWN)
    write_deb(package, tmp_path / "p.deb")
    subprocess.run(["dpkg-deb", "-x", "p.deb", "out"], cwd=tmp_path, check=True)
    check_unpacked(tmp_path / "out/opt/hypervl-edge", package, here, photo, tmp_path)


def test_a_system_extension_is_a_squashfs_that_runs(
    emulation: ModuleType,
    make: Make,
    here: dict[str, Any],
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs_this_machine()
    try:
        mirror, host = emulation.debian("apt-get", "dpkg-deb")
        packages = ("squashfs-tools", "liblzo2-2")
        root = emulation.unpacked(
            "squashfs-tools", mirror, emulation.ROOT_SUITE, host, packages, dependencies=False
        )
    except emulation.Unavailable as reason:
        pytest.skip(str(reason))
    libraries = ":".join(str(root / place) for place in ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"))
    monkeypatch.setenv("LD_LIBRARY_PATH", libraries)
    monkeypatch.setenv("PATH", f"{root / 'usr/bin'}:{PATH}")
    package = make("linux-x64", OWN)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        image = tmp_path / name / "edge.raw"
        check_sysext(package.runtime.platform)
        write_sysext(package, image)
        assert [file.name for file in image.parent.iterdir()] == ["edge.raw"]
    assert (tmp_path / "one/edge.raw").read_bytes() == (tmp_path / "two/edge.raw").read_bytes()
    subprocess.run(["unsquashfs", "-q", "-n", "-d", "out", "one/edge.raw"], cwd=tmp_path, check=True)
    release = tmp_path / "out/usr/lib/extension-release.d/extension-release.edge"
    assert release.read_text() == "ID=_any\nARCHITECTURE=x86-64\n"
    assert (tmp_path / "out/usr/bin/toolkit").stat().st_mode & 0o111
    monkeypatch.delenv("LD_LIBRARY_PATH")
    check_unpacked(tmp_path / "out/usr/lib/hypervl-edge", package, here, photo, tmp_path)


def check_unpacked(prefix: Path, package: Package, here: dict[str, Any], photo: Path, folder: Path) -> None:
    assert package.bundle
    asked = question(str(prefix / "bundles" / package.bundle.id), photo)
    environment = {"HOME": str(folder), "PATH": PATH}
    done = subprocess.run(
        [str(prefix / "bin/toolkit"), *asked], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["token_ids"] == here["token_ids"]


# On emulated ones.


@pytest.fixture(scope="module")
def qemu(emulation: ModuleType) -> Path:
    try:
        folder: Path = emulation.prepare().qemu.parent
    except emulation.Unavailable as reason:
        pytest.skip(str(reason))
    return folder


def test_a_pi_of_64_bits_uses_its_python_with_the_packages_libraries(
    emulation: ModuleType, qemu: Path, make: Make, here: dict[str, Any], photo: Path, tmp_path: Path
) -> None:
    home = Home(tmp_path, make("pi-arm64", "3.11"), machine="aarch64")
    emulator = emulation.prepare()
    emulator.launcher(home.bin / "python3.11")
    # The launcher looks in /usr/bin first, where this machine's own may lie.
    python = home.unpacked / "runtimes" / home.package.runtime.id / "bin/python"
    text = python.read_text()
    home.environment |= {"QEMU_CPU": emulation.PI4}
    home.install()
    launcher = home.runtime / "bin/python"
    root = emulator.root / "usr"
    text = text.replace("/usr/bin/python3.11", "python3.11").replace(
        "unset PYTHONHOME", f"export PYTHONHOME={root}"
    )
    launcher.write_text(text)
    told = home.answer(photo)
    assert told["backend"]["name"] == "compiled"
    assert told["token_ids"] == here["token_ids"]


@pytest.mark.parametrize("target", ["android-arm64", "linux-arm64"])
def test_an_arm_package_with_its_own_python_uses_no_file_of_the_system(
    emulation: ModuleType,
    qemu: Path,
    make: Make,
    here: dict[str, Any],
    photo: Path,
    tmp_path: Path,
    target: str,
) -> None:
    home = Home(tmp_path, make(target, OWN), machine="aarch64")
    home.environment |= {"QEMU_CPU": emulation.PI5}
    home.install()
    python = home.runtime / "bin/python"
    emulator = f"{qemu / 'qemu-aarch64'} -strace -D {tmp_path}/trace.$$ "
    _, _, start = python.read_text().partition("exec ")
    home.emulate(emulator + start.removesuffix('"$@"\n'))
    told = home.answer(photo)
    assert told["token_ids"] == here["token_ids"]
    trace = "".join(file.read_text(errors="replace") for file in tmp_path.glob("trace.*"))
    opened = opened_files(trace)
    assert str(home.runtime / "root/lib/libc.so.6") in opened
    assert foreign(opened, home.prefix, home.folder, tmp_path / "tmp", photo) == set()


def test_a_pi_of_32_bits_answers_with_debians_numpy_and_tflite_runtime(
    qemu: Path, make: Make, here: dict[str, Any], photo: Path, tmp_path: Path
) -> None:
    home = Home(tmp_path, make("pi-armv7", OWN), machine="armv7l")
    home.install()
    # QEMU puts a loader that is started by its name where Python belongs, which kernels do not: it loads it
    # itself here. The next test has a kernel.
    root = '"$here/root"'
    start = f'-L {root} -E LD_LIBRARY_PATH={root}/lib -0 "$here/bin/python" {root}/usr/bin/python3.11'
    home.emulate(f"{qemu / 'qemu-arm'} {start}")
    told = home.answer(photo)
    assert told["backend"]["package"] == "tflite-runtime"
    assert told["token_ids"] == here["token_ids"]


def test_a_board_with_a_kernel_of_its_own_runs_the_package_of_32_bits(
    emulation: ModuleType, make: Make, here: dict[str, Any], photo: Path, tmp_path: Path
) -> None:
    """Installed with busybox's tools by the board's own shell, and started by its kernel."""
    package = make("pi-armv7", OWN)
    for name in ("package", "tools", "pictures"):
        (tmp_path / name).mkdir()
    write_archive(package, tmp_path / "package/p.tar.gz")
    shutil.copy(photo, tmp_path / "pictures" / photo.name)
    try:
        script("openssh"), script("qemu").parts()
        board = script("board")
        shutil.copy(emulation.CACHE / "kernel-arm64/bin/busybox", tmp_path / "tools")
        started = board.Board(512, emulation.PI4, [tmp_path / n for n in ("package", "tools", "pictures")])
    except emulation.Unavailable as reason:
        pytest.skip(str(reason))
    assert package.bundle
    prefix = "/root/.local/share/hypervl-edge"
    asked = question(f"{prefix}/bundles/{package.bundle.id}", Path("/data/pictures") / photo.name)
    with started as there:
        links = "for one in grep sed tar gzip; do ln -s /data/tools/busybox /run/b/$one; done"
        unpack = "cd /root && tar -xzf /data/package/p.tar.gz"
        install = "sh hypervl-edge/install.sh"
        done = there.run(f"mkdir /run/b && {links}; PATH=$PATH:/run/b; {unpack} && {install}")
        assert done.returncode == 0, done.stderr
        ran = there.run(" ".join(f"'{word}'" for word in (f"{prefix}/bin/toolkit", *asked)))
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["token_ids"] == here["token_ids"]
