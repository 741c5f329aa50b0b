"""`toolkit deploy`: a bundle and its runtime onto a board or a phone, or the one before put back."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from rpi_runtime.errors import ResourceError, UsageError
from toolkit import report
from toolkit.commands import options as opt

if TYPE_CHECKING:
    from field.deploy import Deployed, Step
    from field.machine import Machine
    from rpi_runtime.bundle import Bundle


def deploy(
    device: Annotated[
        str,
        typer.Option(help="ssh://user@host[:port], adb://[serial] or local.", show_default=False),
    ],
    bundle: Annotated[
        Path | None,
        typer.Argument(help="Bundle folder that `toolkit convert` wrote.", show_default=False),
    ] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Put back what was in use before the last deployment.")
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(
            help="What an answer may hold there, like 512MB.",
            show_default="nine tenths of what is free there",
        ),
    ] = None,
    branch: opt.Branch = "base",
    python: Annotated[
        str | None,
        typer.Option(
            help="Python to run on: 3.11 and so on, of the device, or own, which comes along.",
            show_default="the device's, if it will do",
        ),
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(help="Folder there.", show_default="~/.local/share/hypervl-edge")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Copy although the memory there is too small for the bundle.")
    ] = False,
    as_json: opt.Json = False,
) -> None:
    """Copy a bundle, and the runtime that it needs, to a device, and put both in use at once.

    Only what is not there yet travels; after a lost connection the same command goes on. What was in use
    stays until all is there, has the right hashes and has run; it is kept for --rollback.
    """
    if rollback == (bundle is not None):
        raise UsageError("deploy takes a bundle, or --rollback", "Give one of the two.")
    began = time.monotonic()
    from field.connect import connect
    from field.deploy import deploy as bring
    from field.known_devices import remember
    from field.machine import probe

    with connect(device) as there:
        if bundle is None:
            with report.busy(f"Asking {there.address}"):
                machine = probe(there)
            _roll_back(there, machine, prefix, as_json)
            return
        from rpi_runtime.bundle import Bundle

        opened = Bundle.open(bundle)
        with report.busy(f"Asking {there.address}"):
            machine = probe(there)
        budget = _check_memory(opened, machine, str(there.address), memory, branch, force)
        with _Bar() as bar:
            done = bring(
                there, machine, opened, python=python, prefix=prefix, on_step=bar.step, on_bytes=bar.advance
            )
        seconds = time.monotonic() - began
        remember(there.address)
    if as_json:
        report.print_json({**report.plain(done), "seconds": seconds, "memory_budget": budget})
    else:
        _show(done, budget, seconds)


def _roll_back(there: object, machine: Machine, prefix: str | None, as_json: bool) -> None:
    from field.device import Device
    from field.installed import default_prefix, read_installed, roll_back

    assert isinstance(there, Device)
    here = read_installed(there, prefix or machine.prefix or default_prefix(machine))
    back = roll_back(there, here)
    if as_json:
        report.print_json({"device": str(there.address), "in_use": back, "previous": here.current})
    else:
        report.pairs(
            "",
            [
                ("device", there.address),
                ("in use", f"{back.name} {back.bundle}, runtime {back.runtime}"),
                ("before", f"{here.current.name} {here.current.bundle}, runtime {here.current.runtime}"),
            ],
        )


def _check_memory(
    bundle: Bundle, machine: Machine, address: str, memory: str | None, branch: str, force: bool
) -> int:
    """Bytes that an answer may hold there. Raises `ResourceError` when the bundle does not fit."""
    from field.deploy import memory_left
    from rpi_runtime.memory_plan import parse_budget
    from rpi_runtime.session import Session
    from toolkit.memory_view import memory_options

    budget = memory_left(machine) if memory in (None, "auto") else parse_budget(str(memory))
    options = memory_options(str(budget), branch)
    try:
        with Session.open(bundle, threads=min(4, machine.cores) or None, **options):
            pass
    except ResourceError as error:
        if not force:
            raise ResourceError(
                f"{address}: {error.message}", f"{error.remedy} --force copies it nevertheless."
            ) from None
        report.warning(f"{address}: {error.message}")
    return budget


def _show(done: Deployed, budget: int, seconds: float) -> None:
    def part(bytes_: int, sent: int, seconds: float) -> str:
        if not sent:
            return "was there"
        kept = f" of {report.megabytes(bytes_)}" if sent < bytes_ else ""
        return f"{report.megabytes(sent)}{kept} in {seconds:.1f} s"

    runtime, bundle = done.runtime, done.bundle
    rows: list[tuple[str, object]] = [
        ("device", f"{done.device}, {done.platform}"),
        ("runtime", f"{runtime.id}, {part(runtime.bytes, runtime.sent_bytes, runtime.seconds)}"),
        ("bundle", f"{bundle.name} {bundle.id}, {part(bundle.bytes, bundle.sent_bytes, bundle.seconds)}"),
        ("memory", f"an answer may hold {budget / 1e6:,.0f} MB there"),
        ("in use", f"{'now' if done.switched else 'it was already'}, in {done.prefix}"),
    ]
    if done.previous.runtime:
        rows.append(("before", f"{done.previous.name} {done.previous.bundle}; --rollback puts it back"))
    rows.append(("took", f"{seconds:.1f} s"))
    report.pairs("", rows)


class _Bar:
    """What is being done, on stderr; with rate and time left where bytes travel."""

    def __init__(self) -> None:
        self._words = (TextColumn("{task.description} ..."), SpinnerColumn("line"))
        self._bytes = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(
            *self._words, console=report.err, transient=True, disable=not report.err.is_terminal
        )
        self._task = self._bar.add_task("looking")

    def step(self, step: Step) -> None:
        self._bar.remove_task(self._task)
        self._bar.columns = self._bytes if step.total_bytes else self._words
        self._task = self._bar.add_task(step.what, total=step.total_bytes or None)

    def advance(self, count: int) -> None:
        self._bar.advance(self._task, count)

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
