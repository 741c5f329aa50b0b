"""A program on a device that ends when the host that started it is gone.

The host keeps the program's stdin open and writes a byte every few seconds. When it ends, on purpose or not,
or no byte has come for a minute, as when a network vanished without a word, the program gets a SIGINT, as
from Ctrl-C, and is killed when that does not end it. Nothing heavy is imported: this comes before anything
else.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time

HELD = "HYPERVL_HELD"  # set to "1" by a host that holds what it starts
SILENCE_S = 60.0
GRACE_S = 10.0  # to end by itself


def hold(silence_s: float = SILENCE_S, grace_s: float = GRACE_S) -> bool:
    """From now on, if the environment says so, this process lives no longer than its stdin tells; whether it
    does. Its stdin is empty then, for itself and its children. Call it in the main thread."""
    if os.environ.pop(HELD, "") != "1":
        return False
    signs = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    # A shell that starts something in the background has it ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_watch, args=(signs, silence_s, grace_s), name="held", daemon=True).start()
    return True


def _watch(signs: int, silence_s: float, grace_s: float) -> None:
    while select.select([signs], [], [], silence_s)[0]:
        try:
            if not os.read(signs, 4096):
                break
        except OSError:
            break
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(grace_s)
    os.kill(os.getpid(), signal.SIGKILL)
