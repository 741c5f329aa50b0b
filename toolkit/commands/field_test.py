"""`toolkit field-test`: a suite of questions on real devices, with all that happens to them meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from field.plan import RECORDS_FILE
from rpi_runtime.errors import CheckFailed, ResourceError, UsageError
from toolkit import report
from toolkit.commands import options as opt

if TYPE_CHECKING:
    from field.fieldtest import FieldTest
    from field.outcomes import DeviceOutcome

REPORT_FILE = "report.html"


def field_test(
    suite: Annotated[
        Path, typer.Argument(metavar="SUITE.yaml", help="What to ask, and how.", show_default=False)
    ],
    device: Annotated[
        list[str],
        typer.Option(
            "--device",
            help="ssh://user@host[:port], adb://[serial] or local; repeatable.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for records and report.", show_default="field-<suite>"),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="What --device local asks; others ask what was deployed.", show_default=False),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(help="Results of an earlier field test, for the report.", show_default=False),
    ] = None,
    patience: Annotated[str, typer.Option(help="How long a device may be lost.")] = "30m",
    min_accuracy: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Exit with 1 if the first variant's exact match is lower on any device.",
            show_default=False,
        ),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Ask the questions of a suite on one or several devices; record answers, times, memory and heat.

    The records of each device, and a report of all in one HTML file, are in the folder of -o. A device that
    is lost or starts anew goes on where it was. The same command goes on where it was stopped.
    """
    from field.address import LOCAL, parse_address
    from field.fieldtest import FieldTest
    from field.report import write_report
    from field.store import Results
    from field.suite import check_pictures, read_suite
    from field.suite_file import parse_duration
    from toolkit.field_view import DevicesBar, print_outcomes

    addresses = [parse_address(text) for text in device]
    patience_s = parse_duration(patience)
    if bundle is None and any(address.kind == LOCAL for address in addresses):
        raise UsageError("--device local has nothing to ask", "Name a bundle: --bundle FOLDER.")
    if compare is not None:
        Results.read(compare.parent if compare.is_file() else compare)
    found = read_suite(suite)
    check_pictures(found)
    results = Results.open(output or Path(f"field-{found.plan.name}"), found)
    test = FieldTest(results, addresses, bundle=bundle, patience_s=patience_s)
    with DevicesBar(
        results.plan, {one.address: len(one.results.history.finished) for one in test.devices}
    ) as bar:
        for one in test.devices:
            if one.results.history.answers:
                count = report.count(one.results.history.answers, "answer")
                report.note(f"{one.address}: {count} of an earlier run kept")
        try:
            test.start(bar)
            test.wait()
        except KeyboardInterrupt:
            _stop(test)
            _say_how_to_go_on(test, results.folder)
            raise report.Stopped from None
    outcomes = [(str(one.address), one.outcome()) for one in test.devices]
    target = results.folder / REPORT_FILE
    if any(one.results.history.start for one in test.devices):  # otherwise there is nothing to tell
        write_report(results.folder, target, compare)
    elif not as_json:
        _judge(test, outcomes, min_accuracy)
    if as_json:
        report.print_json(_summary(test, outcomes, target))
    else:
        print_outcomes(outcomes)
        report.note(f"Report: {target}")
    _judge(test, outcomes, min_accuracy)


def _stop(test: FieldTest) -> None:
    report.note("Stopping the devices ...")
    test.stop()
    test.wait()


def _say_how_to_go_on(test: FieldTest, folder: Path) -> None:
    for one in test.devices:
        count = report.count(one.results.history.answers, "answer")
        report.note(f"{one.address}: {count} kept in {one.results.folder}")
    report.note("The same command goes on from there.")


def _summary(test: FieldTest, outcomes: list[tuple[str, DeviceOutcome]], target: Path) -> dict[str, Any]:
    return {
        "report": str(target),
        "devices": [
            {
                "device": name,
                "records": str(one.results.folder / RECORDS_FILE),
                "done": one.is_done,
                "error": one.error.message if one.error else None,
                **report.plain(outcome),
            }
            for one, (name, outcome) in zip(test.devices, outcomes, strict=True)
        ],
    }


def _judge(test: FieldTest, outcomes: list[tuple[str, DeviceOutcome]], min_accuracy: float | None) -> None:
    """Raises what the exit code says: 3 for a device that is not done, 1 for answers that are wrong or
    missing."""
    left = [one for one in test.devices if not one.is_done]
    for one in left:
        if one.error is not None and one is not left[-1]:
            report.error(one.error.message, one.error.remedy)
    if left:
        raise left[-1].error or ResourceError(f"{left[-1].address}: it is not done", "Run it again.")
    for name, outcome in outcomes:
        first = outcome.variants[0]
        if min_accuracy is not None and first.accuracy is not None and first.accuracy < min_accuracy:
            raise CheckFailed(
                f"{name}, {first.variant}: exact match is {first.accuracy:.1%}, below {min_accuracy:.1%}",
                "The report shows the answers.",
            )
    for name, outcome in outcomes:
        if outcome.errors:
            raise CheckFailed(
                f"{name}: {outcome.errors:,} given up, of questions and whole variants",
                "The report says why.",
            )
