"""Keeps the converters' libraries quiet: progress bars, log lines and warnings that no user can act on."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from rpi_runtime.native_logs import quiet

os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")


@contextmanager
def silence() -> Iterator[None]:
    """Drops what Python code prints meanwhile, its log lines below ERROR and its warnings; native log lines
    are held back and come out if the block raises. Import the noisy libraries inside it, too."""
    before = logging.root.manager.disable
    with quiet(), warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
