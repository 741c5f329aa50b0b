"""The way to a phone, over real adb, into a system with mksh and toybox and nothing that Android has not."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import script
from tests.field.reached import Reached, check_same, question

PREFIX = "/data/local/tmp/hypervl-edge"
pytestmark = [pytest.mark.emulation, pytest.mark.slow]


@pytest.fixture(scope="module")
def phone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reached]:
    emulation = script("emulation")
    script("qemu")
    try:
        found = script("phone").Phone()
    except emulation.Unavailable as reason:
        pytest.skip(str(reason))
    with found:
        yield Reached(found, tmp_path_factory.mktemp("phone"), found.environment)


def test_it_is_examined_with_nothing_of_ours_on_it(phone: Reached) -> None:
    told = phone.json("doctor", "--device", phone.address)
    assert not [finding for finding in told["findings"] if finding["level"] == "problem"]


def test_a_package_is_pushed_and_gives_the_same_tokens_without_root(
    phone: Reached, nano_bundle: Path, photo: Path, tmp_path: Path
) -> None:
    """As somebody does it who only has adb; then the toolkit from here, which has nothing left to deploy."""
    archive = tmp_path / "phone.tar.gz"
    phone.toolkit("package", nano_bundle, "--target", "android-arm64", "-o", archive)
    push = ["adb", "-s", phone.device.serial, "push", str(archive), "/data/local/tmp/"]
    subprocess.run(push, env=phone.environment, check=True, capture_output=True)
    installed = phone.device.run("cd /data/local/tmp && tar -xzf phone.tar.gz && sh hypervl-edge/install.sh")
    assert installed.returncode == 0, installed.stderr
    assert phone.device.run(f"{PREFIX}/bin/toolkit --version").stdout.startswith("hypervl-edge ")
    there = phone.json(*question(nano_bundle, photo), "--device", phone.address)
    check_same(there, phone.json(*question(nano_bundle, photo)))
    again = phone.json("deploy", nano_bundle, "--device", phone.address)
    assert (again["platform"], again["prefix"]) == ("android-arm64", PREFIX)
    assert (again["switched"], again["runtime"]["sent_bytes"]) == (False, 0)
    assert phone.device.run("id -u").stdout.strip() == "2000"


def test_errors_and_exit_codes_are_those_of_there(phone: Reached, nano_bundle: Path) -> None:
    words = question(nano_bundle, Path("no such picture.jpg"))
    _, err = phone.toolkit(*words, "--device", phone.address, code=3)
    assert err.startswith("error: no such picture.jpg does not exist")


def test_what_is_lost_says_so(phone: Reached, nano_bundle: Path) -> None:
    phone.device.unplug()
    try:
        _, err = phone.toolkit("deploy", nano_bundle, "--device", phone.address, code=3)
    finally:
        phone.device.plug_in()
    assert phone.address in err
    assert "USB debugging" in err
