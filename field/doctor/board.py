"""The board itself: permissions, power, heat, the clock."""

from __future__ import annotations

import time
from collections.abc import Iterator

from field.doctor.finding import FINE, PROBLEM, WARNING, Finding
from field.machine import Machine

# Bits of `vcgencmd get_throttled` (Raspberry Pi documentation, computers/os, vcgencmd); those that have
# occurred since the start are 16 bits higher.
_UNDER_VOLTAGE, _CAPPED, _THROTTLED, _SOFT_LIMIT = (1 << bit for bit in range(4))
_FLAGS = {
    _UNDER_VOLTAGE: "under-voltage",
    _CAPPED: "frequency capped",
    _THROTTLED: "throttled",
    _SOFT_LIMIT: "soft temperature limit",
}
_SINCE_START = 16
_HOT_C = 80.0  # from here on a Raspberry Pi slows down (documentation, computers/raspberry-pi, thermals)
_BELIEVABLE_C = (-40.0, 150.0)
_WAITING = ("powersave", "ondemand", "conservative")
_FASTEST = "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
_OFF_S = 120
_FIRST_SENSIBLE_S = 1704067200  # 2024-01-01


def _video(machine: Machine) -> Iterator[Finding]:
    """The group `video` opens cameras, and the firmware to vcgencmd."""
    if machine.is_android:
        return
    cameras = [n for n in machine.nodes if n.path.startswith(("/dev/video", "/dev/media"))]
    firmware = [n for n in machine.nodes if n.path in ("/dev/vcio", "/dev/vchiq")]
    lost = {
        nodes[0].path: meaning
        for nodes, meaning in ((cameras, "no camera can be watched"), (firmware, "vcgencmd tells nothing"))
        if nodes and not any(node.is_open for node in nodes)
    }
    if lost:
        verb = "is" if len(lost) == 1 else "are"
        yield Finding(
            "groups.video",
            WARNING,
            f"{' and '.join(lost)} {verb} closed to {machine.user or 'this user'}",
            f"So {' and '.join(lost.values())}.",
            "sudo usermod -aG video $USER, then log in again.",
        )
    elif cameras or firmware:
        yield Finding("groups.video", FINE, f"open to {machine.user or 'this user'}")


def _throttling(machine: Machine) -> Iterator[Finding]:
    if machine.throttled is None:
        return
    now = [flag for flag in _FLAGS if machine.throttled & flag]
    before = [flag for flag in _FLAGS if machine.throttled >> _SINCE_START & flag and flag not in now]
    told = [f"{_FLAGS[flag]} now" for flag in now] + [f"{_FLAGS[flag]} since the start" for flag in before]
    if not told:
        yield Finding("board.throttling", FINE, "none since the start")
        return
    flags = {*now, *before}
    remedies = []
    if _UNDER_VOLTAGE in flags:
        remedies.append("Use the board's own power supply and a short cable; take away what draws from USB.")
    if flags & {_CAPPED, _THROTTLED, _SOFT_LIMIT} and flags != {_UNDER_VOLTAGE, _CAPPED}:
        remedies.append("Give it a heat sink or a fan.")
    yield Finding(
        "board.throttling",
        PROBLEM if now else WARNING,
        f"{', '.join(told)} (0x{machine.throttled:x})",
        "Answers take longer, and what is measured says nothing; under-voltage can damage a card's files."
        if _UNDER_VOLTAGE in flags
        else "Answers take longer, and what is measured says nothing.",
        " ".join(remedies) or "Use the board's own power supply.",
    )


def _temperature(machine: Machine) -> Iterator[Finding]:
    low, high = _BELIEVABLE_C
    told = {zone: c for zone, c in machine.temperatures_c.items() if low < c < high}
    if not told:
        return
    zone = max(told, key=lambda name: told[name])
    if told[zone] >= _HOT_C:
        yield Finding(
            "board.temperature",
            WARNING,
            f"{told[zone]:.0f} °C ({zone})",
            "A Raspberry Pi slows down from 80 °C on; other boards have limits of their own.",
            "Give it a heat sink or a fan.",
        )
    else:
        yield Finding("board.temperature", FINE, f"{told[zone]:.0f} °C at most ({zone})")


def _governor(machine: Machine) -> Iterator[Finding]:
    governors = dict.fromkeys(f.governor for f in machine.frequencies if f.governor)
    if not governors:
        return
    most = max(f.most_mhz for f in machine.frequencies)
    found = f"{', '.join(governors)}, up to {most:,.0f} MHz"
    if governors.keys() & set(_WAITING) and not machine.is_android:
        # On x86-64 the drivers of Intel and AMD call their own, which follows the load, powersave.
        slow = "powersave" in governors and machine.machine != "x86_64"
        yield Finding(
            "board.governor",
            WARNING,
            found,
            "It stays at the lowest clock."
            if slow
            else "The clock rises some time after work begins, so a short answer measures slower.",
            f"Before measuring: {_FASTEST}",
        )
    else:
        yield Finding("board.governor", FINE, found)


def _clock(machine: Machine) -> Iterator[Finding]:
    remedy = "sudo timedatectl set-ntp true, and let it reach a time server."
    if machine.is_android:
        remedy = "Settings, System, Date & time: set the time automatically."
    elif "systemctl" not in machine.tools:
        remedy = "Start a time client there (ntpd, chronyd), and let it reach a server."
    shown = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(min(max(0.0, machine.time_s), 4e9)))
    if machine.time_s < _FIRST_SENSIBLE_S:
        yield Finding(
            "board.clock", PROBLEM, f"it says {shown}", "Certificates and records are wrong then.", remedy
        )
    elif abs(machine.clock_s) > _OFF_S:
        way = "ahead of" if machine.clock_s > 0 else "behind"
        yield Finding(
            "board.clock",
            WARNING,
            f"{_duration(abs(machine.clock_s))} {way} this machine's ({shown})",
            "A field test's records have the device's times; certificates may count as expired.",
            remedy,
        )
    elif machine.synchronized is False:
        yield Finding(
            "board.clock",
            WARNING,
            f"right now, but not set by a time server ({shown})",
            "A board without a battery loses the time when it is off.",
            remedy,
        )
    else:
        yield Finding("board.clock", FINE, shown)


def _duration(seconds: float) -> str:
    for length, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}s"
    return f"{seconds:.0f} seconds"


CHECKS = (_video, _throttling, _temperature, _governor, _clock)
