"""Several devices asked at once; one that does not answer says why."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from field.address import Address
from field.connect import connect
from field.device import Device
from field.doctor.delegates import for_apps, usable
from field.machine import Machine, probe
from rpi_runtime.errors import EdgeError

_CONNECT_S = 5


@dataclass(frozen=True)
class Answer:
    address: Address
    machine: Machine | None = None
    delegates: tuple[str, ...] = ()  # that `toolkit run` could use there
    for_apps: tuple[str, ...] = ()  # that a phone has beside
    error: str = ""  # of one that did not answer
    remedy: str = ""


def call(addresses: Sequence[Address]) -> list[Answer]:
    """In their order. Nobody is asked for a password, and no device waits for another."""
    answers: dict[Address, Answer] = {}
    opened: list[Device] = []

    def ask(address: Address) -> None:
        try:
            with connect(address, ask=False, connect_seconds=_CONNECT_S) as device:
                opened.append(device)
                machine = probe(device)
            answers[address] = Answer(address, machine, usable(machine), for_apps(machine))
        except EdgeError as error:
            answers[address] = Answer(address, error=error.message, remedy=error.remedy)
        except OSError as error:
            answers[address] = Answer(address, error=f"{address}: {error.strerror or error}")

    threads = [threading.Thread(target=ask, args=(address,), daemon=True) for address in addresses]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        for device in opened:
            device.close()
        raise
    return [answers[address] for address in addresses]
