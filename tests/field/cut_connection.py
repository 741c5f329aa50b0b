"""`python cut_connection.py BYTES SCRIPT`: a connection to this machine that is cut after the first line, and
so many bytes, of what `sh` prints, without a word, as by a network that is gone; -1: at its first byte."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

if __name__ == "__main__":
    left, script = int(sys.argv[1]), sys.argv[2]
    process = subprocess.Popen(["/bin/sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin
    assert process.stdout

    def forward() -> None:
        assert process.stdin
        while piece := os.read(0, 4096):
            os.write(process.stdin.fileno(), piece)
        process.stdin.close()

    threading.Thread(target=forward, daemon=True).start()
    if left >= 0:
        os.write(1, process.stdout.readline())
    while left > 0 and (piece := process.stdout.read(1)):
        os.write(1, piece)
        left -= 1
    process.stdout.read(1)
    os._exit(255)
