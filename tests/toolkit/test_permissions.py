"""A place that may not be read or written is named, and nothing is left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Root may write everywhere; without these capabilities it is asked for permission like anybody else.
_ORDINARY = (
    "setpriv",
    "--bounding-set=-dac_override,-dac_read_search",
    "--inh-caps=-dac_override,-dac_read_search",
)


def _can_be_ordinary() -> bool:
    """A container may not let root give capabilities away."""
    if os.geteuid() != 0:
        return True
    return (
        shutil.which("setpriv") is not None
        and subprocess.run([*_ORDINARY, "true"], capture_output=True).returncode == 0
    )


pytestmark = pytest.mark.skipif(not _can_be_ordinary(), reason="root may not give up its rights here")


def toolkit(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "toolkit.cli", *map(str, arguments)]
    prefix = _ORDINARY if os.geteuid() == 0 else ()
    return subprocess.run([*prefix, *command], cwd=ROOT, capture_output=True, text=True)


def refused(done: subprocess.CompletedProcess[str], *words: object) -> bool:
    message = " ".join(done.stderr.split())
    assert done.returncode == 3, message
    assert "Traceback" not in message
    assert "ermission denied" in message
    return all(str(word) in message for word in words)


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A folder that may be read and not written."""
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    yield folder
    assert list(folder.iterdir()) == []
    folder.chmod(0o755)


def test_convert_may_not_write(nano_checkpoint: Path, locked: Path) -> None:
    assert refused(toolkit("convert", nano_checkpoint, "-o", locked / "bundle"), locked)


def test_assemble_may_not_write(locked: Path) -> None:
    assert refused(toolkit("assemble", locked / "checkpoint", "--preset", "nano"), locked)


def test_run_may_not_write_the_routing(nano_bundle: Path, photo: Path, locked: Path) -> None:
    picture = locked / "routing.png"
    done = toolkit(
        "run", nano_bundle, "--image", photo, "--prompt", "Hi", "--max-new-tokens", 1, "--routing", picture
    )
    assert refused(done, picture)


def test_run_may_not_read_a_graph(nano_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(nano_bundle, tmp_path / "bundle")
    (bundle / "decoder.tflite").chmod(0)
    assert refused(toolkit("run", bundle, "--prompt", "Hi"), "decoder.tflite")


def test_convert_may_not_read_the_weights(nano_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(nano_checkpoint, tmp_path / "checkpoint")
    (checkpoint / "model.safetensors").chmod(0)
    done = toolkit("convert", checkpoint, "-o", tmp_path / "bundle", "--components", "vrc")
    assert refused(done, checkpoint / "model.safetensors")
    assert not (tmp_path / "bundle").exists()


def test_a_cache_that_may_not_be_written_is_done_without(
    nano_bundle: Path, locked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(locked))
    done = toolkit("run", nano_bundle, "--prompt", "Hi", "--max-new-tokens", 1)
    assert done.returncode == 0, done.stderr
