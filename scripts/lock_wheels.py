"""Writes field/data/wheels.lock: which wheels a package holds for each machine and Python, with their hashes.

`python scripts/lock_wheels.py` asks pip for the versions below, for every pair of machine and Python, and
takes down what came. Run it after a change of a version here; the versions of pyproject.toml are ranges,
these are what was tried on the boards. What no command of a device imports is left out, whatever a wheel's
metadata says: tokenizers' huggingface-hub, ai-edge-litert's flatbuffers, protobuf, tqdm and
backports.strenum, Rich's Pygments and markdown-it-py.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "field/data/wheels.lock"
COMMON = (
    "tokenizers==0.23.3",
    "jinja2==3.1.6",
    "markupsafe==3.0.4",
    "typer==0.28.0",  # the last without pydantic, whose library is larger than all of ours
    "annotated-doc==0.0.7",
    "shellingham==1.5.4",
    "rich==15.0.0",
)
LITERT = ("numpy==2.4.6", "pillow==13.0.0", "ai-edge-litert==2.3.0", "ml-dtypes==0.6.0")
SETS = {
    **{f"{m} {p}": (*COMMON, *LITERT) for m in ("aarch64", "x86_64") for p in ("3.11", "3.12", "3.13")},
    # NumPy and Pillow have none for it: Debian's serve (scripts/lock_debs.py).
    "armv7l 3.11": (*COMMON, "tflite-runtime==2.14.0"),
}
# pip matches each tag literally, so all that a wheel may carry are named; Debian bookworm has glibc 2.36.
GLIBC = (36, 35, 34, 31, 28, 27, 26, 24, 17)


def main() -> int:
    wheels: dict[str, dict[str, str | int]] = {}
    sets: dict[str, list[str]] = {}
    for name, wanted in SETS.items():
        machine, python = name.split()
        with tempfile.TemporaryDirectory() as folder:
            gather(machine, python, wanted, Path(folder))
            files = sorted(Path(folder).iterdir(), key=lambda file: file.name.lower())
            sets[name] = [file.name for file in files]
            for file in files:
                data = file.read_bytes()
                wheels[file.name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        print(f"{name}: {len(files)} wheels")
    text = json.dumps({"wheels": dict(sorted(wheels.items())), "sets": sets}, indent=1)
    LOCK.write_text(re.sub(r"\{\n\s+(\"sha256\": .*),\n\s+(.*)\n\s+\}", r"{\1, \2}", text) + "\n")
    return 0


def gather(machine: str, python: str, wanted: tuple[str, ...], folder: Path) -> None:
    tags = [f"manylinux_2_{minor}" for minor in GLIBC] + ["manylinux2014"]
    platforms = [part for tag in tags for part in ("--platform", f"{tag}_{machine}")]
    kind = ["--python-version", python, "--implementation", "cp", "--abi", f"cp{python.replace('.', '')}"]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    abis = ["--abi", "abi3", "--abi", "none"]
    subprocess.run([*pip, "-d", str(folder), *kind, *abis, *platforms, *wanted], check=True)


if __name__ == "__main__":
    sys.exit(main())
