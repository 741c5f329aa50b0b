"""A phone over Android's adb, without root."""

from __future__ import annotations

import shutil
import subprocess

from field.address import Address
from field.device import Device, DeviceLost
from rpi_runtime.errors import ResourceError


class AdbDevice(Device):
    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._serial = ""

    def command(self, script: str) -> list[str]:
        if not self._serial:
            self._serial = self._chosen()
        return ["adb", "-s", self._serial, "shell", "-T", script]

    def lost(self, told: str) -> DeviceLost:
        self._serial = ""  # it may come back as another transport
        # What a program there said last is no reason.
        said = [line for line in told.strip().splitlines() if line.startswith(("adb: ", "error: "))]
        lines = [line.removeprefix("adb: ").removeprefix("error: ") for line in said]
        return DeviceLost(
            f"{self.address}: {lines[-1] if lines else 'the connection was lost'}",
            "Check the cable, and USB debugging on the phone; adb devices shows what is there. "
            "Then give the same command again.",
        )

    def _chosen(self) -> str:
        states = adb_devices()
        asked = self.address.serial
        usable = [serial for serial, state in states.items() if state == "device"]
        if asked:
            if states.get(asked) == "device":
                return asked
            state = states.get(asked, "not connected")
            raise DeviceLost(f"{self.address}: {state}", _remedy(state, asked))
        if len(usable) == 1:
            return usable[0]
        if usable:
            listed = ", ".join(f"adb://{serial}" for serial in usable)
            raise ResourceError("adb:// may be several devices", f"Name one: {listed}.")
        state = next(iter(states.values()), "not connected")
        raise DeviceLost(f"{self.address}: {state}", _remedy(state, ""))


def is_installed() -> bool:
    return shutil.which("adb") is not None


def adb_devices() -> dict[str, str]:
    """Serial of each device that adb knows, and its state ("device" is fine). Raises `ResourceError` where
    adb is not installed or does not start."""
    if not is_installed():
        raise ResourceError("adb is not installed here", "Install Android's platform tools (Debian: adb).")
    try:
        done = subprocess.run(
            ["adb", "devices"], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30
        )
    except subprocess.TimeoutExpired as error:
        raise ResourceError(
            "adb devices does not answer", "Try adb kill-server, then adb devices."
        ) from error
    if done.returncode:
        told = (done.stderr or done.stdout).strip().splitlines()
        raise ResourceError(
            f"adb does not start: {told[-1] if told else done.returncode}", "Try adb devices."
        )
    rows = (line.split("\t") for line in done.stdout.splitlines() if "\t" in line)
    return {serial: state.strip() for serial, state in rows}


def _remedy(state: str, serial: str) -> str:
    if state == "unauthorized":
        return "Allow USB debugging on the phone's screen."
    if state == "offline":
        return "Unplug it and plug it in again, or adb reconnect."
    connect = f", or adb connect {serial}" if ":" in serial else ""
    return f"Plug the phone in, with USB debugging on{connect}; adb devices shows what is there."
