"""Keeps the converters' libraries quiet: progress bars, log lines and warnings that no user can act on."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rpi_runtime.native_logs import quiet

os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
os.environ.setdefault("TQDM_DISABLE", "1")


@contextmanager
def silence() -> Iterator[None]:
    """Holds back native log lines (all of them come out when the block raises), Python logging below ERROR and
    warnings. Import the noisy libraries inside it, too."""
    before = logging.root.manager.disable
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
