"""An address as a device."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress

from field.adb import AdbDevice
from field.address import ADB, LOCAL, Address, parse_address
from field.device import Device, DeviceLost
from field.ssh import SshDevice


class LocalDevice(Device):
    """This machine itself."""

    own_session = True

    def command(self, script: str) -> list[str]:
        return ["/bin/sh", "-c", script]

    def end(self, process: subprocess.Popen[bytes]) -> None:
        with suppress(ProcessLookupError):  # with all that it started
            os.killpg(process.pid, signal.SIGKILL)

    def lost(self, told: str) -> DeviceLost:
        return DeviceLost(f"local: {told.strip() or 'the process was killed'}", "Try again.")


def connect(address: str | Address, *, ask: bool = True, connect_seconds: int = 15) -> Device:
    """The device at `address`; the connection is made when it is first used. Raises `UsageError`."""
    at = parse_address(address) if isinstance(address, str) else address
    if at.kind == ADB:
        return AdbDevice(at)
    if at.kind == LOCAL:
        return LocalDevice(at)
    return SshDevice(at, ask=ask, connect_seconds=connect_seconds)
