"""How results reach a person or a program: tables of at most 80 columns on stdout, JSON beside every table.

Answers and tables go to stdout; progress and errors to stderr, so that `--json` output stays clean.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rpi_runtime.printable import printable as printable


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """The reader left, as in `| head`: no error. Rich's 1 would mean something else here."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0)


class Stopped(KeyboardInterrupt):
    """Ctrl-C of which the user was told already, and of what became of the work."""


# Set for a command that is run for somebody else's terminal: which of "out" and "err" is one.
TERMINALS = "HYPERVL_TERMINALS"


def _is_terminal(name: str) -> bool | None:
    told = os.environ.get(TERMINALS)
    return None if told is None else name in told.split(",")


out = _Console(highlight=False, soft_wrap=False, force_terminal=_is_terminal("out"))
err = Console(stderr=True, highlight=False, force_terminal=_is_terminal("err"))


def error(message: str, remedy: str = "") -> None:
    """`error: what was wrong` and, on the next line, what to do next."""
    err.print(Text.assemble(("error: ", "bold red"), printable(message)), soft_wrap=True)
    if remedy:
        err.print(Text(printable(remedy)), soft_wrap=True)


def warning(message: str) -> None:
    err.print(Text.assemble(("warning: ", "bold yellow"), printable(message)), soft_wrap=True)


def note(message: str) -> None:
    """A line about what is being done, on stderr."""
    err.print(Text(printable(message), style="dim"), soft_wrap=True)


@contextmanager
def busy(what: str) -> Iterator[None]:
    """A live line on a terminal while something is waited for."""
    if not err.is_terminal:
        yield
        return
    with err.status(Text(f"{printable(what)} ...")):
        yield


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()
) -> None:
    """Prints one table; columns in `right` are aligned right. Cells are plain text, not markup."""
    drawn = Table(
        title=_text(title) if title else None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for name in columns:
        drawn.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(cell if isinstance(cell, Text) else _text(cell) for cell in row))
    out.print(drawn)


def pairs(title: str, rows: Iterable[tuple[str, object]]) -> None:
    """Prints a two-column list of names and values."""
    drawn = Table(
        title=_text(title) if title else None,
        title_justify="left",
        box=None,
        show_header=False,
        pad_edge=False,
    )
    drawn.add_column(style="dim")
    drawn.add_column(overflow="fold")
    for name, value in rows:
        drawn.add_row(_text(name), _text(value))
    out.print(drawn)


def count(number: int, what: str) -> str:
    """ "1 picture", "2,000 pictures"."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def print_json(value: Any) -> None:
    """`value` (a dataclass or plain data) as JSON on stdout."""
    sys.stdout.write(json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")


def print_json_line(value: Any) -> None:
    """One line of JSON on stdout, at once: for a reader that follows along."""
    sys.stdout.write(json.dumps(plain(value), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as what JSON knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)


def _text(value: object) -> Text:
    return Text(printable(str(value)))


def megabytes(count_bytes: float) -> str:
    """Decimal megabytes, as disks and `ls` count them."""
    return f"{count_bytes / 1e6:.1f} MB"
