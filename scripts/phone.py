"""An emulated phone that adb reaches: what is not on Android is not on it either.

    python scripts/phone.py [--memory 1024] [--cpu cortex-a76] [--port 15555]

boots it in QEMU and says how to reach it; Ctrl-C turns it off. /system/bin has mksh as `sh` and those tools
of toybox that Android has (a few are busybox's, and there is no awk, as on older phones); there is no /bin,
/lib, /tmp or /usr, no GNU tool, no Python and no C library that a program of ours would find. One is the user
`shell`, who may write to /data/local/tmp (and to /sdcard, where nothing can be executed). adbd is a real one
(Debian's), and so a shell for whoever can connect to that port of 127.0.0.1; the emulated phone reaches
nothing outside itself. What it lacks of a phone: bionic, SELinux, apps. Nothing is installed on this machine
and no root is needed.
"""

from __future__ import annotations

import argparse
import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from emulation import CACHE, PI5, Unavailable, making, unpacked
from qemu import Machine, Parts, filesystem, free_port, initrd, parts

_SUITE = "bookworm-backports"  # bookworm has no adbd
_SHELL = 2000  # Android's id of user and group
_SPARE_MB = 4096
_LIBRARIES = "/apex/adbd/lib64"
# Those tools of Android 14 that Debian's toybox has too.
_TOYBOX = (
    "[ base64 basename blkid cal cat chattr chgrp chmod chown chroot chrt cksum clear cmp comm cp cpio "
    "cut date df dirname dmesg dos2unix du echo egrep env expand fallocate false fgrep file find flock "
    "fmt free fsync getconf grep groups gunzip head help hostname iconv id ifconfig ionice iorenice kill "
    "killall ln logname losetup ls lsattr lsmod lspci lsusb md5sum microcom mkdir mkfifo mknod mkswap "
    "mktemp modinfo mount mountpoint mv nc netcat netstat nice nl nohup nproc nsenter od paste patch "
    "pgrep pidof pkill pmap printenv printf ps pwd pwdx readelf readlink realpath renice rev rm rmdir sed "
    "seq setsid sha1sum sha224sum sha256sum sha384sum sha512sum sleep sort split stat strings swapoff "
    "swapon sync sysctl tac tail tar taskset tee test time timeout top touch true truncate tty ulimit "
    "umount uname uniq unix2dos unlink unshare uptime usleep uudecode uuencode vmstat wc which whoami "
    "xargs xxd yes zcat"
)
# Those that Android's toybox has and Debian's has not: of busybox.
_BUSYBOX = "dd diff expr gzip more stty tr"
_PROPERTIES = {
    "ro.product.manufacturer": "QEMU",
    "ro.product.model": "Emulated phone",
    "ro.product.cpu.abi": "arm64-v8a",
    "ro.product.cpu.abilist": "arm64-v8a",
    "ro.build.version.release": "14",
    "ro.build.version.sdk": "34",
    "ro.soc.manufacturer": "QEMU",
    "ro.soc.model": "virt",
}
_GETPROP = """#!/system/bin/sh
while IFS='=' read -r name value; do
  case "$1" in
    '') echo "[$name]: [$value]";;
    "$name") echo "$value"; exit;;
  esac
done < /system/build.prop
[ -z "$1" ] || echo "$2"
"""
_UP = "the phone is up"
# Runs in the first root; adbd and all that it starts see the phone's alone.
_INIT = """
busybox() { /bin/busybox "$@"; }
cd /root
busybox mount -t proc proc proc; busybox mount -t sysfs sys sys; busybox mount -t devtmpfs dev dev
busybox mkdir -p dev/pts; busybox mount -t devpts pts dev/pts
busybox mount -t tmpfs -o noexec,nosuid,uid=2000,gid=2000,mode=770 sdcard storage/emulated/0
echo localhost > proc/sys/kernel/hostname
busybox ip link set lo up; busybox ip link set eth0 up; busybox ip addr add 10.0.2.15/24 dev eth0
export ADBD_PORT=15555 PATH=/product/bin:/apex/com.android.runtime/bin:/system/bin:/vendor/bin
export ANDROID_ROOT=/system ANDROID_DATA=/data EXTERNAL_STORAGE=/sdcard
echo "UP" > /dev/console
while :; do
  busybox chroot /root /apex/adbd/bin/busybox start-stop-daemon -S -c 2000:2000 -x /apex/adbd/bin/adbd
  busybox sleep 1
done
""".replace("UP", _UP)


