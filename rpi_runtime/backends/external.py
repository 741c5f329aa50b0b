"""External delegates: a vendor's library, tried in a process of its own before it is let into this one.

A library may crash when it is loaded, and a driver may hang. `check` has a child process with the same Python
and the same runtime load the library and make the delegate, and tells what became of it. `load` then does so
here.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delegates import EXTERNAL
from delegates.external import CREATE, DESTROY, library_verdict
from rpi_runtime.backends import trial
from rpi_runtime.backends.base import BackendChoice
from rpi_runtime.errors import BundleError, DelegateFailed, EdgeError, ResourceError, UsageError
from rpi_runtime.native_logs import foreign_lines

TIMEOUT_S = 30
_FORM = "Write external:PATH, or external:PATH:key=value,key=value; a PATH with a colon cannot be given."
_TRIAL = "rpi_runtime.backends.external_trial"
_KINDS = {kind.__name__: kind for kind in (UsageError, ResourceError, DelegateFailed, BundleError)}
_working: set[tuple[ExternalDelegate, BackendChoice]] = set()
_ReportError = ctypes.CFUNCTYPE(None, ctypes.c_char_p)


@dataclass(frozen=True)
class ExternalDelegate:
    path: Path
    options: tuple[tuple[str, str], ...] = ()  # as the vendor documents them

    @property
    def name(self) -> str:
        return self.path.name

    @classmethod
    def parse(cls, text: str) -> ExternalDelegate:
        """Of "external:PATH[:key=value,key=value]". Raises `UsageError` for anything else."""
        path, colon, options = text.removeprefix(EXTERNAL).partition(":")
        if not text.startswith(EXTERNAL) or not path:
            raise UsageError(f"{text!r} names no external delegate", _FORM)
        pairs: dict[str, str] = {}
        for option in options.split(",") if colon else ():
            key, equals, value = option.partition("=")
            if not key or not equals:
                raise UsageError(f"{text!r}: the option {option!r} is not key=value", _FORM)
            if key in pairs:
                raise UsageError(f"{text!r}: the option {key!r} is there twice", _FORM)
            pairs[key] = value
        return cls(Path(path), tuple(pairs.items()))

    def __str__(self) -> str:
        options = ",".join(f"{key}={value}" for key, value in self.options)
        return f"{EXTERNAL}{self.path}" + (f":{options}" if options else "")


def check_once(delegate: ExternalDelegate, choice: BackendChoice) -> None:
    """`check`, unless this process did it, or was told that it was done (`trust`)."""
    if (delegate, choice) not in _working:
        check(delegate, choice)
        trust(delegate, choice)


def trust(delegate: ExternalDelegate, choice: BackendChoice) -> None:
    _working.add((delegate, choice))


def check(
    delegate: ExternalDelegate,
    choice: BackendChoice,
    graph: Path | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
) -> None:
    """Has a child process load `delegate` beside the runtime of `choice`, make it and destroy it; with
    `graph` also open that with it, and run each of its signatures once with zeros.

    Raises `UsageError` where there is no delegate, and `ResourceError` for one that does not work here, which
    says what happened: another CPU, a library that it misses, its own reason, the signal that ended it.
    """
    _check_file(delegate)
    request = {
        "path": str(delegate.path),
        "options": delegate.options,
        "choice": [choice.name, choice.package, choice.version, choice.reason],
        "graph": str(graph) if graph else "",
    }
    _judge(delegate, trial.run(_TRIAL, request, timeout_s))


def _check_file(delegate: ExternalDelegate) -> None:
    if not delegate.path.is_file():
        raise UsageError(f"there is no file {delegate.path}", "Check the path of the delegate's library.")
    verdict = library_verdict(delegate.path)
    if not verdict.loads:
        raise ResourceError(verdict.reason, "Get the library that its vendor built for this system.")


def _judge(delegate: ExternalDelegate, ended: trial.Trial) -> None:
    notes = ended.notes
    if "error" in notes:
        raise _KINDS[notes["kind"]](notes["error"], notes["remedy"])
    if ended.returncode == 0 and "done" in notes:
        return
    began = "stage" in notes
    who = delegate.name if began else f"the trial of {delegate.name}"
    failure = ended.failure(f"while {notes['stage']}" if began else "before it was loaded")
    said = "" if ended.returncode is None else _last_line(ended.said)
    raise ResourceError(
        f"{who} {failure}{said}", "Run without it, or ask its vendor for a version that works here."
    )


def _last_line(said: bytes) -> str:
    lines = foreign_lines(said).decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {last}" if last else ""


class LoadedDelegate:
    """One that lives in this process. It is destroyed when it is told to be, never by itself: no Interpreter
    may use it any more, and which of them do is not known here."""

    def __init__(self, library: Any, pointer: int) -> None:
        self.pointer = pointer
        self._library = library

    def destroy(self) -> None:
        destroy = getattr(self._library, DESTROY)
        destroy.argtypes, destroy.restype = [ctypes.c_void_p], None
        destroy(self.pointer)


def load(delegate: ExternalDelegate) -> LoadedDelegate:
    """Loads it into this process, which `check` should have found to be safe; raises the same errors."""
    _check_file(delegate)
    return make(delegate, load_library(delegate))


def load_library(delegate: ExternalDelegate) -> Any:
    try:
        library = ctypes.CDLL(str(delegate.path.resolve()))
    except OSError as error:
        raise ResourceError(
            f"{delegate.path} cannot be loaded: {error}",
            "Install what it needs, or name its folder in LD_LIBRARY_PATH. A library made for Android loads "
            "only there.",
        ) from error
    missing = [name for name in (CREATE, DESTROY) if not hasattr(library, name)]
    if missing:
        raise UsageError(
            f"{delegate.path} is not a TFLite delegate: it exports no {' and no '.join(missing)}",
            "Name the vendor's external delegate, not one of the libraries beside it.",
        )
    return library


def make(delegate: ExternalDelegate, library: Any) -> LoadedDelegate:
    """The packages' own `load_delegate` would ask a library that made nothing to destroy NULL."""
    create = getattr(library, CREATE)
    text = ctypes.POINTER(ctypes.c_char_p)
    create.argtypes, create.restype = [text, text, ctypes.c_size_t, _ReportError], ctypes.c_void_p
    keys, values = (_texts([pair[i] for pair in delegate.options]) for i in (0, 1))
    reported: list[str] = []
    report = _ReportError(lambda message: reported.append((message or b"").decode(errors="replace").strip()))
    pointer = create(keys, values, len(delegate.options), report)
    if not pointer:
        reason = " / ".join(filter(None, reported)) or "it gave no reason"
        raise ResourceError(
            f"{delegate.name} cannot be used here: {reason}",
            "Is its device there, and may this user open it? Are its options right?",
        )
    return LoadedDelegate(library, pointer)


def _texts(values: list[str]) -> Any:
    return (ctypes.c_char_p * len(values))(*(value.encode() for value in values))


def told(error: EdgeError) -> dict[str, str]:
    """An error as the trial notes it."""
    return {"kind": type(error).__name__, "error": error.message, "remedy": error.remedy}
