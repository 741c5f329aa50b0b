"""Runs the toolkit's command line, as its users do."""

from __future__ import annotations

import subprocess
import sys


def toolkit(*arguments: object) -> None:
    """Runs the command, whose output is seen; raises `CalledProcessError` where it fails."""
    subprocess.run([sys.executable, "-m", "toolkit.cli", *map(str, arguments)], check=True)
