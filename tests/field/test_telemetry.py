"""What a device tells of itself, read from a folder that stands for its root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from field.telemetry import Sensors, pmic_watts

# As a Pi 5 prints it, shortened.
PMIC = """\
   3V3_SYS_A current(1)=0.05000000A
VDD_CORE_A current(7)=2.00000000A
   3V3_SYS_V volt(9)=3.30000000V
VDD_CORE_V volt(15)=0.75000000V
   EXT5V_V volt(24)=5.15000000V
"""


def write(root: Path, path: str, content: str) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(content)


def program(folder: Path, script: str) -> str:
    path = folder / "vcgencmd"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_a_device_that_tells_nothing_gives_an_empty_sample(tmp_path: Path) -> None:
    assert Sensors(tmp_path, "none").sample() == {
        "temperature_c": {},
        "clock_mhz": {},
        "throttled": None,
        "watts": {},
        "memory_available_bytes": 0,
        "resident_bytes": 0,
        "peak_resident_bytes": 0,
        "load": 0.0,
    }
    assert Sensors(tmp_path, "none").boot() == ""


def test_a_board(tmp_path: Path) -> None:
    write(tmp_path, "sys/class/thermal/thermal_zone0/type", "cpu-thermal\n")
    write(tmp_path, "sys/class/thermal/thermal_zone0/temp", "52634\n")
    write(tmp_path, "sys/class/thermal/thermal_zone10/type", "cpu-thermal\n")
    write(tmp_path, "sys/class/thermal/thermal_zone10/temp", "-1000\n")
    write(tmp_path, "sys/class/thermal/thermal_zone2/type", "asleep\n")
    for core in (0, 1):
        write(tmp_path, f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", f"{600 + core}000\n")
    write(tmp_path, "sys/devices/system/cpu/cpufreq/boost", "1")
    write(tmp_path, "proc/meminfo", "MemTotal: 1000 kB\nMemAvailable:     250 kB\n")
    write(tmp_path, "proc/77/status", "Name: python\nVmHWM:\t     40 kB\nVmRSS:\t     30 kB\n")
    write(tmp_path, "proc/loadavg", "3.25 2.00 1.00 4/321 999\n")
    write(tmp_path, "proc/sys/kernel/random/boot_id", "abc\n")
    sensors = Sensors(tmp_path, "none")
    assert sensors.boot() == "abc"
    assert sensors.sample(77) == {
        "temperature_c": {"cpu-thermal": 52.6, "cpu-thermal 2": -1.0},
        "clock_mhz": {"cpu0": 600.0, "cpu1": 601.0},
        "throttled": None,
        "watts": {},
        "memory_available_bytes": 250 * 1024,
        "resident_bytes": 30 * 1024,
        "peak_resident_bytes": 40 * 1024,
        "load": 3.25,
    }


def test_a_power_sensor_s_own_figure_counts_and_else_voltage_times_current(tmp_path: Path) -> None:
    hwmon = "sys/class/hwmon"
    write(tmp_path, f"{hwmon}/hwmon0/name", "ina219\n")
    write(tmp_path, f"{hwmon}/hwmon0/power1_input", "3500000\n")
    write(tmp_path, f"{hwmon}/hwmon0/in1_input", "5000\n")
    write(tmp_path, f"{hwmon}/hwmon0/curr1_input", "700\n")
    write(tmp_path, f"{hwmon}/hwmon1/name", "ina3221\n")
    for number, label in ((1, "VDD_IN\n"), (2, "")):
        write(tmp_path, f"{hwmon}/hwmon1/in{number}_input", "5000\n")
        write(tmp_path, f"{hwmon}/hwmon1/curr{number}_input", f"{100 * number}\n")
        write(tmp_path, f"{hwmon}/hwmon1/curr{number}_label", label)
    write(tmp_path, f"{hwmon}/hwmon2/name", "rpi_volt\n")
    write(tmp_path, f"{hwmon}/hwmon2/in0_lcrit_alarm", "0\n")
    assert Sensors(tmp_path, "none").sample()["watts"] == {
        "ina219 power1": 3.5,
        "ina3221 VDD_IN": 0.5,
        "ina3221 in2 x curr2": 1.0,
    }


@pytest.mark.parametrize(("status", "watts"), [("Discharging", {"battery": 4.0}), ("Charging", {})])
def test_a_phone_s_battery_counts_while_it_is_drained(
    tmp_path: Path, status: str, watts: dict[str, float]
) -> None:
    supply = "sys/class/power_supply/battery"
    write(tmp_path, f"{supply}/status", f"{status}\n")
    write(tmp_path, f"{supply}/current_now", "-1000000\n")
    write(tmp_path, f"{supply}/voltage_now", "4000000\n")
    assert Sensors(tmp_path, "none").sample()["watts"] == watts


def test_a_raspberry_pi_5_tells_throttling_and_the_watts_of_its_rails(tmp_path: Path) -> None:
    (tmp_path / "pmic").write_text(PMIC)
    vcgencmd = program(
        tmp_path, f"case $1 in get_throttled) echo throttled=0x50005;; *) cat {tmp_path}/pmic;; esac"
    )
    sample = Sensors(tmp_path, vcgencmd).sample()
    assert sample["throttled"] == 0x50005
    assert sample["watts"] == {"pmic": pytest.approx(0.05 * 3.3 + 2 * 0.75)}


def test_an_older_raspberry_pi_is_asked_for_its_rails_once(tmp_path: Path) -> None:
    vcgencmd = program(tmp_path, f"echo $1 >>{tmp_path}/asked; [ $1 = get_throttled ] && echo throttled=0x0")
    sensors = Sensors(tmp_path, vcgencmd)
    for _ in range(3):
        assert sensors.sample()["throttled"] == 0
    assert (tmp_path / "asked").read_text().count("pmic_read_adc") == 1


def test_without_that_program_the_kernel_tells_throttling(tmp_path: Path) -> None:
    write(tmp_path, "sys/devices/platform/soc/soc:firmware/get_throttled", "50000\n")
    assert Sensors(tmp_path, "none").sample()["throttled"] == 0x50000


def test_rails_without_a_current_do_not_count() -> None:
    assert pmic_watts("EXT5V_V volt(24)=5.15V") is None


def test_this_machine_tells_memory_and_its_boot() -> None:
    sample = Sensors().sample(os.getpid())
    assert sample["memory_available_bytes"] > 0
    assert 0 < sample["resident_bytes"] <= sample["peak_resident_bytes"]
    assert len(Sensors().boot()) == 36
