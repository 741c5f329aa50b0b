"""Makes a virtual environment with OpenVINO and ai-edge-litert, in which LiteRT's path to an NPU runs on the
CPU, and prints its Python.

    python scripts/openvino_env.py

It is kept under `.cache/openvino-2026.3.1` (or `$HYPERVL_CACHE`; 350 MB), so that a second call is free.
OpenVINO's plugin asks for exactly this version.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rpi_runtime.errors import EdgeError, ResourceError

VERSION = "2026.3.1"
PACKAGES = ("ai-edge-litert==2.3.0", f"openvino=={VERSION}", "numpy")


def cache_folder() -> Path:
    chosen = os.environ.get("HYPERVL_CACHE")
    return Path(chosen) if chosen else Path(__file__).resolve().parents[1] / ".cache"


def make() -> Path:
    """The environment's Python, made on the first call. Raises `ResourceError` where it cannot be had."""
    folder = cache_folder() / f"openvino-{VERSION}"
    python = folder / "bin" / "python"
    done = folder / "installed"  # written last: a folder with it is whole
    if done.exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    commands = (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", *PACKAGES],
    )
    for command in commands:
        with tempfile.TemporaryFile("w+") as output:
            if subprocess.run(command, stdout=output, stderr=output, check=False).returncode:
                output.seek(0)
                last = (output.read().strip().splitlines() or ["no reason given"])[-1]
                raise ResourceError(
                    f"OpenVINO {VERSION} cannot be installed: {last}", "Is the package registry reachable?"
                )
    done.touch()
    return python


def libraries(python: Path) -> Path:
    """The folder of OpenVINO's libraries in the environment of `python`."""
    return next(python.parents[1].glob("lib/python*/site-packages/openvino/libs"))


if __name__ == "__main__":
    try:
        print(make())
    except EdgeError as error:
        sys.exit(str(error))
