"""The way to an emulated board with a kernel of its own and memory that ends, over real ssh."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import script
from tests.field.reached import Reached, check_same, question

pytestmark = [pytest.mark.emulation, pytest.mark.slow]
PREFIX = "/home/pi/.local/share/hypervl-edge"


def up(memory_mb: int, cpu: str, work: Path) -> Iterator[Reached]:
    """On which nothing of ours is installed."""
    emulation, openssh = script("emulation"), script("openssh")
    script("qemu")
    try:
        board = script("board").Board(memory_mb, getattr(emulation, cpu))
    except emulation.Unavailable as reason:
        pytest.skip(str(reason))
    with board:
        path = openssh.ssh_wrapper(work / "bin", board.ssh_config)
        yield Reached(board, work, {"PATH": f"{path}{os.pathsep}{os.environ['PATH']}"})


@pytest.fixture(scope="module")
def pi_4(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reached]:
    yield from up(512, "PI4", tmp_path_factory.mktemp("pi-4"))


def test_what_does_not_fit_is_refused_before_anything_is_copied(pi_4: Reached, nano_bundle: Path) -> None:
    pi_4.device.leave_free(60)
    try:
        _, err = pi_4.toolkit("deploy", nano_bundle, "--device", pi_4.address, code=3)
    finally:
        pi_4.device.leave_free(3000)
    assert f"MB are needed in {PREFIX}" in err
    _, err = pi_4.toolkit("deploy", nano_bundle, "--device", pi_4.address, "--memory", "60MB", code=3)
    assert "a memory budget of 60 MB is too small" in err
    assert "--force" in err
    assert pi_4.device.run(f"ls {PREFIX}").returncode != 0


def test_it_gives_the_same_tokens_in_512_mb_without_lse(
    pi_4: Reached, nano_bundle: Path, photo: Path
) -> None:
    done = pi_4.json("deploy", nano_bundle, "--device", pi_4.address)
    assert (done["platform"], done["switched"]) == ("linux-arm64", True)
    here = pi_4.json(*question(nano_bundle, photo))
    there = pi_4.json(*question(nano_bundle, photo), "--device", pi_4.address)
    check_same(there, here)
    assert set(there) == set(here)
    # It has no LSE atomics, which LiteRT's GPU library needs.
    assert there["backend"]["name"] == "compiled"
    assert "no LSE atomics" in there["backend"]["reason"]
    assert there["memory"]["peak_resident_bytes"] < 200_000_000
    total = int(pi_4.device.run("cat /proc/meminfo").stdout.split()[1])
    assert total * 1024 < 512 << 20


def test_a_reboot_keeps_what_was_deployed(pi_4: Reached, nano_bundle: Path) -> None:
    pi_4.device.reboot(power_cut=True)
    done = pi_4.json("deploy", nano_bundle, "--device", pi_4.address)
    assert not done["switched"]


def test_a_package_is_installed_on_a_pi_5_with_1_gb_and_gives_the_same_tokens(
    nano_bundle: Path, photo: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As somebody does it who only has ssh: no network there, no root, and then the toolkit from here."""
    for pi_5 in up(1024, "PI5", tmp_path_factory.mktemp("pi-5")):
        archive = tmp_path / "board.tar.gz"
        pi_5.toolkit("package", nano_bundle, "--target", "pi-arm64", "-o", archive)
        with archive.open("rb") as content:
            install = "tar -xzf - && sh hypervl-edge/install.sh && rm -r hypervl-edge"
            subprocess.run([*pi_5.device.ssh("pi"), install], stdin=content, check=True, capture_output=True)
        told = pi_5.device.run(f"{PREFIX}/bin/toolkit inspect {PREFIX}/bundles/* --json", user="pi").stdout
        assert json.loads(told) == {**pi_5.json("inspect", nano_bundle), "path": json.loads(told)["path"]}
        # The same runtime and bundle, so nothing is left to deploy.
        done = pi_5.json("deploy", nano_bundle, "--device", pi_5.address)
        assert (done["runtime"]["sent_bytes"], done["bundle"]["sent_bytes"]) == (0, 0)
        there = pi_5.json(*question(nano_bundle, photo), "--device", pi_5.address)
        check_same(there, pi_5.json(*question(nano_bundle, photo)))
        assert "LSE atomics" in there["backend"]["reason"]
