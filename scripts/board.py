"""A whole emulated board to try the toolkit on without hardware: its memory is bounded, and ssh reaches it.

    python scripts/board.py [--memory 512] [--cpu cortex-a72] [--port 2222] [FOLDER ...]

boots a Debian arm64 with the light install in QEMU and says how to reach it; Ctrl-C turns it off. FOLDERs are
mounted read-only below /data, and what is written anywhere is forgotten. Nothing is installed on this machine
and no root is needed: packages are unpacked into `.cache/emulation`. Emulated times say nothing about speed.
"""

from __future__ import annotations

import argparse
import compileall
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from emulation import CACHE, PI4, ROOT_PACKAGES, ROOT_SUITE, Unavailable, debian, run, unpacked, wheels

REPO = Path(__file__).resolve().parent.parent
_BOARD_PACKAGES = (
    *ROOT_PACKAGES,
    "openssh-server",
    "openssh-sftp-server",
    "dash",
    "coreutils",
    "iproute2",
    "mount",
    "util-linux",
    "procps",
)
# What the kernel needs before it can mount its root, in this order.
_MODULES = (
    "virtio",
    "virtio_ring",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
)
_ROOMS = ("rpi_runtime", "delegates", "vqa", "toolkit")  # of the light install
_BOOT_SECONDS = 180

_FIRST_INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /dev /proc /root
/bin/busybox mount -t devtmpfs dev /dev
for module in {modules}; do /bin/busybox insmod /modules/$module.ko; done
while ! [ -b /dev/vda ]; do /bin/busybox sleep 0.1; done
/bin/busybox mount -t ext4 /dev/vda /root
exec /bin/busybox switch_root /root /sbin/board-init
"""

_INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm; mount -t devpts pts /dev/pts; mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /tmp; mount -t tmpfs run /run; mkdir -p /run/sshd
[ -b /dev/vdb ] && mount -o ro /dev/vdb /data
echo board > /proc/sys/kernel/hostname
ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2
/usr/sbin/sshd
while :; do wait; sleep 5; done
"""

_SSHD_CONFIG = """UsePAM no
UseDNS no
PermitRootLogin prohibit-password
SetEnv PYTHONPATH=/opt/site
Subsystem sftp /usr/lib/openssh/sftp-server
"""


@dataclass(frozen=True)
class _Files:
    qemu: Path
    kernel: Path
    initrd: Path
    image: Path
    key: Path


class Board:
    """A running board. `run` has it run a command; leaving the `with` turns it off."""

    def __init__(
        self, memory_mb: int = 512, cpu: str = PI4, shared: Sequence[Path] = (), port: int | None = None
    ) -> None:
        """Raises `Unavailable` when the parts cannot be had, or the board does not come up."""
        files = _prepare()
        self.port = port or _free_port()
        self.key = files.key
        self._process: subprocess.Popen[bytes] | None = None
        self._work = Path(tempfile.mkdtemp(prefix="board-"))
        try:
            drives = [files.image]
            if shared:
                drives.append(_data_disk(shared, self._work))
            self._process = self._start(files, memory_mb, cpu, drives)
            self._wait(self._process)
        except BaseException:
            self.close()
            raise

    def run(self, command: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        """Runs a shell command there, as root."""
        return subprocess.run(
            [*self.ssh, command], capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
        )

    @property
    def ssh(self) -> list[str]:
        options = {
            "IdentityFile": self.key,
            "IdentitiesOnly": "yes",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
            "ConnectTimeout": 10,
        }
        given = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        return ["ssh", "-F", "none", "-p", str(self.port), *given, "root@127.0.0.1"]

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._work, ignore_errors=True)

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(
        self, files: _Files, memory_mb: int, cpu: str, drives: Sequence[Path]
    ) -> subprocess.Popen[bytes]:
        root = files.qemu
        libraries = ":".join(str(root / place / "x86_64-linux-gnu") for place in ("usr/lib", "lib"))
        command = [str(root / "lib64/ld-linux-x86-64.so.2"), "--library-path", libraries]
        command += [str(root / "usr/bin/qemu-system-aarch64"), "-L", str(root / "usr/share/qemu")]
        command += ["-M", "virt", "-cpu", cpu, "-smp", "2", "-m", str(memory_mb), "-nographic", "-no-reboot"]
        command += ["-kernel", str(files.kernel), "-initrd", str(files.initrd)]
        command += ["-append", "console=ttyAMA0 quiet panic=1"]
        for i, drive in enumerate(drives):
            command += ["-drive", f"file={drive},format=raw,if=none,id=d{i},cache=unsafe,snapshot=on"]
            command += ["-device", f"virtio-blk-pci,drive=d{i}"]
        net = f"user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-:22"
        command += ["-netdev", net, "-device", "virtio-net-pci,netdev=n0,romfile="]
        command += ["-serial", f"file:{self._work / 'console'}", "-monitor", "none", "-display", "none"]
        with (self._work / "qemu").open("wb") as log:
            environment = {**os.environ, "TMPDIR": str(self._work)}
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + _BOOT_SECONDS
        while time.monotonic() < end:
            if process.poll() is not None:
                break
            with suppress(subprocess.TimeoutExpired):
                if self.run("true", timeout=20).returncode == 0:
                    return
            time.sleep(1)
        told = [*self._tail("qemu"), *self._tail("console")]
        raise Unavailable(f"the emulated board did not come up: {' / '.join(told) or 'it says nothing'}")

    def _tail(self, name: str) -> list[str]:
        path = self._work / name
        return path.read_text(errors="replace").strip().splitlines()[-3:] if path.exists() else []


