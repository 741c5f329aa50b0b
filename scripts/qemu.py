"""A machine that QEMU emulates: an arm64 CPU, Debian's kernel, a disk, and ports of it on 127.0.0.1.

What is made of it are `board.py` and `phone.py`. Nothing is installed on this machine and no root is needed:
packages are unpacked into `.cache/emulation`. The machine reaches nothing outside (`restrict=on`). What it
writes to its disk outlives its reboots, and is forgotten when it is closed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from emulation import CACHE, ROOT_SUITE, Unavailable, debian, run, unpacked

_BOOT_SECONDS = 180
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
# {then} is run with the root mounted in /root.
_FIRST_INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /dev /proc /root
/bin/busybox mount -t devtmpfs dev /dev
for module in {modules}; do /bin/busybox insmod /modules/$module.ko; done
while ! [ -b /dev/vda ]; do /bin/busybox sleep 0.1; done
/bin/busybox mount -t ext4 /dev/vda /root
{then}
"""


@dataclass(frozen=True)
class Parts:
    """Emulator and kernel, unpacked."""

    mirror: str
    qemu: Path
    kernel: Path


def parts() -> Parts:
    """Downloads what is missing (45 MB, once); raises `Unavailable` when it cannot be had."""
    mirror, host = debian("apt-get", "dpkg-deb", "mke2fs", "debugfs")
    if host != "amd64":
        raise Unavailable(f"the emulated machine runs on amd64, and this one is {host}")
    qemu = unpacked("qemu-system", mirror, ROOT_SUITE, host, ("qemu-system-arm",), dependencies=True)
    named = ("linux-image-cloud-arm64", "busybox-static")
    kernel = unpacked("kernel-arm64", mirror, ROOT_SUITE, "arm64", named, dependencies=True)
    return Parts(mirror, qemu, kernel)


class Machine:
    """One that runs. Its owner asks `wait` for the moment that it is up."""

    def __init__(
        self,
        found: Parts,
        initrd: Path,
        drives: Sequence[Path],
        *,
        memory_mb: int,
        cpu: str,
        ports: Mapping[int, int],
    ) -> None:
        """`ports` of 127.0.0.1 lead to ports there."""
        self._work = Path(tempfile.mkdtemp(prefix="qemu-"))
        (kernel,) = (found.kernel / "boot").glob("vmlinuz-*")
        root = found.qemu
        libraries = ":".join(str(root / place / "x86_64-linux-gnu") for place in ("usr/lib", "lib"))
        command = [str(root / "lib64/ld-linux-x86-64.so.2"), "--library-path", libraries]
        command += [str(root / "usr/bin/qemu-system-aarch64"), "-L", str(root / "usr/share/qemu")]
        command += ["-M", "virt", "-cpu", cpu, "-smp", "2", "-m", str(memory_mb), "-nographic"]
        command += ["-kernel", str(kernel), "-initrd", str(initrd)]
        command += ["-append", "console=ttyAMA0 quiet panic=0"]
        for i, drive in enumerate(drives):
            # What is written goes to a file in TMPDIR that lives as long as QEMU.
            command += ["-drive", f"file={drive},format=raw,if=none,id=d{i},cache=unsafe,snapshot=on"]
            command += ["-device", f"virtio-blk-pci,drive=d{i}"]
        forwards = "".join(f",hostfwd=tcp:127.0.0.1:{here}-:{there}" for here, there in ports.items())
        command += ["-netdev", f"user,id=n0,restrict=on{forwards}"]
        command += ["-device", "virtio-net-pci,netdev=n0,romfile="]
        command += ["-serial", f"file:{self._work / 'console'}", "-monitor", "none", "-display", "none"]
        command += ["-qmp", f"unix:{self._work / 'qmp'},server=on,wait=off"]
        with (self._work / "qemu").open("wb") as log:
            environment = {**os.environ, "TMPDIR": str(self._work)}
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait(self, is_up: Callable[[], bool]) -> None:
        """Asks again and again; raises `Unavailable` when it does not come up."""
        end = time.monotonic() + _BOOT_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            if is_up():
                return
            if "Kernel panic" in self.console():
                break
            time.sleep(0.3)
        qemu = (self._work / "qemu").read_text(errors="replace")
        told = [line for text in (qemu, self.console()) for line in text.strip().splitlines()[-3:]]
        raise Unavailable(f"the emulated machine did not come up: {' / '.join(told) or 'it says nothing'}")

    def cut_power(self) -> None:
        """And turns it on again: what was not yet on the disk is lost."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(20)
            monitor.connect(str(self._work / "qmp"))
            with monitor.makefile("rwb") as talk:
                talk.readline()  # it greets
                for asked in ("qmp_capabilities", "system_reset"):
                    talk.write(json.dumps({"execute": asked}).encode() + b"\n")
                    talk.flush()
                    while "return" not in json.loads(talk.readline()):
                        pass  # an event

    def pause(self) -> None:
        """From now on it answers nothing, and closes no connection."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def console(self) -> str:
        """All that it has said so far."""
        path = self._work / "console"
        return path.read_text(errors="replace") if path.exists() else ""

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._work, ignore_errors=True)


def initrd(name: str, found: Parts, then: str) -> Path:
    """Loads the drivers of the disk, mounts it in /root and goes on with the shell script `then`."""
    modules = {path.stem: path for path in found.kernel.glob("lib/modules/*/kernel/**/*.ko")}
    files = {
        "init": _FIRST_INIT.format(modules=" ".join(_MODULES), then=then).encode(),
        "bin/busybox": (found.kernel / "bin/busybox").read_bytes(),
        **{f"modules/{module}.ko": modules[module].read_bytes() for module in _MODULES},
    }
    target = CACHE / name
    with tempfile.NamedTemporaryFile(dir=CACHE, delete=False) as partial:
        partial.write(_cpio(files))
    Path(partial.name).rename(target)
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


def filesystem(tree: Path, image: Path, spare_mb: int, owners: Mapping[str, int] | None = None) -> None:
    """An ext4 in the file `image` that holds `tree`. All is root's but the folders of `owners`, which are of
    these user and group ids with what is in them."""
    held = sum(path.lstat().st_size + 4096 for path in tree.rglob("*"))
    size_mb = int(held * 1.1 / (1 << 20)) + spare_mb
    # No blocks are kept for root: what df calls free is free.
    options = ["-E", "root_owner=0:0", "-q", "-t", "ext4", "-m", "0", "-F", "-d", str(tree)]
    run(["mke2fs", *options, str(image), f"{size_mb}M"])
    # mke2fs keeps the owners of this machine, and without root they can only be changed in the image.
    wrong = []
    for path in sorted(tree.rglob("*")):
        inside = path.relative_to(tree)
        owner = next((uid for folder, uid in (owners or {}).items() if inside.is_relative_to(folder)), 0)
        found = path.lstat()
        for field, is_now in (("uid", found.st_uid), ("gid", found.st_gid)):
            if is_now != owner:
                wrong.append(f'set_inode_field "/{inside}" {field} {owner}\n')
    if wrong:
        with tempfile.NamedTemporaryFile("w", suffix=".debugfs") as commands:
            commands.writelines(wrong)
            commands.flush()
            run(["debugfs", "-w", "-f", commands.name, str(image)])


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
