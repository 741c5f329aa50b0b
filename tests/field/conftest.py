"""Real devices to connect to: a server on this machine, an emulated board, an emulated phone. Each is there
once for a module of tests; where its parts cannot be had, the tests that want it are skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import script


@pytest.fixture(scope="module")
def ssh_configs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder: the `ssh` in PATH reads each `*.conf` in it, and not the user's configuration."""
    folder = tmp_path_factory.mktemp("ssh")
    (folder / "config").write_text(f'Include "{folder}/*.conf"\n')
    with pytest.MonkeyPatch.context() as patch:
        first = script("openssh").ssh_wrapper(folder / "bin", folder / "config")
        patch.setenv("PATH", f"{first}{os.pathsep}{os.environ['PATH']}")
        yield folder


@pytest.fixture(scope="module")
def sshd(ssh_configs: Path) -> Iterator[Any]:
    """A real sshd of this machine, with a home of its own."""
    with started("sshd", "Sshd") as server:
        (ssh_configs / "sshd.conf").symlink_to(server.config)
        yield server


@pytest.fixture(scope="module")
def board(ssh_configs: Path) -> Iterator[Any]:
    """A Pi 4 with 512 MB, on which nothing of ours is installed."""
    with started("board", "Board") as running:
        (ssh_configs / "board.conf").symlink_to(running.ssh_config)
        yield running


@pytest.fixture(scope="module")
def phone() -> Iterator[Any]:
    """A phone without GNU tools or Python."""
    with started("phone", "Phone") as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with started("browser", "Browser") as running:
        yield running


def started(module: str, name: str, **given: object) -> Any:
    """Skips where it cannot be had."""
    unavailable = script("emulation").Unavailable
    try:
        return getattr(script(module), name)(**given)
    except unavailable as reason:
        pytest.skip(str(reason))