class Phone:
    """A running phone; leaving the `with` turns it off. `address` is how the toolkit reaches it, with
    `environment` as variables: an adb whose server is not the user's."""

    def __init__(
        self, memory_mb: int = 1024, cpu: str = PI5, port: int | None = None, server_port: int | None = None
    ) -> None:
        """Raises `Unavailable` when the parts cannot be had, or it does not come up."""
        found = parts()
        adb = unpacked("adb", found.mirror, _SUITE, "amd64", ("adb",), dependencies=True)
        self.port = port or free_port()
        self.serial = f"127.0.0.1:{self.port}"
        self.address = f"adb://{self.serial}"
        self._work = Path(tempfile.mkdtemp(prefix="phone-"))
        self.bin = _adb_in(self._work, adb)
        self.server_port = server_port or free_port()
        self.environment = {
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "ANDROID_ADB_SERVER_PORT": str(self.server_port),
        }
        atexit.register(self.close)
        self._machine: Machine | None = None
        self._server: subprocess.Popen[bytes] | None = None
        try:
            with making("phone.img") as image:
                _make_image(image, found)
            start = initrd("phone-initrd", found, _INIT)
            self._machine = Machine(
                found, start, [image], memory_mb=memory_mb, cpu=cpu, ports={self.port: 15555}
            )
            self._server = self._start_server()
            self._wait(boots=1)
        except BaseException:
            self.close()
            raise

    def run(self, command: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Runs a shell command there."""
        return self._adb("-s", self.serial, "shell", "-T", command, timeout=timeout)

    @property
    def boot_id(self) -> str:
        return self.run("cat /proc/sys/kernel/random/boot_id").stdout.strip()

    def reboot(self) -> None:
        """By cutting its power, after it wrote what it has. Comes back when it is up again."""
        assert self._machine
        self.run("sync")
        boots = self._machine.console().count(_UP)
        self._machine.cut_power()
        self.unplug()
        self._wait(boots + 1)

    def unplug(self) -> None:
        """Ends all connections, and makes none."""
        self._adb("disconnect", self.serial)

    def plug_in(self) -> bool:
        """Says whether it is there."""
        with suppress(subprocess.TimeoutExpired):
            self._adb("connect", self.serial, timeout=10)
            return self.run("true", timeout=10).returncode == 0
        return False

    def pause(self) -> None:
        """It vanishes: answers nothing, closes no connection."""
        assert self._machine
        self._machine.pause()

    def resume(self) -> None:
        assert self._machine
        self._machine.resume()

    def close(self) -> None:
        atexit.unregister(self.close)
        if self._server is not None:
            self._server.kill()
            self._server.wait()
        if self._machine is not None:
            self._machine.close()
        shutil.rmtree(self._work, ignore_errors=True)

    def __enter__(self) -> Phone:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self, boots: int) -> None:
        machine = self._machine
        assert machine
        machine.wait(lambda: machine.console().count(_UP) >= boots and self.plug_in())

    def _start_server(self) -> subprocess.Popen[bytes]:
        with (self._work / "server").open("wb") as log:
            return subprocess.Popen(
                [str(self.bin / "adb"), "-L", f"tcp:{self.server_port}", "server", "nodaemon"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _adb(self, *arguments: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.bin / "adb"), *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **self.environment},
        )


def _adb_in(work: Path, adb: Path) -> Path:
    """A folder with an `adb` that runs unpacked, and keeps its key in `work`."""
    libraries = [adb / place for place in ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")]
    libraries.insert(0, libraries[0] / "android")
    loader = adb / "lib64/ld-linux-x86-64.so.2"
    folder = work / "bin"
    folder.mkdir()
    found = ":".join(map(str, libraries))
    program = adb / "usr/lib/android-sdk/platform-tools/adb"
    run = f"exec '{loader}' --argv0 adb --library-path '{found}' '{program}' \"$@\""
    (folder / "adb").write_text(f"#!/bin/sh\nHOME='{work}' {run}\n")
    (folder / "adb").chmod(0o755)
    return folder


def _make_image(target: Path, found: Parts) -> None:
    made_by = [Path(__file__).with_name(name) for name in ("phone.py", "qemu.py")]
    if target.exists() and target.stat().st_mtime >= max(path.stat().st_mtime for path in made_by):
        return
    packages = ("adbd", "mksh", "toybox")
    debian = unpacked("phone-arm64", found.mirror, _SUITE, "arm64", packages, dependencies=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        tree = Path(name) / "tree"
        for folder in ("proc", "sys", "dev", "data/local/tmp", "storage/emulated/0", "odm", "system/etc"):
            (tree / folder).mkdir(parents=True, exist_ok=True)
        (tree / "etc").symlink_to("/system/etc")
        (tree / "sdcard").symlink_to("/storage/emulated/0")
        _programs(debian, found.kernel / "bin/busybox", tree)
        passwd = f"root:x:0:0::/:/system/bin/sh\nshell:x:{_SHELL}:{_SHELL}::/:/system/bin/sh\n"
        properties = "".join(f"{key}={value}\n" for key, value in _PROPERTIES.items())
        for at, text, mode in (
            ("system/bin/getprop", _GETPROP, 0o755),
            ("system/build.prop", properties, 0o644),
            ("system/etc/passwd", passwd, 0o644),
            ("system/etc/group", f"root:x:0:\nshell:x:{_SHELL}:\n", 0o644),
        ):
            (tree / at).write_text(text)
            (tree / at).chmod(mode)
        for folder in ("data", "data/local", "data/local/tmp"):
            (tree / folder).chmod(0o771)
        filesystem(tree, Path(name) / "img", _SPARE_MB, {"data/local/tmp": _SHELL})
        (Path(name) / "img").rename(target)


def _programs(debian: Path, busybox: Path, tree: Path) -> None:
    """mksh is static; adbd and toybox find their libraries, and nothing else does, in a folder of theirs."""
    apex, system = tree / "apex/adbd", tree / "system/bin"
    for folder in (apex / "bin", apex / "lib64", system):
        folder.mkdir(parents=True)
    shutil.copy(debian / "usr/lib/aarch64-linux-musl/bin/mksh", system / "sh")
    paths = {  # of the same length: they are changed in the programs
        "/usr/lib/aarch64-linux-gnu/android": _LIBRARIES,
        "/usr/lib/aarch64-linux-gnu/": _LIBRARIES,
        "/lib/aarch64-linux-gnu/": _LIBRARIES,
        "/lib/ld-linux-aarch64.so.1": f"{_LIBRARIES}/ld.so",
        "/bin/sh": "/odm/sh",
    }
    (tree / "odm/sh").symlink_to("/system/bin/sh")  # a short path, for adbd, which has room for "/bin/sh"
    for source, target in (
        (debian / "usr/lib/android-sdk/platform-tools/adbd", apex / "bin/adbd"),
        (debian / "bin/toybox", system / "toybox"),
        (debian / "lib/aarch64-linux-gnu/ld-linux-aarch64.so.1", apex / "lib64/ld.so"),
    ):
        target.write_bytes(_moved(source.read_bytes(), paths))
        target.chmod(0o755)
    places = ("usr/lib/aarch64-linux-gnu/android", "usr/lib/aarch64-linux-gnu", "lib/aarch64-linux-gnu")
    for library in (path for place in places for path in sorted((debian / place).glob("lib*.so.*"))):
        if library.is_file():
            shutil.copy(library, apex / "lib64" / library.name)
    (apex / "lib64/ld-linux-aarch64.so.1").symlink_to("ld.so")
    for tool in _TOYBOX.split():
        (system / tool).symlink_to("toybox")
    shutil.copy(busybox, apex / "bin/busybox")
    for tool in _BUSYBOX.split():
        (system / tool).symlink_to("/apex/adbd/bin/busybox")


def _moved(program: bytes, paths: dict[str, str]) -> bytes:
    """`program` with those strings in it changed, each filled up to its length."""
    for old, new in paths.items():
        filled = new.encode().ljust(len(old), b"/" if old.endswith("/") else b"\0")
        program = program.replace(b"\0" + old.encode() + b"\0", b"\0" + filled + b"\0")
    return program


_HOW = """The phone is up: {memory} MB, {cpu}, at {address}. In another terminal:

  export PATH="{bin}:$PATH" ANDROID_ADB_SERVER_PORT={server}
  adb devices
  toolkit doctor --device {address}

(or, with an adb of your own: adb connect {serial}). Ctrl-C here turns it off.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--memory", type=int, default=1024, help="MB (default 1024)")
    parser.add_argument("--cpu", default=PI5, help="default cortex-a76")
    parser.add_argument("--port", type=int, default=15555, help="of adbd, on 127.0.0.1 (default 15555)")
    given = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):  # what was started ends with us
        signal.signal(number, lambda *_: sys.exit(1))
    try:
        with Phone(given.memory, given.cpu, given.port) as phone:
            shown = {"memory": given.memory, "cpu": given.cpu, "address": phone.address}
            print(
                _HOW.format(**shown, bin=phone.bin, server=phone.server_port, serial=phone.serial), flush=True
            )
            while True:
                time.sleep(3600)
    except Unavailable as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
