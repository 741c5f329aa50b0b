"""The main job on a real photo, with the commands a user would type: assemble, convert, run.

Works in `demo/`. The weights are random (seed 0): the numbers are measured, the words mean nothing yet.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import skimage

DEMO = Path("demo")
PHOTO = Path(skimage.__file__).parent / "data" / "astronaut.png"  # NASA, public domain
COMMANDS = (
    "toolkit assemble demo/checkpoint --preset nano --force",
    "toolkit convert demo/checkpoint -o demo/bundle",
    "toolkit run demo/bundle --image demo/photo.png --prompt 'What is in the picture?' --max-new-tokens 32 "
    "--routing demo/routing.png",
)


def main() -> int:
    DEMO.mkdir(exist_ok=True)
    shutil.copyfile(PHOTO, DEMO / "photo.png")
    toolkit = Path(sys.executable).parent / "toolkit"
    for command in COMMANDS:
        print(f"\n$ {command}", flush=True)
        done = subprocess.run(command.replace("toolkit", str(toolkit), 1), shell=True)
        if done.returncode:
            return done.returncode
    print("\nLook at demo/routing.png for the tiles over the photo and the side of each.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
