"""Makes a virtual environment with tflite-runtime 2.14, as a 32-bit board has it, and prints its Python.

    python scripts/tflite_runtime_env.py

It is kept under `.cache/tflite-runtime-2.14.0` (or `$HYPERVL_CACHE`), so that a second call is free. The
wheels end with Python 3.11: another version needs a `python3.11` on the PATH.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rpi_runtime.errors import EdgeError, ResourceError

VERSION = "2.14.0"
# tflite-runtime was built against NumPy 1; the rest is what rpi_runtime imports.
PACKAGES = (f"tflite-runtime=={VERSION}", "numpy<2", "pillow", "tokenizers", "jinja2")


def cache_folder() -> Path:
    chosen = os.environ.get("HYPERVL_CACHE")
    return Path(chosen) if chosen else Path(__file__).resolve().parents[1] / ".cache"


def make() -> Path:
    """The environment's Python, made on the first call. Raises `ResourceError` where it cannot be had."""
    folder = cache_folder() / f"tflite-runtime-{VERSION}"
    python = folder / "bin" / "python"
    done = folder / "installed"  # written last: a folder with it is whole
    if done.exists():
        return python
    base = sys.executable if sys.version_info[:2] == (3, 11) else shutil.which("python3.11")
    if base is None:
        raise ResourceError("tflite-runtime has no wheel for this Python", "Install Python 3.11 beside it.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    commands = (
        [base, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", *PACKAGES],
    )
    for command in commands:
        with tempfile.TemporaryFile("w+") as output:
            if subprocess.run(command, stdout=output, stderr=output, check=False).returncode:
                output.seek(0)
                last = (output.read().strip().splitlines() or ["no reason given"])[-1]
                raise ResourceError(
                    f"tflite-runtime {VERSION} cannot be installed: {last}",
                    "Is the package registry reachable?",
                )
    done.touch()
    return python


if __name__ == "__main__":
    try:
        print(make())
    except EdgeError as error:
        sys.exit(str(error))
