"""Every command in the README and docs runs, in the order a reader would type it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import skimage.data
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
CONVERT = "toolkit convert models/nano -o bundle"  # on several pages
# Set-up that the machine running this test has behind it, or that would start this very test.
BEHIND_US = (
    "git clone",
    "cd hypervl-edge",
    "make demo",
    "make test",
    "make lint",
    "python3 -m venv",
    ". .venv",
    "pip install",
)


def commands(page: Path) -> list[str]:
    """Lines that begin with `$ ` inside ```console blocks; a trailing backslash joins the next line."""
    blocks = re.findall(r"^```console\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    joined = "".join(blocks).replace("\\\n", " ")
    return [line[2:].strip() for line in joined.splitlines() if line.startswith("$ ")]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the bundle of `CONVERT` lies once it was made: the same command gives the same bytes."""
    return tmp_path_factory.mktemp("converted") / "bundle"


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=lambda p: p.name)
def test_every_command_shown_on_the_page_runs(page: Path, tmp_path: Path, converted: Path) -> None:
    Image.fromarray(skimage.data.astronaut()).save(tmp_path / "photo.jpg")
    (tmp_path / "models").symlink_to(ROOT / "models")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "80",
    }
    for command in commands(page):
        if command.startswith(BEHIND_US):
            continue
        if command == CONVERT and converted.exists():
            shutil.copytree(converted, tmp_path / "bundle")
            continue
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, input=""
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        if command == CONVERT:
            shutil.copytree(tmp_path / "bundle", converted)


def test_commands_are_found_in_the_readme() -> None:
    assert any(shlex.split(c)[:2] == ["toolkit", "run"] for c in commands(ROOT / "README.md"))
