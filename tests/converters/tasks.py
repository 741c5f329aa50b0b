"""Small pieces of real work that the tests of the stage machinery run in a worker process."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from rpi_runtime.errors import CheckpointError

Places = dict[str, Path]


def write(options: dict[str, Any], inputs: Places, outputs: Places) -> Any:
    """Writes `options["text"]` after what the inputs hold; notes each run in `inputs["runs"]`, if given."""
    if "runs" in inputs:
        with inputs["runs"].open("a") as file:
            file.write(options["text"] + "\n")
    before = "".join(p.read_text() for name, p in sorted(inputs.items()) if name != "runs")
    outputs["file"].write_text(before + options["text"])
    return {"pid": os.getpid(), "length": len(options["text"])}


def fill(options: dict[str, Any], inputs: Places, outputs: Places) -> None:
    """Writes `options["bytes"]` bytes."""
    with outputs["file"].open("wb") as file:
        for _ in range(options["bytes"] // 65536):
            file.write(bytes(65536))


def write_half_and_die(options: dict[str, Any], inputs: Places, outputs: Places) -> None:
    outputs["file"].write_text("hal")
    die(options, inputs, outputs)


def die(options: dict[str, Any], inputs: Places, outputs: Places) -> None:
    print("native library: about to fall over", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.Signals[options["signal"]])


def read_address_zero(options: dict[str, Any], inputs: Places, outputs: Places) -> None:
    ctypes.string_at(0)


def user_error(options: dict[str, Any], inputs: Places, outputs: Places) -> None:
    raise CheckpointError("tensor 'decoder.norm.weight' has NaN", "Train less boldly.")


def bug(options: dict[str, Any], inputs: Places, outputs: Places) -> None:
    raise ZeroDivisionError("a bug of ours")


def take_memory(options: dict[str, Any], inputs: Places, outputs: Places) -> None:
    """Touches `options["bytes"]` bytes, a mebibyte at a time."""
    held = []
    for _ in range(options["bytes"] >> 20):
        held.append(b"x" * (1 << 20))
    outputs["file"].write_text(str(len(held)))


def no_memory(options: dict[str, Any], inputs: Places, outputs: Places) -> None:
    bytearray(1 << 60)


def sleep(options: dict[str, Any], inputs: Places, outputs: Places) -> None:
    """Says who it is in `inputs["pid"]` and waits."""
    inputs["pid"].write_text(str(os.getpid()))
    time.sleep(60)


def environment(options: dict[str, Any], inputs: Places, outputs: Places) -> Any:
    """Which modules lie where, and the name of a temporary folder."""
    import json
    import tempfile

    return {"json": json.__file__, "temporary": tempfile.gettempdir()}
