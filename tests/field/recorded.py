"""Devices as the script told them, in the formats of real ones."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

from field.machine import Machine, read

MACHINES = Path(__file__).parent / "machines"
NAMES = sorted(file.stem for file in MACHINES.glob("*.txt"))
NOW = 1795930000.0  # s since 1970, our clock when they were asked


def text(name: str) -> str:
    return (MACHINES / f"{name}.txt").read_text()


def machine(name: str, **changes: Any) -> Machine:
    return replace(read(text(name), NOW), **changes)


def closed_port() -> int:
    """Of this machine, where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
