"""`toolkit devices`: what can be reached, and what it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rpi_runtime.errors import EdgeError, ResourceError
from toolkit import report
from toolkit.commands import options as opt

if TYPE_CHECKING:
    from field.address import Address


def devices(
    addresses: Annotated[
        list[str] | None,
        typer.Argument(
            help="More of them: ssh://user@host[:port], adb://serial.",
            metavar="ADDRESS",
            show_default=False,
        ),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """List the devices within reach: CPU, memory, storage, system, Python, runtime, delegates, sensors.

    These are this machine, phones that adb knows, boards that something was deployed to, and the ADDRESSes
    given. No password is asked for. Leaves with 3 when an ADDRESS cannot be reached.
    """
    from field.address import parse_address
    from field.roll_call import call

    asked = [parse_address(text) for text in addresses or []]
    listed = _listed(asked)
    with report.busy(f"asking {report.count(len(listed), 'device')}"):
        answers = call(listed)
    if as_json:
        report.print_json([{**report.plain(answer), "address": str(answer.address)} for answer in answers])
    else:
        from toolkit.device_view import show_devices

        show_devices(answers)
    silent = [answer for answer in answers if answer.address in asked and answer.machine is None]
    if silent:
        raise ResourceError(
            f"not reached: {', '.join(str(answer.address) for answer in silent)}",
            "\n".join(dict.fromkeys(filter(None, (answer.remedy for answer in silent)))) if as_json else "",
        )


def _listed(asked: list[Address]) -> list[Address]:
    from field import adb, known_devices
    from field.address import ADB, LOCAL, Address

    phones: list[Address] = []
    if adb.is_installed():
        try:
            phones = [Address(ADB, serial=serial) for serial in adb.adb_devices()]
        except EdgeError as error:
            report.warning(f"{error.message}. {error.remedy}")
    return list(dict.fromkeys([Address(LOCAL), *asked, *phones, *known_devices.known()]))
