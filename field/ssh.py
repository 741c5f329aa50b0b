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
_REMEDIES = {
    "Host key verification failed": "Connect once by hand (ssh {where}) and compare its key; if the board "
    "was flashed anew: ssh-keygen -R {host}.",
    "Permission denied": "Copy your key there: ssh-copy-id {where}.",
    "Could not resolve": "Check the name, or give the board's address.",
    "Connection refused": "Is ssh enabled there? On a Raspberry Pi: sudo raspi-config, Interface Options.",
    "timed out": "Is the board on, and in this network?",
    "No route to host": "Is the board on, and in this network?",
}
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
        options = [f"ConnectTimeout={connect_seconds}", *(() if ask else ("BatchMode=yes",))]
        self._options = ["-S", str(self._folder / "s"), *(part for o in options for part in ("-o", o))]
        self._options += ["-l", address.user] if address.user else []
        self._options += ["-p", str(address.port)] if address.port else []
        self._master: subprocess.Popen[bytes] | None = None

    def command(self, script: str) -> list[str]:
        if self._master is None or self._master.poll() is not None:
            self._connect()
        # A login shell may be any; it hands the script to sh.
        return ["ssh", *self._options, "-T", "--", self.address.host, f"exec sh -c {quote(script)}"]

    def lost(self, told: str) -> DeviceLost:
        # What a program there said last is no reason.
        lines = [line.strip() for line in told.strip().splitlines()]
        reasons = [line for line in lines if any(mark in line for mark in (*_REMEDIES, *_SAID_BY_SSH))]
        why = next((line for line in reasons if any(mark in line for mark in _REMEDIES)), "")
        why = why or (reasons[-1] if reasons else "the connection was lost")
        remedy = next(
            (text for mark, text in _REMEDIES.items() if mark in why),
            "Check the connection; the same command goes on from there.",
        )
        where = f"{self.address.user}@{self.address.host}" if self.address.user else self.address.host
        if self.address.port:
            where = f"-p {self.address.port} {where}"
        return DeviceLost(
            f"{self.address}: {why}",
            remedy.format(where=where, host=self.address.host),
        )

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
        told = self._folder / "told"
        # Ctrl-C reaches ssh, too, while it asks for a password, and later only us.
        master = ["ssh", *self._options, *_ALIVE, "-M", "-N", "-T", "--", self.address.host]
        with told.open("wb") as log:
            self._master = subprocess.Popen(
                ["/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh", *master],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        try:
            while not socket.exists():
                if self._master.poll() is not None:
                    raise self.lost(told.read_text(errors="replace"))
                time.sleep(0.02)
        except KeyboardInterrupt:
            self.close()
            raise
