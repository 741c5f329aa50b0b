"""What decoding is said to take, beside what the kernel counts, for every format."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.picture_formats import KINDS, save_picture

ROOT = Path(__file__).resolve().parents[2]
WIDTH, HEIGHT = 2400, 2000
# Decodes a small one first, so that libraries are there; then the large one, at all scales and in both ways.
_DECODE = """
import gc, json, sys
from pathlib import Path
from rpi_runtime.images import open_image
from rpi_runtime.kernel import give_back, memory, reset_peak
small, large, folder = sys.argv[1:]
told = []
for shrink in (1, 3):
    for spool in (None, Path(folder)):
        for _ in range(2):
            picture = open_image(small)
            picture.decode(*picture.size, spool=spool)
            picture.crop((0, 0, 8, 8), 4, 4)
        del picture
        gc.collect()
        give_back()
        reset_peak()
        before = memory().resident_bytes
        picture = open_image(large)
        wanted = (picture.size[0] // shrink, picture.size[1] // shrink)
        said = picture.decoding_bytes(*wanted, spooled=spool is not None)
        picture.decode(*wanted, spool=spool)
        told.append((said, memory().peak_resident_bytes - before))
        del picture
print(json.dumps(told))
"""


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_takes_what_is_said_and_hardly_less(kind: str, tmp_path: Path) -> None:
    small, large = save_picture(kind, tmp_path, 64, 60), save_picture(kind, tmp_path, WIDTH, HEIGHT)
    command = [sys.executable, "-c", _DECODE, str(small), str(large), str(tmp_path / "spool")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for said, taken in json.loads(done.stdout):
        assert taken <= said + (2 << 20)
        # Held in memory a few count some more, where decoder and copy are not there at once.
        assert said <= 1.4 * taken + (3 << 20)
    spooled = json.loads(done.stdout)[1]
    assert spooled[0] <= 1.1 * spooled[1] + (4 << 20), "what decides whether a picture is refused"
