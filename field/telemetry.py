"""How a device is doing: heat, clock, throttling, watts, memory; what it does not tell is left out.

Everything is read below `root`, so that another folder can stand in for a device's /sys and /proc. Standard
library only.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_KIB = 1024
# Bits of vcgencmd get_throttled: now 0 to 3, since the boot 16 to 19. Source: Raspberry Pi's documentation.
THROTTLED = {
    0: "under-voltage",
    1: "the clock is capped",
    2: "throttled",
    3: "at the soft temperature limit",
    16: "under-voltage has occurred",
    17: "the clock was capped",
    18: "was throttled",
    19: "was at the soft temperature limit",
}
_FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"  # where the program is not installed


class Sensors:
    """What can be read of this device."""

    def __init__(self, root: Path = Path("/"), vcgencmd: str = "vcgencmd") -> None:
        self._root = root
        self._vcgencmd = shutil.which(vcgencmd) or ""
        self._has_pmic = bool(self._vcgencmd)  # only a Pi 5 has one

    def sample(self, worker: int | None = None) -> dict[str, Any]:
        """Fields of a telemetry record; those of process `worker` are 0 without one."""
        status = _fields(self._root / f"proc/{worker}/status") if worker else {}
        return {
            "temperature_c": dict(self._temperatures()),
            "clock_mhz": dict(self._clocks()),
            "throttled": self._throttled(),
            "watts": self._watts(),
            "memory_available_bytes": _fields(self._root / "proc/meminfo").get("MemAvailable", 0),
            "resident_bytes": status.get("VmRSS", 0),
            "peak_resident_bytes": status.get("VmHWM", 0),
            "load": _float(_text(self._root / "proc/loadavg").split(" ")[0]) or 0.0,
        }

    def boot(self) -> str:
        """An id that every boot has anew; "" where the system does not tell."""
        return _text(self._root / "proc/sys/kernel/random/boot_id")

    def _temperatures(self) -> Iterator[tuple[str, float]]:
        seen: dict[str, int] = {}
        for zone in sorted((self._root / "sys/class/thermal").glob("thermal_zone*"), key=_number):
            value = _float(_text(zone / "temp"))
            if value is None:
                continue
            name = _text(zone / "type") or zone.name
            seen[name] = seen.get(name, 0) + 1
            yield name if seen[name] == 1 else f"{name} {seen[name]}", round(value / 1000, 1)

    def _clocks(self) -> Iterator[tuple[str, float]]:
        for core in sorted((self._root / "sys/devices/system/cpu").glob("cpu[0-9]*"), key=_number):
            if (khz := _float(_text(core / "cpufreq/scaling_cur_freq"))) is not None:
                yield core.name, round(khz / 1000, 1)

    def _throttled(self) -> int | None:
        told = self._asked("get_throttled") if self._vcgencmd else ""
        if found := re.search(r"throttled=0x([0-9a-fA-F]+)", told):
            return int(found[1], 16)
        found = re.fullmatch(r"(?:0x)?([0-9a-fA-F]+)", _text(self._root / _FIRMWARE))
        return int(found[1], 16) if found else None

    def _watts(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for chip in sorted((self._root / "sys/class/hwmon").glob("hwmon*"), key=_number):
            name = _text(chip / "name") or chip.name
            for sensor, watts in _chip_watts(chip):
                key = f"{name} {sensor}"
                found[key if key not in found else f"{key} ({chip.name})"] = round(watts, 3)
        for supply in sorted((self._root / "sys/class/power_supply").glob("*")):
            if (drain := _drain(supply)) is not None:
                found[supply.name] = round(drain, 3)
        if self._has_pmic:
            rails = pmic_watts(self._asked("pmic_read_adc"))
            self._has_pmic = rails is not None
            if rails is not None:
                found["pmic"] = round(rails, 3)
        return found

    def _asked(self, *words: str) -> str:
        try:
            done = subprocess.run(
                [self._vcgencmd, *words], capture_output=True, text=True, errors="replace", timeout=5
            )
        except (OSError, subprocess.SubprocessError):
            return ""
        return done.stdout


def pmic_watts(told: str) -> float | None:
    """Sum over the rails of which `vcgencmd pmic_read_adc` prints current and voltage; None without any. What
    the board takes from its supply is more: the regulators lose some, and USB is not measured."""
    amperes = dict(re.findall(r"(\w+)_A\s+current\(\d+\)=(-?[\d.]+)A", told))
    volts = dict(re.findall(r"(\w+)_V\s+volt\(\d+\)=(-?[\d.]+)V", told))
    rails = amperes.keys() & volts.keys()
    return sum(float(amperes[rail]) * float(volts[rail]) for rail in rails) if rails else None


def _chip_watts(chip: Path) -> Iterator[tuple[str, float]]:
    """Of each power sensor of a chip, in µW; without one, of each pair of voltage (mV) and current (mA).
    Source: the kernel's Documentation/hwmon/sysfs-interface."""
    powers = [*chip.glob("power*_input"), *chip.glob("power*_average")]
    known: set[str] = set()
    for file in sorted(powers, key=_number):
        sensor = file.name.partition("_")[0]
        value = _float(_text(file))
        if value is not None and sensor not in known:
            known.add(sensor)
            yield _text(chip / f"{sensor}_label") or sensor, value / 1e6
    if known:
        return
    for file in sorted(chip.glob("curr*_input"), key=_number):
        number = file.name.removeprefix("curr").removesuffix("_input")
        ma, mv = _float(_text(file)), _float(_text(chip / f"in{number}_input"))
        if ma is not None and mv is not None:
            label = _text(chip / f"curr{number}_label") or f"in{number} x curr{number}"
            yield label, ma * mv / 1e6


def _drain(supply: Path) -> float | None:
    """Watts that come out of a battery; None for what is none, or is being charged. Files are in µV, µA, µW;
    drivers disagree about the sign."""
    if _text(supply / "status") != "Discharging":
        return None
    power = _float(_text(supply / "power_now"))
    if power is not None:
        return abs(power) / 1e6
    current, voltage = _float(_text(supply / "current_now")), _float(_text(supply / "voltage_now"))
    return abs(current) * voltage / 1e12 if current is not None and voltage is not None else None


def _text(file: Path) -> str:
    """Nothing for what is not there, or cannot be read: a sensor that is asleep gives EIO or EAGAIN."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _fields(file: Path) -> dict[str, int]:
    """Bytes, of lines like "VmRSS:   1234 kB"."""
    found = re.findall(r"^(\w+):\s+(\d+) kB$", _text(file), re.MULTILINE)
    return {name: int(kib) * _KIB for name, kib in found}


def _float(text: str) -> float | None:
    return float(text) if re.fullmatch(r"-?\d+(\.\d+)?", text) else None


def _number(path: Path) -> tuple[int, str]:
    found = re.search(r"\d+", path.name)
    return int(found[0]) if found else -1, path.name
