"""A whole emulated board to try the toolkit on without hardware: its memory is bounded, and ssh reaches it.

    python scripts/board.py [--memory 512] [--cpu cortex-a72] [--port 2222] [FOLDER ...]

boots a Debian arm64 in QEMU and says how to reach it; Ctrl-C turns it off. It has Python and OpenSSH as a
Raspberry Pi OS Lite has them, a user `pi`, and nothing of this project. FOLDERs are mounted read-only below
/data. Reboots keep what was written; turning it off forgets it. Nothing is installed on this machine and no
root is needed: packages are unpacked into `.cache/emulation`. Emulated times say nothing about speed.
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
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from emulation import CACHE, PI4, ROOT_PACKAGES, ROOT_SUITE, Unavailable, making, unpacked
from openssh import client_config, key_pair
from qemu import Machine, Parts, filesystem, free_port, initrd, parts

REPO = Path(__file__).resolve().parent.parent
SSH_CONFIG = CACHE / "board-ssh-config"
ALIAS = "emulated-board"
_PI = 1000  # the id of user and group
_PACKAGES = (
    *ROOT_PACKAGES,
    "openssh-server",
    "openssh-sftp-server",
    "dash",
    "coreutils",
    "findutils",
    "diffutils",
    "grep",
    "sed",
    "mawk",
    "tar",
    "gzip",
    "xz-utils",
    "libc-bin",
    "hostname",
    "iproute2",
    "mount",
    "util-linux",
    "procps",
)
_SPARE_MB = 4096

_UP = "the board is up"
_INIT = f"""#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm; mount -t devpts pts /dev/pts; mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /tmp; mount -t tmpfs -o mode=755 run /run; mkdir -p /run/sshd
[ -b /dev/vdb ] && mount -o ro /dev/vdb /data
echo board > /proc/sys/kernel/hostname
ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2
/usr/sbin/sshd
echo {_UP} > /dev/console
while :; do wait; sleep 5; done
"""
# Key exchange and cipher are those that an emulated CPU has soonest done.
_SSHD_CONFIG = """UsePAM no
UseDNS no
PermitRootLogin prohibit-password
KexAlgorithms curve25519-sha256
Subsystem sftp /usr/lib/openssh/sftp-server
"""
_REBOOT = "#!/bin/sh\nsync; echo {how} > /proc/sysrq-trigger\n"
_PASSWD = f"""root:x:0:0:root:/root:/bin/sh
sshd:x:100:65534::/run/sshd:/bin/false
pi:x:{_PI}:{_PI}:,,,:/home/pi:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
"""
_GROUP = f"root:x:0:\nvideo:x:44:pi\npi:x:{_PI}:\nnogroup:x:65534:\n"


class Board:
    """A running board. `run` has it run a command; leaving the `with` turns it off.

    `address` is how the toolkit reaches it, as the user `pi`, with an ssh that has read `ssh_config`.
    """

    def __init__(
        self,
        memory_mb: int = 512,
        cpu: str = PI4,
        shared: Sequence[Path] = (),
        port: int | None = None,
        *,
        free_mb: int | None = None,
    ) -> None:
        """`free_mb` is what the disk has left, by default 4 GB. Raises `Unavailable` when the parts cannot be
        had, or it does not come up."""
        found = parts()
        self.port = port or free_port()
        self.key = key_pair("board-key")
        self.address = f"ssh://pi@127.0.0.1:{self.port}"
        with making("board.img") as image:
            _make_image(image, found, self.key)
        drives = [image]
        self._work = Path(tempfile.mkdtemp(prefix="board-"))
        self.ssh_config = self._work / "ssh_config"
        self.ssh_config.write_text(client_config(self._work, self.port, self.key, key_pair("board-host-key")))
        atexit.register(self.close)
        self._machine: Machine | None = None
        try:
            if shared:
                drives.append(_data_disk(shared, self._work))
            start = initrd("board-initrd", found, "exec /bin/busybox switch_root /root /sbin/board-init")
            ports = {self.port: 22}
            self._machine = Machine(found, start, drives, memory_mb=memory_mb, cpu=cpu, ports=ports)
            self._wait(boots=1)
            if free_mb is not None:
                self.leave_free(free_mb)
        except BaseException:
            self.close()
            raise

    def run(
        self, command: str, timeout: float = 900, *, user: str = "root"
    ) -> subprocess.CompletedProcess[str]:
        """Runs a shell command there."""
        ssh = [*self.ssh(user), command]
        return subprocess.run(ssh, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)

    def ssh(self, user: str = "root") -> list[str]:
        quiet = ["-o", "LogLevel=ERROR", "-o", "ConnectTimeout=10"]
        return ["ssh", "-F", str(self.ssh_config), *quiet, "-p", str(self.port), f"{user}@127.0.0.1"]

    @property
    def boot_id(self) -> str:
        return self.run("cat /proc/sys/kernel/random/boot_id", timeout=20).stdout.strip()

    def reboot(self, *, power_cut: bool = False) -> None:
        """Comes back when it is up again. `power_cut` loses what was not yet on the disk."""
        assert self._machine
        boots = self._machine.console().count(_UP)
        if power_cut:
            self._machine.cut_power()
        else:
            self.run("(sleep 0.2; reboot) > /dev/null 2>&1 &")  # which closes no connection
        self._wait(boots + 1)

    def pause(self) -> None:
        """It vanishes: answers nothing, closes no connection."""
        assert self._machine
        self._machine.pause()

    def resume(self) -> None:
        assert self._machine
        self._machine.resume()

    def cut_connections(self) -> None:
        """Ends all sessions of ssh at once. What they had started goes on."""
        self.run('kill -KILL $(pgrep -x sshd | grep -vx "$(cat /run/sshd.pid)")')

    def leave_free(self, free_mb: int) -> None:
        """Fills the disk but for so much, or makes room again."""
        fill = (
            "rm -f /var/filler; "
            f"fallocate -l $(( ($(stat -f -c %a /) * $(stat -f -c %S /)) - {free_mb << 20} )) /var/filler"
        )
        done = self.run(fill)
        if done.returncode:
            raise Unavailable(f"the board's disk cannot be filled: {done.stderr.strip()}")

    def wait_for_end(self) -> None:
        """Returns when it is no longer running, for whatever reason."""
        assert self._machine
        while self._machine.is_running:
            time.sleep(1)

    def close(self) -> None:
        atexit.unregister(self.close)
        if self._machine is not None:
            self._machine.close()
        shutil.rmtree(self._work, ignore_errors=True)

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self, boots: int) -> None:
        machine = self._machine
        assert machine
        # Who knocks too early is let in late.
        machine.wait(lambda: machine.console().count(_UP) >= boots and self._answers())

    def _answers(self) -> bool:
        with suppress(subprocess.TimeoutExpired):
            return self.run("true", timeout=20).returncode == 0
        return False


def _make_image(target: Path, found: Parts, key: Path) -> None:
    """The board's disk: Debian, and nothing of this project."""
    made_by = [Path(__file__).with_name(name) for name in ("board.py", "qemu.py")]
    newest = max(path.stat().st_mtime for path in (*made_by, key))
    if target.exists() and target.stat().st_mtime >= newest:
        return
    root = unpacked("bare-arm64", found.mirror, ROOT_SUITE, "arm64", _PACKAGES, dependencies=True)
    host_key = key_pair("board-host-key")
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        tree = Path(name) / "tree"
        shutil.copytree(root, tree, symlinks=True)
        for folder in ("proc", "sys", "dev", "tmp", "run", "data", "var/empty", "var/tmp", "opt"):
            (tree / folder).mkdir(parents=True, exist_ok=True)
        (tree / "var/tmp").chmod(0o1777)
        (tree / "usr/bin/awk").symlink_to("mawk")  # as installing it would
        (tree / "usr/bin/python3").symlink_to("python3.11")
        public = key.with_suffix(".pub").read_text()
        files = [
            ("sbin/board-init", _INIT, 0o755),
            ("sbin/reboot", _REBOOT.format(how="b"), 0o755),
            ("sbin/poweroff", _REBOOT.format(how="o"), 0o755),
            ("etc/passwd", _PASSWD, 0o644),
            ("etc/group", _GROUP, 0o644),
            ("etc/shadow", "root:*:19000:0:99999:7:::\npi:*:19000:0:99999:7:::\n", 0o600),
            ("root/.ssh/authorized_keys", public, 0o600),
            ("home/pi/.ssh/authorized_keys", public, 0o600),
            ("etc/ssh/sshd_config", _SSHD_CONFIG, 0o644),
            ("etc/ssh/ssh_host_ed25519_key", host_key.read_text(), 0o600),
            ("etc/ssh/ssh_host_ed25519_key.pub", host_key.with_suffix(".pub").read_text(), 0o644),
        ]
        for at, text, mode in files:
            (tree / at).parent.mkdir(parents=True, exist_ok=True)
            (tree / at).write_text(text)
            (tree / at).chmod(mode)
        for folder in ("root", "root/.ssh", "home/pi/.ssh"):
            (tree / folder).chmod(0o700)
        filesystem(tree, Path(name) / "img", _SPARE_MB, {"home/pi": _PI})
        (Path(name) / "img").rename(target)


