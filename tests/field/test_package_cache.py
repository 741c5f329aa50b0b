"""The cache of runtimes does not grow without end."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from field.package.runtime import _forget_old


def a_runtime(cache: Path, number: int, age_seconds: float) -> None:
    name = f"{number:016x}"
    (cache / name).mkdir()
    (cache / f"{name}.tar.gz").touch()
    (cache / f"key{number}.json").write_text(json.dumps({"id": name}))
    for path in (cache / name, cache / f"{name}.tar.gz", cache / f"key{number}.json"):
        os.utime(path, (time.time() - age_seconds, time.time() - age_seconds))


def kept(cache: Path) -> list[int]:
    return sorted(int(path.name, 16) for path in cache.iterdir() if path.is_dir())


def test_runtimes_that_were_not_used_for_days_go_with_their_archives_but_for_the_last_few(
    tmp_path: Path,
) -> None:
    for number in range(12):
        a_runtime(tmp_path, number, age_seconds=86400 * (3 + number))
    _forget_old(tmp_path)
    assert kept(tmp_path) == list(range(8))
    assert len(list(tmp_path.glob("*.tar.gz"))) == len(list(tmp_path.glob("*.json"))) == 8


def test_those_of_today_stay(tmp_path: Path) -> None:
    for number in range(12):
        a_runtime(tmp_path, number, age_seconds=60)
    _forget_old(tmp_path)
    assert len(kept(tmp_path)) == 12
