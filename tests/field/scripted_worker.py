"""A worker of field.runner that does as the question says, without a model:

echo TEXT        answers TEXT
slow SECONDS     answers after so long
die              is killed, as by a system that is out of memory
die once FILE    only while FILE is not there
hang             never answers
refuse           is an error that a user can understand
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

REPORT = {
    "images": [],
    "times": {"load_ms": 1.0, "total_ms": 11.0},
    "memory": {"peak_resident_bytes": 1000},
}


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if "open" in request:
            if request["open"]["name"] == "impossible":
                reply = {"error": "there is no such delegate here", "remedy": "Use another."}
            elif request["open"]["name"] == "deadly":
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                reply = {"opened": True}
        else:
            reply = answer(request)
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


def answer(request: dict[str, str]) -> dict[str, object]:
    verb, _, rest = request["ask"].partition(" ")
    text = rest
    if verb == "die":
        mark = Path(rest.removeprefix("once ")) if rest else None
        if mark is None or not mark.exists():
            if mark:
                mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    elif verb == "hang":
        time.sleep(1000)
    elif verb == "slow":
        time.sleep(float(rest))
    elif verb == "refuse":
        return {"error": "the picture is damaged", "remedy": "Copy it again."}
    elif verb == "picture":
        text = Path(request["image"]).read_text()
    return {"answer": text, "report": REPORT}


if __name__ == "__main__":
    main()
