"""The command `toolkit`: registers one module per command and turns errors into messages and exit codes.

Nothing heavy is imported here, nor by the modules below at import time: a board has only the light install,
and `toolkit --help` must answer at once. Each command imports what it needs when it runs.
"""

from __future__ import annotations

import errno
import importlib.metadata
import os
import sys
from typing import Annotated, NoReturn

import typer

from rpi_runtime.errors import EdgeError, ExitCode, ResourceError
from toolkit import entry, report
from toolkit.commands.assemble import assemble
from toolkit.commands.cache import cache
from toolkit.commands.chat import chat
from toolkit.commands.convert import convert
from toolkit.commands.data import data
from toolkit.commands.delegates import delegates
from toolkit.commands.deploy import deploy
from toolkit.commands.devices import devices
from toolkit.commands.doctor import doctor
from toolkit.commands.eval import evaluate
from toolkit.commands.field_report import field_report
from toolkit.commands.field_test import field_test
from toolkit.commands.inspect import inspect
from toolkit.commands.package import package
from toolkit.commands.plan import plan
from toolkit.commands.run import run
from toolkit.commands.train import train
from toolkit.commands.verify import verify
from toolkit.commands.watch import watch
from toolkit.on_device import RunsThere

app = typer.Typer(
    name="toolkit",
    help="Takes HyperVL, a vision-language model for the edge, from PyTorch to a Raspberry Pi or a phone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(asked: bool) -> None:
    if asked:
        try:
            typer.echo(f"hypervl-edge {importlib.metadata.version('hypervl-edge')}")
        except importlib.metadata.PackageNotFoundError:
            typer.echo("hypervl-edge, run from its source")
        raise typer.Exit


@app.callback()
def _before_any_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


for command in (assemble, convert, verify, chat, watch, package, devices, doctor, deploy):
    app.command()(command)
for there_too in (inspect, delegates, plan, run, cache):
    app.command(cls=RunsThere)(there_too)
app.add_typer(train, name="train")
app.add_typer(data, name="data")
app.command(name="eval", cls=RunsThere)(evaluate)
app.command(name="field-test")(field_test)
app.command(name="field-report")(field_report)


def main() -> None:
    """Exit codes: 0 fine, 1 a check found something, 2 wrong usage, 3 could not check, 130 Ctrl-C."""
    # NumPy's BLAS takes 32 MB for each core when it is imported, and nothing here multiplies with it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        _check_limits()
        app()
    except EdgeError as error:
        if debug:
            raise
        report.error(error.message, error.remedy)
        sys.exit(int(error.exit_code))
    except KeyboardInterrupt:
        report.error(entry.MESSAGE, entry.REMEDY)
        sys.exit(entry.EXIT_CODE)
    except SystemExit as left:
        if left.code == entry.EXIT_CODE and not _was_told(left):
            report.error(entry.MESSAGE, entry.REMEDY)
        # Typer (its Click, wherever a version keeps it) turns a reader that left, as in `| head`, into exit
        # code 1, which means something else here; its mark is this class.
        if type(sys.stdout).__name__ == "PacifyFlushWrapper":
            sys.exit(int(ExitCode.FINE))
        raise
    except (MemoryError, SystemError, ImportError) as error:
        if debug or not _is_short_of_memory(error):
            raise
        _tell_short_of_memory()
    except OSError as error:
        if _is_short_of_memory(error) and not debug:
            _tell_short_of_memory()
        if debug or error.errno is None:
            raise
        report.error(_describe(error), _REMEDIES.get(error.errno, "Check the path and try again."))
        sys.exit(int(ExitCode.COULD_NOT_CHECK))


def _is_short_of_memory(error: Exception) -> bool:
    """Python itself, short of memory, only says that somebody failed "without exception set", or that a
    function "returned NULL without setting an exception"; the loader of libraries, what it could not map."""
    if isinstance(error, SystemError):
        return "without" in str(error)
    return isinstance(error, MemoryError) or "failed to map segment" in str(error)


def _tell_short_of_memory() -> NoReturn:
    """By hand, since printing imports more."""
    remedy = "Close other programs, or use a smaller model, recipe or context."
    if limit := _limit():
        remedy = f"This process may take {limit}. {remedy}"
    os.write(2, f"error: out of memory\n{remedy}\n".encode())
    sys.exit(int(ExitCode.COULD_NOT_CHECK))


def _was_told(error: BaseException | None) -> bool:
    """Whether a command said what became of its work when Ctrl-C ended it, before Typer left with a code."""
    while error is not None and not isinstance(error, report.Stopped):
        error = error.__context__
    return error is not None


def _check_limits() -> None:
    """Raises `ResourceError` when this process may not even import its libraries: NumPy's BLAS and the
    tokenizer would end it in their own words."""
    for allowed, least, option in _limits():
        if allowed < least:
            raise ResourceError(
                f"this process may take {allowed / 1e6:.0f} MB of memory, and Python with its libraries "
                f"needs {least / 1e6:.0f} MB",
                f"Raise the limit: ulimit {option} unlimited.",
            )


def _limit() -> str:
    """The smallest limit of this process, or nothing."""
    return min((f"{allowed / 1e6:.0f} MB (ulimit {option})" for allowed, _, option in _limits()), default="")


def _limits() -> list[tuple[int, float, str]]:
    """Of those that are set: bytes, those that Python with its libraries needs, the option of `ulimit`."""
    try:
        import resource
    except ImportError:  # not Unix
        return []
    kinds = ((resource.RLIMIT_DATA, 84e6, "-d"), (resource.RLIMIT_AS, 200e6, "-v"))
    found = [(resource.getrlimit(kind)[0], least, option) for kind, least, option in kinds]
    return [one for one in found if one[0] != resource.RLIM_INFINITY]


_REMEDIES = {
    errno.ENOSPC: "Free some space on that disk, or write to another one.",
    errno.EACCES: "Choose a place that you may read and write, or change its permissions.",
    errno.EPERM: "Choose a place that you may read and write, or change its permissions.",
    errno.EROFS: "The file system is read-only: write to another one.",
    errno.EMFILE: "Raise the limit of open files (`ulimit -n`).",
}


def _describe(error: OSError) -> str:
    reason = error.strerror or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason


if __name__ == "__main__":
    main()
