"""Keeps the native runtime's chatter off the user's terminal.

LiteRT prints some twenty INFO and WARNING lines to file descriptor 2 whenever a model is loaded ("NPU
accelerator could not be loaded" and the like). The library exports no way to set its log level, and
TF_CPP_MIN_LOG_LEVEL does not reach it, so the descriptor itself is redirected around the calls that load a
graph or run it first.

The descriptor belongs to the whole process: what other threads write meanwhile lands in the same buffer. It
is passed on in order as soon as the call ends; only lines that are known to come from the native runtime are
dropped. (A child process that is started within such a call keeps the buffer as its stderr.)
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

_STDOUT, _STDERR = 1, 2
# One redirection at a time; a thread that already holds it may nest.
_LOCK = threading.RLock()

_NATIVE_LINE = re.compile(
    rb"(VERBOSE|DEBUG|INFO|WARNING): \[[\w.\-/]+\.(cc|h):\d+\]"  # LiteRT
    rb"|INFO: (Created|Initialized|Applying|Explicitly applying|Loaded|TensorFlow Lite|TfLite)"  # TFLite
    rb"|INFO: Failed to load OpenCL library"  # the GPU accelerator, which goes on to WebGPU
    rb"|WARNING: (All log messages before absl::InitializeLog|Logging before InitGoogle)"
    rb"|To enable the following instructions: "  # tensorflow, on a line of its own
    rb"|[IW]\d{4} \d\d:\d\d:\d\d[.\d]* "  # absl, before and after its own start
)
_CONTINUED = "└ ".encode()  # LiteRT continues a WARNING on a line of its own


@contextmanager
def quiet(verbose: bool = False, *, also_stdout: bool = False) -> Iterator[None]:
    """Holds the native runtime's lines back while the block runs, but for its errors; with `also_stdout`,
    where its GPU accelerator writes, those on stdout, too.

    With `verbose` nothing is redirected. A crash of the process inside the block takes the held lines with
    it, so `verbose` is also the way to see a fatal message.
    """
    if verbose:
        yield
        return
    with _LOCK, ExitStack() as redirected:
        redirected.enter_context(_filtered(_STDERR))
        if also_stdout:
            redirected.enter_context(_filtered(_STDOUT))
        yield


@contextmanager
def _filtered(descriptor: int) -> Iterator[None]:
    _flush_python()
    try:
        saved = os.dup(descriptor)
    except OSError:  # the process has none: nothing to keep quiet
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), descriptor)
        try:
            yield
        finally:
            _flush_python()
            os.dup2(saved, descriptor)
            os.close(saved)
            held.seek(0)
            _pass_on(foreign_lines(held.read()), descriptor)


@cache
def silent_exit() -> None:
    """Closes stderr between Python's end and the runtime's static destructors, which log at exit.

    A function of the C library is registered, because no Python code can run by then; whatever Python writes,
    to its very end, comes out. Call it when the runtime has made what it will destroy: handlers run in
    reverse order.
    """
    try:
        libc = ctypes.CDLL(None)
        close = ctypes.cast(libc.close, ctypes.c_void_p)
        libc.__cxa_atexit(close, ctypes.c_void_p(_STDERR), None)
    except (AttributeError, OSError):  # a C library without them: five lines more
        return


def foreign_lines(text: bytes) -> bytes:
    """`text` without what the native runtime chatters; its errors stay."""
    kept: list[bytes] = []
    after_native = False
    for line in text.splitlines(keepends=True):
        native = _NATIVE_LINE.match(line) is not None or (after_native and line.startswith(_CONTINUED))
        if not native:
            kept.append(line)
        after_native = native
    return b"".join(kept)


def _pass_on(rest: bytes, descriptor: int) -> None:
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _flush_python() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
