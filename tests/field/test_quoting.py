"""Whatever a name is made of, shells of devices hand it on as it is; and no address is an option."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from field.address import ADB, LOCAL, SSH, Address, parse_address
from field.connect import connect
from field.device import Device
from rpi_runtime.errors import UsageError
from tests.conftest import script
from tests.field.names import CHARACTERS, HOSTILE, NAMES, as_they_are, handed_on


@given(st.lists(NAMES, max_size=20))
@settings(max_examples=60)
def test_a_shell_hands_names_on_unchanged(names: list[str]) -> None:
    done = subprocess.run(["/bin/sh", "-c", handed_on(names)], capture_output=True, check=True)
    assert done.stdout == as_they_are(names)


@pytest.fixture(scope="module")
def mksh() -> Path:
    """Android's shell, for this machine."""
    emulation = script("emulation")
    try:
        mirror, host = emulation.debian("apt-get", "dpkg-deb")
        found = emulation.unpacked("mksh", mirror, "bookworm", host, ("mksh",), dependencies=False)
    except emulation.Unavailable as reason:
        pytest.skip(str(reason))
    shell: Path = found / "bin/mksh"
    return shell


@pytest.mark.emulation
@given(names=st.lists(NAMES, max_size=20))
@settings(max_examples=60)
def test_android_s_shell_hands_names_on_unchanged(mksh: Path, names: list[str]) -> None:
    done = subprocess.run([mksh, "-c", handed_on(names)], capture_output=True, check=True)
    assert done.stdout == as_they_are(names)


@pytest.mark.emulation
def test_ssh_hands_names_on_unchanged(sshd: Any) -> None:
    with connect(sshd.address, ask=False) as device:
        check(device, examples=60)


@pytest.mark.emulation
@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed here")
def test_another_login_shell_hands_names_on_unchanged(ssh_configs: Path) -> None:
    """One that does more than sh."""
    with script("sshd").Sshd(shell=shutil.which("bash")) as server:
        (ssh_configs / "bash.conf").symlink_to(server.config)
        with connect(server.address, ask=False) as device:
            check(device, examples=30)


def check(device: Device, examples: int) -> None:
    assert device.run(handed_on(HOSTILE)).out == as_they_are(HOSTILE)

    @given(st.lists(NAMES, min_size=10, max_size=40))
    @settings(max_examples=examples)
    def unchanged(names: list[str]) -> None:
        assert device.run(handed_on(names)).out == as_they_are(names)

    unchanged()


# Addresses

WORDS = st.from_regex(r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,20}", fullmatch=True)
HOSTS = st.one_of(WORDS, st.sampled_from(["10.0.0.7", "fe80::1%eth0", "::1", "raspberrypi.local"]))
PORTS = st.one_of(st.none(), st.integers(1, 65535))
SERIALS = st.one_of(st.just(""), WORDS, st.sampled_from(["10.0.0.7:5555", "adb-3B._adb-tls-connect._tcp"]))


@given(
    st.one_of(
        st.builds(Address, st.just(SSH), host=HOSTS, user=st.one_of(st.just(""), WORDS), port=PORTS),
        st.builds(Address, st.just(ADB), serial=SERIALS),
        st.just(Address(LOCAL)),
    )
)
def test_an_address_reads_back_as_it_is_written(address: Address) -> None:
    assert parse_address(str(address)) == address


@given(
    st.sampled_from(["ssh://-{}", "ssh://-{}@host", "ssh://user@-{}", "ssh://u@-{}:22", "adb://-{}"]),
    CHARACTERS,
)
def test_no_part_of_an_address_may_look_like_an_option(form: str, name: str) -> None:
    with pytest.raises(UsageError):
        parse_address(form.format(f"oProxyCommand={name}"))


@given(st.tuples(st.sampled_from(["", "ssh://", "adb://"]), st.text()).map("".join))
def test_any_text_is_an_address_or_a_mistake(text: str) -> None:
    try:
        found = parse_address(text)
    except UsageError:
        return
    assert parse_address(str(found)) == found
    assert not any(part.startswith("-") for part in (found.host, found.user, found.serial))


def test_a_password_in_an_address_is_refused_and_not_told() -> None:
    with pytest.raises(UsageError, match="an address has no password") as raised:
        parse_address("ssh://pi:s3cret@board:22")
    assert "s3cret" not in f"{raised.value}"
    assert parse_address("ssh://[fe80::1]:22").port == 22