def _data_disk(folders: Sequence[Path], work: Path) -> Path:
    tree = work / "data"
    for folder in folders:
        shutil.copytree(folder, tree / folder.resolve().name, copy_function=_link)
    filesystem(tree, work / "data.img", spare_mb=32)
    return work / "data.img"


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


_HOW = """The board is up: {memory} MB, {cpu}, at {address}. For ssh and the toolkit to
find its key, put this line at the top of ~/.ssh/config, once:

  Include "{config}"

Then, with Ctrl-C here to turn it off:

  ssh {alias}
  toolkit deploy demo/bundle --device {address}
  ssh -l root {alias} /sbin/reboot
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--memory", type=int, default=512, help="MB (default 512)")
    parser.add_argument(
        "--cpu", default=PI4, help="cortex-a72 is a Pi 4, cortex-a76 a Pi 5 (default cortex-a72)"
    )
    parser.add_argument("--port", type=int, default=2222, help="of ssh, on 127.0.0.1 (default 2222)")
    parser.add_argument("--free", type=int, metavar="MB", help="what its disk has left (default 4096)")
    given = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):  # what was started ends with us
        signal.signal(number, lambda *_: sys.exit(1))
    try:
        with Board(given.memory, given.cpu, given.folders, given.port, free_mb=given.free) as board:
            SSH_CONFIG.write_text(
                client_config(
                    CACHE, board.port, board.key, key_pair("board-host-key"), alias=ALIAS, user="pi"
                )
            )
            shown = {"memory": given.memory, "cpu": given.cpu, "address": board.address, "alias": ALIAS}
            print(_HOW.format(**shown, config=SSH_CONFIG), flush=True)
            board.wait_for_end()
            print("error: the board has ended by itself", file=sys.stderr)
            return 3
    except Unavailable as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
