"""A real OpenSSH server on 127.0.0.1, run as oneself: a device to connect to that starts in no time.

Whoever logs in (with a key of ours, as the user who runs this) has a home of their own in a temporary folder
and this machine's programs. Nothing is installed and no root is needed: the server is unpacked into
`.cache/emulation`, and nss_wrapper (of the Samba project) gives it the password database that it reads.
"""

from __future__ import annotations

import atexit
import grp
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from emulation import ROOT_SUITE, Unavailable, debian, unpacked
from openssh import client_config, key_pair
from qemu import free_port

_START_SECONDS = 20
_CONFIG = """ListenAddress 127.0.0.1:{port}
HostKey "{host_key}"
AuthorizedKeysFile "{authorized}"
PidFile none
UsePAM no
UseDNS no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowUsers {user}
Subsystem sftp internal-sftp
SetEnv {mark}={work}
"""
_MARK = "EMULATED_SSHD"  # by which what was started there is known


class Sshd:
    """It runs until `close`, or the end of its `with`. `config` is for ssh's -F; `home` is where one is after
    logging in."""

    def __init__(self, shell: str = "/bin/sh") -> None:
        """`shell` is what they get. Raises `Unavailable` when it cannot be had, or does not start."""
        root = _unpacked()
        self._work = Path(tempfile.mkdtemp(prefix="sshd-"))
        self.port = free_port()
        self.home = self._work / "home"
        self.home.mkdir()
        user = pwd.getpwuid(os.getuid()).pw_name
        self.address = f"ssh://{user}@127.0.0.1:{self.port}"
        key, host_key = key_pair("board-key"), key_pair("board-host-key")
        self.authorized_keys = self._work / "authorized_keys"
        shutil.copy(key.with_suffix(".pub"), self.authorized_keys)
        self.config = self._work / "ssh_config"
        self.known_hosts = self._work / "device-known-hosts"
        self.config.write_text(client_config(self._work, self.port, key, host_key))
        self._log = self._work / "log"
        settings = {"port": self.port, "host_key": host_key, "authorized": self.authorized_keys, "user": user}
        (self._work / "sshd_config").write_text(_CONFIG.format(**settings, mark=_MARK, work=self._work))
        self._process = self._start(root, user, shell)
        atexit.register(self.close)
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _start(self, root: Path, user: str, shell: str) -> subprocess.Popen[bytes]:
        group = grp.getgrgid(os.getgid()).gr_name
        (self._work / "passwd").write_text(
            f"{user}:x:{os.getuid()}:{os.getgid()}::{self.home}:{shell}\nsshd:x:64321:64321::/run/sshd:/bin/false\n"
        )
        (self._work / "group").write_text(f"{group}:x:{os.getgid()}:\n")
        if os.getuid() == 0:  # its own place to be locked in, which is compiled in
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        libraries = [root / place / "x86_64-linux-gnu" for place in ("usr/lib", "lib")]
        self._loader = root / "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
        command = [str(self._loader), "--library-path", ":".join(map(str, libraries))]
        command += ["--preload", str(libraries[0] / "libnss_wrapper.so")]
        # -r: it does not execute itself anew for each connection, without the loader.
        command += [str(root / "usr/sbin/sshd"), "-D", "-r", "-e", "-f", str(self._work / "sshd_config")]
        databases = {f"NSS_WRAPPER_{name.upper()}": str(self._work / name) for name in ("passwd", "group")}
        with self._log.open("wb") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **databases},
                start_new_session=True,
            )

    def cut_connections(self) -> None:
        """Ends all sessions of ssh at once. What they had started goes on."""
        for pid in self._sessions():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def pause(self) -> None:
        """It vanishes: answers nothing, closes no connection."""
        for pid in [self._process.pid, *self._sessions()]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        for pid in [self._process.pid, *self._sessions()]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        atexit.unregister(self.close)
        self.cut_connections()
        self._process.kill()
        self._process.wait()
        for pid in self._started():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self._work, ignore_errors=True)

    def __enter__(self) -> Sshd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self) -> None:
        end = time.monotonic() + _START_SECONDS
        while self._process.poll() is None and time.monotonic() < end:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5) as talk:
                if talk.recv(4) == b"SSH-":
                    return
            time.sleep(0.05)
        told = self._log.read_text(errors="replace").strip().splitlines()[-2:]
        raise Unavailable(f"sshd does not start: {' / '.join(told) or 'it says nothing'}")

    def _sessions(self) -> list[int]:
        """Processes of the server for those who are connected: its descendants that are still itself."""
        parents = {}
        for pid in _processes():
            with suppress(OSError):
                if Path(f"/proc/{pid}/exe").samefile(self._loader):
                    parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found = {self._process.pid}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return sorted(found - {self._process.pid})

    def _started(self) -> list[int]:
        """What was started by those who logged in, and still runs."""
        found = []
        for pid in _processes():
            with suppress(OSError):
                if f"{_MARK}={self._work}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found.append(pid)
        return found


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _unpacked() -> Path:
    mirror, host = debian("apt-get", "dpkg-deb")
    if host != "amd64":
        raise Unavailable(f"the server is made for amd64, and this machine is {host}")
    packages = ("openssh-server", "libnss-wrapper")
    return unpacked("openssh-server", mirror, ROOT_SUITE, host, packages, dependencies=True)
