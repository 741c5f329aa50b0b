"""Runs the toolkit's command line, as its users do."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def toolkit(*arguments: object) -> None:
    """Runs the command, whose output is seen; raises `CalledProcessError` where it fails."""
    subprocess.run(_line(arguments), check=True)


def toolkit_json(*arguments: object) -> dict[str, Any]:
    """What the command prints with --json."""
    done = subprocess.run([*_line(arguments), "--json"], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _line(arguments: tuple[object, ...]) -> list[str]:
    return [sys.executable, "-m", "toolkit.cli", *map(str, arguments)]
