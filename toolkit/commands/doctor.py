"""`toolkit doctor`: can this device do the job, and if not, what has to be done?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rpi_runtime.errors import CheckFailed
from toolkit import report
from toolkit.commands import options as opt

if TYPE_CHECKING:
    from field.device import Device
    from field.machine import Machine


def doctor(
    device: Annotated[
        str,
        typer.Option(
            help="ssh://user@host[:port], adb://[serial] or local, which is this machine.", metavar="ADDRESS"
        ),
    ] = "local",
    as_json: opt.Json = False,
) -> None:
    """Examine a device: CPU, memory, storage, software, delegates, power, clock; with a remedy for what is
    not fine.

    Nothing has to be installed there, and nothing is written. Leaves with 1 when there is a problem, with 3
    when the device cannot be reached.
    """
    from field.connect import connect
    from field.doctor import PROBLEM, WARNING, examine

    with connect(device) as at:
        machine = _ask(at)
    findings = examine(machine)
    problems = [finding for finding in findings if finding.level == PROBLEM]
    if as_json:
        report.print_json(
            {
                "device": str(at.address),
                "problems": len(problems),
                "warnings": sum(finding.level == WARNING for finding in findings),
                "findings": findings,
                "machine": machine,
            }
        )
    else:
        from toolkit.device_view import show_findings

        show_findings(at.address, machine, findings)
    if problems:
        raise CheckFailed(
            f"{at.address} cannot do the job: {', '.join(finding.check for finding in problems)}",
            "" if as_json else "See above what to do.",
        )


def _ask(at: Device) -> Machine:
    from field.machine import probe

    at.run(":")  # ssh may ask for a password, which a live line would garble
    with report.busy(f"looking at {at.address}"):
        return probe(at)
