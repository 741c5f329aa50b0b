"""What is in use on a device is switched at once, and put back."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from field.connect import connect
from field.device import DeviceError
from field.installed import Installed, Release, read_installed, roll_back, switch
from field.package.launchers import current_launcher
from field.package.package import safe_name
from field.platforms import PLATFORMS

OLD, NEW = Release("r1", "b1", "panels"), Release("r2", "b2", safe_name("it's $(new)\nname"))


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    return tmp_path / "p x"


def install(prefix: Path, release: Release) -> None:
    """Puts a runtime, whose toolkit says which it is, and a bundle there, and both in use."""
    program = prefix / "runtimes" / release.runtime / "bin/toolkit"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\necho "{release.runtime} $HYPERVL_BUNDLE $*"\n')
    program.chmod(0o755)
    (prefix / "bundles" / release.bundle).mkdir(parents=True)
    switch(connect("local"), here(prefix), release, current_launcher(PLATFORMS["linux-x64"]))


def here(prefix: Path) -> Installed:
    return read_installed(connect("local"), str(prefix))


def said(prefix: Path, *words: str) -> str:
    return subprocess.run([prefix / "bin/toolkit", *words], capture_output=True, text=True, check=True).stdout


def test_nothing_is_in_use_where_nothing_was_installed(tmp_path: Path) -> None:
    found = here(tmp_path / "none")
    assert found.current == found.previous == Release()
    assert found.runtimes == found.bundles == ()


def test_the_command_runs_what_is_in_use(prefix: Path) -> None:
    install(prefix, OLD)
    assert said(prefix, "run", "a b") == f"r1 {prefix}/bundles/b1 run a b\n"
    install(prefix, NEW)
    assert said(prefix) == f"r2 {prefix}/bundles/b2 \n"


def test_the_one_before_is_kept_and_older_ones_go(prefix: Path) -> None:
    install(prefix, Release("r0", "b0", "first"))
    install(prefix, OLD)
    (prefix / "bundles/b3.partial").mkdir()
    install(prefix, NEW)
    found = here(prefix)
    assert found.current == NEW
    assert found.previous == OLD
    assert (found.runtimes, found.bundles) == (("r1", "r2"), ("b1", "b2"))
    assert not (prefix / "bundles/b3.partial").exists()


def test_a_rollback_changes_places(prefix: Path) -> None:
    device = connect("local")
    install(prefix, OLD)
    install(prefix, NEW)
    assert roll_back(device, here(prefix)) == OLD
    assert said(prefix).startswith("r1 ")
    assert here(prefix).previous.runtime == "r2"
    roll_back(device, here(prefix))
    assert said(prefix).startswith("r2 ")


def test_without_one_before_there_is_no_rollback(prefix: Path) -> None:
    install(prefix, OLD)
    with pytest.raises(DeviceError, match="nothing was installed before"):
        roll_back(connect("local"), here(prefix))


def test_a_file_that_somebody_edited_names_nothing_else(prefix: Path) -> None:
    install(prefix, OLD)
    (prefix / "current").write_text('runtime=*" "$(touch it)\nbundle=../b1\nname=x\n')
    assert here(prefix).current == Release("", "", "x")
    install(prefix, NEW)
    assert not (prefix / "it").exists()
