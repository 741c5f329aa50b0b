"""The command `toolkit`: registers one module per command and turns errors into messages and exit codes.

Nothing heavy is imported here, nor by the modules below at import time: a board has only the light install,
and `toolkit --help` must answer at once. Each command imports what it needs when it runs.
"""

from __future__ import annotations

import errno
import importlib.metadata
import os
import signal
import sys
from typing import Annotated

import typer

from rpi_runtime.errors import EdgeError, ExitCode, ResourceError
from toolkit import report
from toolkit.commands.assemble import assemble
from toolkit.commands.cache import cache
from toolkit.commands.chat import chat
from toolkit.commands.convert import convert
from toolkit.commands.data import data
from toolkit.commands.eval import evaluate
from toolkit.commands.inspect import inspect
from toolkit.commands.plan import plan
from toolkit.commands.run import run
from toolkit.commands.train import train
from toolkit.commands.verify import verify

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


for command in (assemble, convert, verify, inspect, plan, run, chat, cache):
    app.command()(command)
app.add_typer(train, name="train")
app.add_typer(data, name="data")
app.command(name="eval")(evaluate)


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
        report.error("stopped by Ctrl-C", "Nothing that was there before has changed.")
        sys.exit(128 + signal.SIGINT)
    except SystemExit:
        # Typer (its Click, wherever a version keeps it) turns a reader that left, as in `| head`, into exit
        # code 1, which means something else here; its mark is this class.
        if type(sys.stdout).__name__ == "PacifyFlushWrapper":
            sys.exit(int(ExitCode.FINE))
        raise
    except MemoryError:
        if debug:
            raise
        report.error("out of memory", "Close other programs, or use a smaller model, recipe or context.")
        sys.exit(int(ExitCode.COULD_NOT_CHECK))
    except OSError as error:
        if debug or error.errno is None:
            raise
        report.error(_describe(error), _REMEDIES.get(error.errno, "Check the path and try again."))
        sys.exit(int(ExitCode.COULD_NOT_CHECK))


def _check_limits() -> None:
    """Raises `ResourceError` when this process may not even import NumPy, whose BLAS would end it in its own
    words."""
    try:
        import resource
    except ImportError:  # not Unix
        return
    for limit, least, option in ((resource.RLIMIT_DATA, 60e6, "-d"), (resource.RLIMIT_AS, 150e6, "-v")):
        allowed, _ = resource.getrlimit(limit)
        if 0 <= allowed < least:
            raise ResourceError(
                f"this process may take {allowed / 1e6:.0f} MB of memory, and Python with NumPy alone needs "
                f"{least / 1e6:.0f} MB",
                f"Raise the limit: ulimit {option} unlimited.",
            )


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