def _prepare() -> _Files:
    """Downloads and makes what is missing (300 MB of packages, once)."""
    mirror, host = debian("apt-get", "dpkg-deb", "mke2fs", "ssh", "ssh-keygen")
    if host != "amd64":
        raise Unavailable(f"the emulated board runs on amd64, and this machine is {host}")
    qemu = unpacked("qemu-system", mirror, ROOT_SUITE, host, ("qemu-system-arm",), dependencies=True)
    kernel = unpacked(
        "kernel-arm64",
        mirror,
        ROOT_SUITE,
        "arm64",
        ("linux-image-cloud-arm64", "busybox-static"),
        dependencies=True,
    )
    root = unpacked("board-arm64", mirror, ROOT_SUITE, "arm64", _BOARD_PACKAGES, dependencies=True)
    key = CACHE / "board-key"
    if not key.exists():
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
    (image_of_kernel,) = (kernel / "boot").glob("vmlinuz-*")
    return _Files(qemu, image_of_kernel, _initrd(kernel), _image(root, key), key)


def _initrd(kernel: Path) -> Path:
    """Loads the drivers of the disk and mounts it."""
    target = CACHE / "board-initrd"
    if not target.exists():
        found = {path.stem: path for path in kernel.glob("lib/modules/*/kernel/**/*.ko")}
        files = {
            "init": _FIRST_INIT.format(modules=" ".join(_MODULES)).encode(),
            "bin/busybox": (kernel / "bin/busybox").read_bytes(),
            **{f"modules/{name}.ko": found[name].read_bytes() for name in _MODULES},
        }
        partial = target.with_suffix(".partial")
        partial.write_bytes(_cpio(files))
        partial.rename(target)
    return target


def _cpio(files: dict[str, bytes]) -> bytes:
    """An archive as the kernel unpacks it (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    folders = sorted({str(parent) for name in files for parent in Path(name).parents if str(parent) != "."})
    entries = [(name, stat.S_IFDIR | 0o755, b"") for name in folders]
    entries += [(name, stat.S_IFREG | 0o755, content) for name, content in files.items()]
    out = bytearray()
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        out += bytes(-len(out) % 4) + content
        out += bytes(-len(out) % 4)
    return bytes(out)


def _image(root: Path, key: Path) -> Path:
    """The board's disk: Debian, the light install's wheels, this project's own rooms."""
    rooms = [path for room in _ROOMS for path in sorted((REPO / room).rglob("*.py"))]
    newest = max(path.stat().st_mtime for path in (*rooms, Path(__file__)))
    target = CACHE / "board.img"
    if target.exists() and target.stat().st_mtime >= newest:
        return target
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        tree = Path(name) / "tree"
        shutil.copytree(root, tree, symlinks=True)
        for folder in ("proc", "sys", "dev", "tmp", "run", "data", "root/.ssh", "var/empty", "opt"):
            (tree / folder).mkdir(parents=True, exist_ok=True)
        shutil.copytree(wheels(), tree / "opt/site", symlinks=True)
        for path in rooms:
            place = tree / "opt/site" / path.relative_to(REPO)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
        if sys.version_info[:2] == (3, 11):  # the board's, to which compiling would take long
            compileall.compile_dir(tree / "opt/site", quiet=2, stripdir=str(tree))
        for at, text, mode in (
            ("sbin/board-init", _INIT, 0o755),
            ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nsshd:x:100:65534::/run/sshd:/bin/false\n", 0o644),
            ("etc/group", "root:x:0:\nnogroup:x:65534:\n", 0o644),
            ("etc/shadow", "root:*:19000:0:99999:7:::\n", 0o600),
            ("root/.ssh/authorized_keys", key.with_name(key.name + ".pub").read_text(), 0o600),
            ("usr/bin/toolkit", '#!/bin/sh\nexec python3.11 -m toolkit.cli "$@"\n', 0o755),
            ("etc/ssh/sshd_config", _SSHD_CONFIG, 0o644),
        ):
            (tree / at).parent.mkdir(parents=True, exist_ok=True)
            (tree / at).write_text(text)
            (tree / at).chmod(mode)
        (tree / "root/.ssh").chmod(0o700)
        host_key = tree / "etc/ssh/ssh_host_ed25519_key"
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(host_key)])
        _filesystem(tree, Path(name) / "img", spare_mb=1024)
        (Path(name) / "img").rename(target)
    return target


def _data_disk(folders: Sequence[Path], work: Path) -> Path:
    tree = work / "data"
    for folder in folders:
        shutil.copytree(folder, tree / folder.resolve().name, copy_function=_link)
    _filesystem(tree, work / "data.img", spare_mb=32)
    return work / "data.img"


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def _filesystem(tree: Path, image: Path, spare_mb: int) -> None:
    """An ext4 in the file `image` that holds `tree`; root owns everything."""
    held = sum(path.lstat().st_size + 4096 for path in tree.rglob("*"))
    size_mb = int(held * 1.1 / (1 << 20)) + spare_mb
    owned = ["-E", "root_owner=0:0", "-q", "-t", "ext4", "-F", "-d", str(tree)]
    run(["mke2fs", *owned, str(image), f"{size_mb}M"])


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--memory", type=int, default=512, help="MB (default 512)")
    parser.add_argument(
        "--cpu", default=PI4, help="cortex-a72 is a Pi 4, cortex-a76 a Pi 5 (default cortex-a72)"
    )
    parser.add_argument("--port", type=int, default=2222, help="of ssh, on 127.0.0.1 (default 2222)")
    given = parser.parse_args()
    try:
        with Board(given.memory, given.cpu, given.folders, given.port) as board:
            print(f"The board is up: {given.memory} MB, {given.cpu}. Reach it with\n")
            print(f"  {' '.join(board.ssh)}\n")
            print("and try `toolkit run /data/BUNDLE ...`. Ctrl-C turns it off.")
            while True:
                time.sleep(3600)
    except Unavailable as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
