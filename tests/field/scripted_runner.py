"""`python scripted_runner.py RUN_FOLDER BUNDLE ROOT [SENT]`: the runner with a scripted worker."""

from __future__ import annotations

import sys
from pathlib import Path

from field.held import hold
from field.runner import run
from field.telemetry import Sensors

WORKER = [sys.executable, str(Path(__file__).with_name("scripted_worker.py"))]

if __name__ == "__main__":
    hold()
    folder, bundle, root = sys.argv[1:4]
    sent = int(sys.argv[4]) if len(sys.argv) > 4 else 0
    sys.exit(run(Path(folder), bundle, sent, sys.stdout.buffer, Sensors(Path(root), "none"), WORKER))
