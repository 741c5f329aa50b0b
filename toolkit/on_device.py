"""`--device` of the commands that run on a board or a phone as they run here.

The command line is taken apart as usual, here; then the same one, with its files sent there and its paths
replaced, is run by the toolkit that is installed on the device.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import typer
from rich.progress import DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from typer.core import TyperCommand

from rpi_runtime.errors import EdgeError, ResourceError, UsageError
from rpi_runtime.manifest import MANIFEST_FILE
from toolkit import entry, report

if TYPE_CHECKING:
    from field.installed import Installed
    from field.remote import Given, Word

_OPTION, LOCAL = "device", "local"
_BUNDLES = ("bundle", "models", "path")  # what names a bundle; `path` may be a graph's file, too
_OUTPUTS = ("routing", "output", "html", "picture")
# What makes it look the same there.
_PASSED_ON = ("TERM", "COLORTERM", "NO_COLOR")


class RunsThere(TyperCommand):
    """A command with a `--device`: an address is seen here, and another value by the command itself."""

    def invoke(self, ctx: Any) -> Any:
        address = ctx.params.get(_OPTION)
        if address is None or (self.name == "plan" and "://" not in address and address != LOCAL):
            return super().invoke(ctx)
        if address == LOCAL:
            ctx.params[_OPTION] = None
            return super().invoke(ctx)
        code = _run(self, ctx, address)
        if code == entry.EXIT_CODE:
            raise report.Stopped
        raise typer.Exit(code)


def _run(command: TyperCommand, ctx: Any, address: str) -> int:
    from field.connect import connect
    from field.device import DeviceError
    from field.installed import default_prefix, read_installed
    from field.machine import probe
    from field.remote import run_there

    with connect(address) as device:
        with report.busy(f"Asking {device.address}"):
            machine = probe(device)
            here = read_installed(device, machine.prefix or default_prefix(machine))
        if not here.current.runtime:
            raise DeviceError(
                f"{device.address}: the toolkit is not installed there",
                f"toolkit deploy BUNDLE --device {device.address} installs it.",
            )
        words = _words(command, ctx, here, str(device.address))
        size = shutil.get_terminal_size()
        terminals = [name for name, of in (("out", sys.stdout), ("err", sys.stderr)) if of.isatty()]
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        environment |= {"COLUMNS": str(size.columns), report.TERMINALS: ",".join(terminals)}
        with _Sending() as sending:
            return run_there(
                device,
                here,
                words,
                environment=environment,
                out=sys.stdout.buffer,
                err=sys.stderr.buffer,
                on_sent=sending.advance,
                on_begin=sending.stop,
            )


class _Sending:
    """How much of our files has been sent, on stderr, until the command begins."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("sending"),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=report.err,
            transient=True,
            disable=not report.err.is_terminal,
        )
        self._task = self._bar.add_task("", total=None)

    def advance(self, count: int) -> None:
        self._bar.advance(self._task, count)
        self._bar.start()

    def stop(self) -> None:
        self._bar.stop()

    def __enter__(self) -> _Sending:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _words(command: TyperCommand, ctx: Any, here: Installed, address: str) -> list[Word]:
    """The command line as it is there: options first, so that no name is taken for one."""
    options: list[Word] = []
    arguments: list[Word] = []
    for param in command.params:
        value = ctx.params.get(param.name)
        source = ctx.get_parameter_source(param.name)
        if param.name == _OPTION or value is None or source is None or source.name == "DEFAULT":
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        if param.param_type_name == "argument":
            arguments += [_word(param.name, one, "", here, address) for one in values]
        elif isinstance(value, bool):
            options.append(param.opts[0] if value else param.secondary_opts[0])
        else:
            long = next(name for name in param.opts if name.startswith("--"))
            options += [_word(param.name, one, f"{long}=", here, address) for one in values]
    return [str(ctx.info_name), *options, "--", *arguments]


def _word(name: str, value: Any, prefix: str, here: Installed, address: str) -> Word:
    from field.remote import Given

    if name in _BUNDLES and (given := _bundle(Path(value), here, address)) is not None:
        return given
    # A size is one, too, that `plan --image` takes.
    if isinstance(value, Path) or (name == "image" and Path(str(value)).is_file()):
        if name in _OUTPUTS and value.suffix and not value.parent.is_dir():
            raise UsageError(f"{prefix}{value}: there is no folder {value.parent}", "Create it first.")
        return Given(Path(value), is_output=name in _OUTPUTS, prefix=prefix)
    return f"{prefix}{value}"


def _bundle(path: Path, here: Installed, address: str) -> Given | None:
    """The bundle there that `path` is a copy of; None for a file. Raises `EdgeError` where there is none."""
    from field.package.package import bundle_id
    from field.remote import Given
    from rpi_runtime.bundle import Bundle

    if path.is_file():
        return None
    if (path / MANIFEST_FILE).is_file():
        Bundle.open(path)  # as it is now: what was changed since would not be what is there
        found = bundle_id(path / MANIFEST_FILE)
        if found not in here.bundles:
            raise ResourceError(
                f"{path} is not on {address} as it is here",
                f"toolkit deploy {path} --device {address} copies what differs.",
            )
        return Given(path, place=here.bundle_folder(found))
    if str(path) == here.current.name:
        return Given(path, place=here.bundle_folder(here.current.bundle))
    raise _unknown(path, here, address)


def _unknown(path: Path, here: Installed, address: str) -> EdgeError:
    named = f", or name {here.current.name}, which is in use there" if here.current.name else ""
    return UsageError(f"{path} is no bundle, here or on {address}", f"Name the bundle's folder{named}.")
