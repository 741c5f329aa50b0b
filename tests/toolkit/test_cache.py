"""`toolkit cache`: what the packed weights take, and how they go."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rpi_runtime.backends.weight_cache import entries, lease

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A cache folder with the weights of two graphs, one of which was last used ten days ago."""
    folder = tmp_path / "hypervl-edge" / "weights"
    for name, last_used in (("vrc", time.time() - 10 * 86400), ("vision_base", time.time() - 5)):
        with lease(folder, name, graph_bytes=1, graph=f"/b/{name}.tflite", runtime="litert 2") as lent:
            assert lent.file is not None
            # As XNNPACK leaves one: a header with the place of the list of buffers.
            lent.file.write_bytes(struct.pack("<3Q", 4, 64, 64) + bytes(2_000_000 - 24))
        os.utime(folder / f"{name}.json", (last_used, last_used))
    return tmp_path


def cache(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "toolkit.cli", "cache", *arguments]
    environment = {**os.environ, "XDG_CACHE_HOME": str(home), "COLUMNS": "80"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_it_lists_graphs_sizes_and_last_use_the_latest_first(home: Path) -> None:
    data = json.loads(cache(home, "--json").stdout)
    assert [(found["graph"], found["runtime"], found["bytes"]) for found in data["caches"]] == [
        ("/b/vision_base.tflite", "litert 2", 2_000_000),
        ("/b/vrc.tflite", "litert 2", 2_000_000),
    ]
    shown = cache(home).stdout
    assert "2 caches, 4.0 MB" in shown
    assert "10 days ago" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_clear_removes_all(home: Path) -> None:
    folder = home / "hypervl-edge"
    notes = [folder / "weights" / "abc.footprint", folder / "verified.json"]
    for note in notes:
        note.write_text("{}")
    assert "2 notes on bundles" in cache(home).stdout
    cache(home, "--clear", "--older-than", "20")
    assert all(note.exists() for note in notes)
    done = cache(home, "--clear")
    assert done.returncode == 0
    assert "removed 2 caches, 4.0 MB, and 2 notes on bundles" in done.stdout
    assert not (folder / "verified.json").exists()
    assert not list((home / "hypervl-edge" / "weights").iterdir())
    assert "no packed weights in" in cache(home).stdout


def test_clear_older_than_keeps_what_was_used_since(home: Path) -> None:
    data = json.loads(cache(home, "--clear", "--older-than", "3", "--json").stdout)
    assert [Path(found["graph"]).name for found in data["removed"]] == ["vrc.tflite"]
    assert [Path(found["graph"]).name for found in data["caches"]] == ["vision_base.tflite"]


def test_one_that_is_being_opened_stays_and_is_named(home: Path) -> None:
    folder = home / "hypervl-edge" / "weights"
    held = entries(folder)[0]
    with lease(folder, held.key, graph_bytes=1):
        done = cache(home, "--clear")
    assert "removed 1 cache," in done.stdout
    assert "is being opened by another process" in done.stderr
    assert [entry.key for entry in entries(folder)] == [held.key]


def test_without_a_folder_there_is_nothing(tmp_path: Path) -> None:
    done = cache(tmp_path / "nothing")
    assert done.returncode == 0
    assert "no packed weights in" in done.stdout


def test_an_age_without_clear_is_refused(tmp_path: Path) -> None:
    done = cache(tmp_path, "--older-than", "3")
    assert done.returncode == 2
    assert "Add --clear" in done.stderr
