"""`toolkit watch`: one question about every picture that comes into a folder, as a service asks it."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rpi_runtime.errors import BundleError, EdgeError, UsageError
from toolkit import report
from toolkit.commands import options as opt
from toolkit.memory_view import memory_options, tell_streaming
from toolkit.run_view import tell_trial

if TYPE_CHECKING:
    from rpi_runtime.session import Session

OUTPUT_FILE = "answers.jsonl"


def watch(
    bundle: opt.Bundle,
    folder: Annotated[Path, typer.Option(help="Where pictures appear.", show_default=False)],
    prompt: Annotated[str, typer.Option(help="What to ask about each.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", help="Gets a line of JSON for each.", show_default=f"{OUTPUT_FILE} in there"
        ),
    ] = None,
    route: opt.Route = "tile",
    branch: opt.Branch = "base",
    max_new_tokens: opt.MaxNewTokens = 64,
    memory: opt.Memory = None,
    delegate: opt.Delegate = "auto",
    threads: opt.Threads = None,
) -> None:
    """Answer a prompt about every picture that appears in a folder, until Ctrl-C or SIGTERM.

    A picture is asked about when its size no longer changes; hidden files and names like .part and .tmp are
    left alone. A restart goes on with what has no line in the output yet.
    """
    from rpi_runtime.session import Session

    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder", "Make it, or name another.")
    for number in (signal.SIGINT, signal.SIGTERM):  # ignored by what a shell starts in the background
        signal.signal(number, _interrupt)
    answers = _Answers(output or folder / OUTPUT_FILE)
    try:
        with Session.open(
            bundle,
            threads=threads,
            delegate=delegate,
            on_trial=tell_trial,
            **memory_options(memory, branch, strict=False, stream_weights=False),
        ) as session:
            session.need_vision([folder])
            tell_streaming(session)
            report.note(f"Watching {folder}; answers go to {answers.path}.")
            for picture in _pictures(folder, answers):
                _ask(session, picture, prompt, answers, route, branch, max_new_tokens)
    except KeyboardInterrupt:
        report.note(f"Stopped after {report.count(answers.new, 'picture')}.")
    finally:
        answers.close()


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _pictures(folder: Path, answers: _Answers) -> Iterator[Path]:
    from field.sources import POLL_S, NewFiles

    new = NewFiles(folder)
    while True:
        for path in new.stable():
            if path.absolute() != answers.path.absolute() and not answers.has(path):
                yield path
        time.sleep(POLL_S)


def _ask(
    session: Session,
    picture: Path,
    prompt: str,
    answers: _Answers,
    route: str,
    branch: str,
    max_new_tokens: int,
) -> None:
    """One line, whatever becomes of it; Ctrl-C leaves none."""
    try:
        generation = session.generate(
            prompt, [picture], routing=route, branch=branch, max_new_tokens=max_new_tokens
        )
        for _ in generation:
            pass
    except BundleError:
        raise
    except EdgeError as error:
        report.error(error.message, error.remedy)
        answers.add(picture, prompt, {"error": error.message, "remedy": error.remedy})
        return
    with suppress(BrokenPipeError):
        print(report.printable(f"{picture.name}: {generation.text}"), flush=True)
    answers.add(picture, prompt, {"answer": generation.text, **report.plain(generation.report)})


class _Answers:
    """The file of answers, and which pictures it has: by name, size and time."""

    def __init__(self, path: Path) -> None:
        from field import records

        self.path = path
        self.new = 0
        records.cut_torn(path)
        found = map(records.parse_any, records.lines_of(path))
        self._known = {_key(r["name"], r["bytes"], r["modified_ns"]) for r in found if "modified_ns" in r}
        self._file = io.FileIO(path, "a")

    def has(self, picture: Path) -> bool:
        with suppress(OSError):  # it went away
            told = picture.stat()
            return _key(picture.name, told.st_size, told.st_mtime_ns) in self._known
        return True

    def add(self, picture: Path, prompt: str, content: dict[str, Any]) -> None:
        from field import records

        told = picture.stat() if picture.exists() else os.stat_result([0] * 10)
        key = _key(picture.name, told.st_size, told.st_mtime_ns)
        line = {
            "name": picture.name, "bytes": told.st_size, "modified_ns": told.st_mtime_ns,
            "t": round(time.time(), 3), "prompt": prompt, **content,
        }  # fmt: skip
        self._file.write(records.line_of(line))
        os.fsync(self._file.fileno())
        self._known.add(key)
        self.new += 1

    def close(self) -> None:
        self._file.close()


def _key(name: str, size: int, modified_ns: int) -> tuple[str, int, int]:
    return name, size, modified_ns
