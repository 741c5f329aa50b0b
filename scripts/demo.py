"""The main job with the built-in model, by the commands a user would type: convert, ask, look.

Works in `demo/`. The picture is a panel of the test split, whose layout, fonts and background the model has
never seen; the right answer is known and printed.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from vqa.panels.panel import make_panel

DEMO, MODEL = Path("demo"), Path("models/nano")
PANEL = 7  # of the test split
QUESTION, ANSWER = "What does FLOW C read?", "8.5 A"
COMMANDS = (
    f"toolkit convert {MODEL} -o demo/bundle",
    f"toolkit run demo/bundle --image demo/panel.png --prompt {shlex.quote(QUESTION)} "
    "--routing demo/routing.png",
)


def main() -> int:
    DEMO.mkdir(exist_ok=True)
    make_panel("test", PANEL).image.save(DEMO / "panel.png")
    toolkit = Path(sys.executable).parent / "toolkit"
    for command in COMMANDS:
        print(f"\n$ {command}", flush=True)
        done = subprocess.run(command.replace("toolkit", str(toolkit), 1), shell=True)
        if done.returncode:
            return done.returncode
    print(f"\nThe right answer is: {ANSWER}. Look at demo/routing.png for the tiles and the side of each.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
