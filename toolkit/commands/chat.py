"""`toolkit chat`: a conversation; what was said and shown before is not computed again."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from toolkit import report
from toolkit.commands import options as opt
from toolkit.memory_view import memory_options, tell_streaming
from toolkit.run_view import ProgressLine, stream, tell_trial

if TYPE_CHECKING:
    from rpi_runtime.conversation import Conversation
    from rpi_runtime.errors import EdgeError

_HELP = (
    "/image FILE adds a picture to your next question, /reset starts over, /quit leaves; "
    "Ctrl-C stops an answer."
)


def chat(
    bundle: opt.Bundle,
    image: opt.Images = None,
    system: opt.System = None,
    route: opt.Route = "tile",
    branch: opt.Branch = "base",
    max_new_tokens: opt.MaxNewTokens = 256,
    temperature: opt.Temperature = 0.0,
    top_k: opt.TopK = 0,
    top_p: opt.TopP = 1.0,
    min_p: opt.MinP = 0.0,
    repetition_penalty: opt.RepetitionPenalty = 1.0,
    seed: opt.Seed = None,
    stop: opt.Stop = None,
    memory: opt.Memory = None,
    strict: opt.Strict = False,
    stream_weights: opt.StreamWeights = False,
    threads: opt.Threads = None,
    backend: opt.Backend = "auto",
    delegate: opt.Delegate = "auto",
    require_full_delegation: opt.FullDelegation = False,
    weight_cache: opt.WeightCache = True,
    as_json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> None:
    """Talk with a bundle over several turns and pictures.

    Questions may also be piped in, one a line: one that fails is told, the next is asked, and the exit code
    says so. With --json, each answer is one line of JSON with its report.
    """
    from rpi_runtime.sampling import Sampling
    from rpi_runtime.session import Session

    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    with Session.open(
        bundle,
        threads=threads,
        backend=backend,
        delegate=delegate,
        require_full_delegation=require_full_delegation,
        on_trial=tell_trial,
        weight_cache=weight_cache,
        verbose=verbose,
        **memory_options(memory, branch, strict=strict, stream_weights=stream_weights),
    ) as session:

        def start() -> Conversation:
            return session.conversation(
                system=system,
                routing=route,
                branch=branch,
                sampling=sampling,
                max_new_tokens=max_new_tokens,
                stop=stop or [],
            )

        session.need_vision(image or [])
        tell_streaming(session)
        if sys.stdin.isatty():
            report.note(f"{session.manifest.model}. {_HELP}")
        failed = _talk(start, list(image or []), as_json=as_json)
    if failed is not None and not sys.stdin.isatty():
        raise typer.Exit(int(failed.exit_code))


def _talk(start: Callable[[], Conversation], pictures: list[Path], *, as_json: bool) -> EdgeError | None:
    """Reads lines until the end of input; `pictures` go with the next question. The first error, if any."""
    from rpi_runtime.errors import EdgeError

    conversation, failed = start(), None
    while (line := _read()) is not None:
        words = line.strip()
        if not words:
            continue
        if words in ("/quit", "/exit"):
            break
        if words == "/reset":
            conversation, pictures = start(), []
            report.note("A new conversation.")
        elif words.startswith("/image"):
            pictures += _pictures(words.removeprefix("/image"))
        elif words.startswith("/"):
            report.note(f"There is no {words.split()[0]}. {_HELP}")
        else:
            try:
                _answer(conversation, line, pictures, as_json=as_json)
            except EdgeError as error:
                failed = failed or error
                report.error(error.message, error.remedy)
                if as_json:
                    report.print_json_line({"error": error.message})
                if pictures:  # or every later question would fail with them
                    report.note(
                        f"{_named(pictures)}: left out of the next question; name them again with /image."
                    )
            pictures = []
    return failed


def _answer(conversation: Conversation, question: str, pictures: list[Path], *, as_json: bool) -> None:
    with ProgressLine() as progress:
        answer = conversation.ask(question, pictures, on_progress=progress)
        stopped = stream(answer, progress, quiet=as_json)
    result = answer.report
    if as_json:
        report.print_json_line({"answer": answer.text, "token_ids": answer.token_ids, **report.plain(result)})
    else:
        speed = f"{result.decode_tokens_per_s:.1f} tokens/s, " if result.decode_tokens_per_s else ""
        report.note(
            f"[{result.new_tokens} tokens, {speed}first after {result.times.first_token_ms:.0f} ms, "
            f"{result.reused_tokens} of {result.prompt_tokens} prompt tokens reused]"
        )
    if stopped and not sys.stdin.isatty():
        raise report.Stopped


def _read() -> str | None:
    """The next line, None at the end of input. Ctrl-C at the prompt leaves, as Ctrl-D does."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    try:
        return input("> ")
    except (EOFError, KeyboardInterrupt):
        sys.stdout.write("\n")
        return None


def _pictures(rest: str) -> list[Path]:
    try:
        found = [Path(name).expanduser() for name in shlex.split(rest)]
    except ValueError as error:
        report.error(f"/image: {error}", "Write /image FILE, with quotes around a name that has spaces.")
        return []
    if not found:
        report.note(_HELP)
    good = [path for path in found if _opens(path)]
    if good:
        report.note(f"{_named(good)} will go with your next question.")
    return good


def _opens(path: Path) -> bool:
    """Whether the picture can be opened; says what is wrong if not. Its pixels are looked at when it is asked
    about."""
    from rpi_runtime.errors import EdgeError
    from rpi_runtime.images import open_image

    try:
        open_image(path).close()
    except EdgeError as error:
        report.error(error.message, error.remedy)
        return False
    return True


def _named(pictures: list[Path]) -> str:
    return ", ".join(path.name for path in pictures)
