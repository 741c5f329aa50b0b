"""A device over the user's own OpenSSH: their keys, their configuration, their known hosts.

One connection serves all (a master of OpenSSH's multiplexing, whose socket lies in a folder of its own), so
that a password is asked for once and a command costs a round trip, not a handshake.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from field.address import Address
from field.device import Device, DeviceLost, quote
from rpi_runtime.errors import ResourceError

# A connection that carries nothing is asked every so many seconds, and given up after as many questions.
_ALIVE = ("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=4")
_HANDSHAKE_SECONDS = 30  # on a small board that is busy
_REMEDIES = {
    "Host key verification failed": "Connect once by hand (ssh {where}) and compare its key; if the board "
    "was flashed anew: ssh-keygen -R '{known}'.",
    "Permission denied": "Copy your key there: ssh-copy-id {where}.",
    "Could not resolve": "Check the name, or give the board's address.",
    "Connection refused": "Is ssh enabled there? On a Raspberry Pi: sudo raspi-config, Interface Options.",
    "timed out": "Is the board on, and in this network?",
    "No route to host": "Is the board on, and in this network?",
}
# How it begins what it says about a connection that it had.
_SAID_BY_SSH = (
    "ssh: ",
    "Connection ",
    "client_loop: ",
    "kex_exchange",
    "mux_client",
    "Timeout, server",
    "Bad ",
)


class SshDevice(Device):
    def __init__(self, address: Address, *, connect_seconds: int = 15, ask: bool = True) -> None:
        """`ask` lets ssh ask for a password or about a host's key; without, it fails instead."""
        super().__init__(address)
        if shutil.which("ssh") is None:
            raise ResourceError("ssh is not installed here", "Install OpenSSH's client.")
        # Short: a socket's path has at most 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="hv-ssh-"))
        self._told = self._folder / "told"
        self._ask, self._connect_seconds = ask, connect_seconds
        options = [f"ConnectTimeout={connect_seconds}", *(() if ask else ("BatchMode=yes",))]
        self._options = ["-S", str(self._folder / "s"), *(part for o in options for part in ("-o", o))]
        self._options += ["-l", address.user] if address.user else []
        self._options += ["-p", str(address.port)] if address.port else []
        self._master: subprocess.Popen[bytes] | None = None

    def command(self, script: str) -> list[str]:
        if self._master is None or self._master.poll() is not None:
            self._connect()
        # A login shell may be any; it hands the script to sh.
        one = ("-o", "ControlMaster=no", "-o", "RemoteCommand=none")  # whatever the user's configuration has
        return ["ssh", *self._options, *one, "-T", "--", self.address.host, f"exec sh -c {quote(script)}"]

    def lost(self, told: str) -> DeviceLost:
        ended = self._last_words()
        # What a program there said last is no reason.
        lines = [line.strip() for line in (told if ended is None else ended).splitlines()]
        reasons = [line for line in lines if ended is not None or line.startswith(_SAID_BY_SSH)]
        why = next((line for line in reasons if any(mark in line for mark in _REMEDIES)), "")
        why = why or next((line for line in reversed(reasons) if line), "the connection was lost")
        remedy = next(
            (text for mark, text in _REMEDIES.items() if mark in why),
            "Check the connection, and give the same command again.",
        )
        user, host, port = self.address.user, self.address.host, self.address.port
        where = f"-p {port} " * bool(port) + f"{user}@" * bool(user) + host
        known = f"[{host}]:{port}" if port not in (None, 22) else host
        return DeviceLost(f"{self.address}: {why}", remedy.format(where=where, known=known))

    def drop(self) -> None:
        if self._master is not None:
            self._master.kill()

    def close(self) -> None:
        if self._master is not None and self._master.poll() is None:
            self._master.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._master.wait(timeout=5)
            self._master.kill()
            self._master.wait()
        self._master = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _connect(self) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        socket = self._folder / "s"
        socket.unlink(missing_ok=True)
        # Ctrl-C reaches ssh, too, while it asks for a password, and later only us.
        stays = ("-o", "ControlPersist=no", "-o", "RemoteCommand=none")
        master = ["ssh", *self._options, *_ALIVE, *stays, "-M", "-N", "-T", "--", self.address.host]
        with self._told.open("wb") as log:
            self._master = subprocess.Popen(
                ["/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh", *master],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        # Who is asked may take their time; a device that vanishes right now would never be given up.
        end = None if self._ask else time.monotonic() + self._connect_seconds + _HANDSHAKE_SECONDS
        try:
            while not socket.exists():
                if self._master.poll() is not None:
                    raise self.lost("")
                if end is not None and time.monotonic() > end:
                    self.drop()
                    raise self.lost("")
                time.sleep(0.02)
        except KeyboardInterrupt:
            self.close()
            raise

    def _last_words(self) -> str | None:
        """What the connection's ssh said, if it has ended."""
        if self._master is None:
            return None
        with suppress(subprocess.TimeoutExpired):  # it may be about to
            self._master.wait(timeout=1)
            return self._told.read_text(errors="replace")
        return None
