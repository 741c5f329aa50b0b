"""The words on the panels and what their displays may show.

A name is a word, sometimes with a number or a letter behind it ("PUMP 2"); no panel bears a name twice.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

# Version of everything that decides what a seed looks like. It goes into the record of each training.
DATA_VERSION = 1

MEASURES = (
    "TEMP", "PRESSURE", "FLOW", "LEVEL", "SPEED", "VOLTAGE", "CURRENT", "POWER", "LOAD", "TORQUE",
    "HUMIDITY", "DEPTH", "OIL", "FUEL", "WATER", "STEAM", "INLET", "OUTLET", "SUPPLY", "RETURN",
    "TANK", "BOILER", "MOTOR", "SHAFT", "LINE", "BUS", "ZONE", "CELL", "PHASE", "STAGE",
)  # fmt: skip
DEVICES = (
    "PUMP", "FAN", "VALVE", "HEATER", "MIXER", "LIGHT", "DRIVE", "BRAKE", "DOOR", "COOLER",
    "MAIN", "STANDBY", "REMOTE", "READY", "RUN", "TEST",
)  # fmt: skip
ALARMS = ("ALARM", "FAULT", "TRIP", "STOP", "OVERLOAD", "WARNING")
PLATES = ("MODEL", "TYPE", "SERIAL", "UNIT")
SUFFIXES = ("1", "2", "3", "4", "A", "B", "C")


@dataclass(frozen=True)
class Quantity:
    """What a display shows: numbers with `decimals` places from `low` to `high`."""

    unit: str
    low: float
    high: float
    decimals: tuple[int, ...]


QUANTITIES = (
    Quantity("°C", -40, 180, (0, 1)),
    Quantity("bar", 0, 16, (1, 2)),
    Quantity("kPa", 0, 999, (0,)),
    Quantity("%", 0, 100, (0, 1)),
    Quantity("V", 0, 690, (0, 1)),
    Quantity("A", 0, 99, (1, 2)),
    Quantity("kW", 0, 250, (0, 1)),
    Quantity("Hz", 0, 60, (1, 2)),
    Quantity("rpm", 0, 9999, (0,)),
    Quantity("l/min", 0, 500, (0, 1)),
    Quantity("mm", 0, 2000, (0,)),
    Quantity("m", 0, 30, (1, 2)),
)
UNITS = tuple(quantity.unit for quantity in QUANTITIES)


@dataclass(frozen=True)
class Scale:
    """A gauge's scale: 0 to `high` in `steps` divisions, a number at each `label_every`."""

    high: int
    steps: int
    label_every: int
    units: tuple[str, ...]


GAUGE_SCALES = (
    Scale(10, 20, 4, ("bar", "A", "m")),
    Scale(100, 20, 4, ("%", "°C", "kPa", "kW")),
    Scale(6, 12, 2, ("bar", "A")),
    Scale(200, 20, 4, ("°C", "kPa", "V", "kW")),
    Scale(60, 12, 2, ("Hz", "l/min")),
)
BAR_SCALES = (Scale(100, 10, 5, ("%",)), Scale(10, 10, 5, ("bar", "m")), Scale(50, 10, 5, ("°C", "l/min")))

_CODE_LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"  # no I, O, Q: a nameplate avoids what looks like a digit
DISPLAY_CHARACTERS = "0123456789.-"


def name(chance: random.Random, words: tuple[str, ...]) -> str:
    word = chance.choice(words)
    return f"{word} {chance.choice(SUFFIXES)}" if chance.random() < 0.45 else word


def number(chance: random.Random, quantity: Quantity) -> str:
    """A reading as a display shows it. Small numbers are as likely as large ones."""
    decimals = chance.choice(quantity.decimals)
    high = quantity.high if chance.random() < 0.6 else min(quantity.high, 10.0 ** chance.randint(1, 3))
    value = chance.uniform(quantity.low if chance.random() < 0.3 else max(0.0, quantity.low), high)
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if float(text) == 0 else text


def code(chance: random.Random) -> str:
    """What a nameplate says, such as "TX-4821" or "K72"."""
    letters = "".join(chance.choice(_CODE_LETTERS) for _ in range(chance.randint(1, 2)))
    digits = "".join(chance.choice("0123456789") for _ in range(chance.randint(2, 4)))
    return letters + chance.choice(("", "-")) + digits


def scale_text(scale: Scale, step: int) -> str:
    """The number at division `step`, as an answer writes it: no more places than the divisions need."""
    value = scale.high * step / scale.steps
    return f"{value:.0f}" if scale.high % scale.steps == 0 else f"{value:.1f}"
