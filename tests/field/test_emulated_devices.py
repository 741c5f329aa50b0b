"""What field asks of a device, on real ones: a server of this machine and a board over OpenSSH, a phone over
adb. And that board and phone are what they are said to be."""

from __future__ import annotations

import hashlib
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from field.connect import connect
from field.device import Device, DeviceError, DeviceLost
from rpi_runtime.errors import ResourceError
from tests.field.names import HOSTILE, as_they_are, handed_on

pytestmark = pytest.mark.emulation


class Reached:
    """An emulated device and our connection to it."""

    def __init__(self, emulated: Any, folder: str) -> None:
        self.emulated, self.folder = emulated, folder  # where its user may write
        self.device: Device = connect(emulated.address, ask=False, connect_seconds=30)

    def cut(self) -> None:
        """Ends its connections from the other side."""
        cut = getattr(self.emulated, "cut_connections", None) or self.emulated.unplug
        cut()

    def mend(self) -> None:
        if hasattr(self.emulated, "plug_in"):
            assert self.emulated.plug_in()


@pytest.fixture(scope="module", params=["sshd", "board", "phone"])
def reached(request: pytest.FixtureRequest) -> Iterator[Reached]:
    emulated = request.getfixturevalue(request.param)
    found = Reached(emulated, {"phone": "/data/local/tmp"}.get(request.param, "."))
    with found.device:
        yield found


@pytest.fixture
def device(reached: Reached) -> Device:
    return reached.device


# What is asked of each


def test_a_script_has_its_output_its_errors_and_its_code(device: Device) -> None:
    done = device.run("echo out; echo err >&2; exit 7", check=False)
    assert (done.code, done.out, done.err) == (7, b"out\n", b"err\n")
    assert [device.run(f"exit {code}", check=False).code for code in (0, 1, 126, 255)] == [0, 1, 126, 255]
    with pytest.raises(DeviceError, match="no such thing"):
        device.run("echo no such thing >&2; exit 1")


def test_output_that_ends_without_a_line_is_as_it_is(device: Device) -> None:
    for text in ("", "x", "\n", "\n\n", "a\n\x1e", "\x1e1\n", "a\r\n"):
        assert device.run(handed_on([text])).out == as_they_are([text])


def test_five_megabytes_come_and_go_unchanged(device: Device, reached: Reached) -> None:
    data = random.Random(7).randbytes(5 << 20)
    there = f"{reached.folder}/five"
    told = device.run(f"cat > {there}; sha256sum < {there}", stdin=data).text.split()[0]
    assert told == hashlib.sha256(data).hexdigest()
    assert device.run(f"cat {there}; rm {there}").out == data


def test_long_output_comes_in_pieces(device: Device) -> None:
    sizes: list[int] = []
    device.stream("head -c 12000000 /dev/zero", lambda piece: sizes.append(len(piece)))
    assert sum(sizes) == 12_000_000
    assert max(sizes) <= 1 << 19


def test_a_program_may_leave_what_it_is_given(device: Device) -> None:
    assert device.run("echo done", stdin=bytes(3 << 20)).out == b"done\n"
    assert device.run("head -c 3", stdin=b"abc" + bytes(3 << 20)).out == b"abc"


def test_what_its_user_writes_is_there(device: Device, reached: Reached) -> None:
    device.run(f"mkdir {reached.folder}/made && cd {reached.folder}/made && echo written > file")
    assert device.run(f"cat {reached.folder}/made/file; rm -r {reached.folder}/made").out == b"written\n"


def test_hostile_names_arrive(device: Device) -> None:
    assert device.run(handed_on(HOSTILE)).out == as_they_are(HOSTILE)


def test_a_connection_that_is_cut_is_lost_and_the_next_command_makes_a_new_one(
    device: Device, reached: Reached
) -> None:
    device.run("true")
    cutter = threading.Timer(1, reached.cut)
    cutter.start()
    with pytest.raises(DeviceLost) as lost:
        device.run("echo begun; sleep 60")
    cutter.join()
    assert lost.value.message.startswith(f"{reached.emulated.address}: ")
    assert lost.value.remedy
    reached.mend()
    assert device.run("echo again").out == b"again\n"


def test_a_device_that_vanishes_is_lost_in_time_and_found_again(device: Device, reached: Reached) -> None:
    device.run("true")
    reached.emulated.pause()
    try:
        begun = time.monotonic()
        with pytest.raises(DeviceLost, match="it says nothing for 3 s"):
            device.run("true", timeout=3)
        assert time.monotonic() - begun < 8
    finally:
        reached.emulated.resume()
    assert device.run("echo back").out == b"back\n"


# OpenSSH


@pytest.fixture
def lost_at(sshd: Any) -> Callable[..., DeviceLost]:
    def lost(address: str = "") -> DeviceLost:
        with (
            connect(address or sshd.address, ask=False, connect_seconds=5) as device,
            pytest.raises(DeviceLost) as told,
        ):
            device.run("true")
        return told.value

    return lost


@pytest.fixture
def known_hosts(sshd: Any) -> Iterator[Path]:
    path: Path = sshd.known_hosts
    before = path.read_text()
    yield path
    path.write_text(before)


def test_a_board_whose_key_is_unknown_is_not_talked_to(
    sshd: Any, known_hosts: Path, lost_at: Callable[..., DeviceLost]
) -> None:
    known_hosts.write_text("")
    told = lost_at()
    assert "Host key verification failed" in told.message
    assert f"ssh-keygen -R '[127.0.0.1]:{sshd.port}'" in told.remedy


def test_a_board_with_another_key_than_before_is_not_talked_to(
    sshd: Any, known_hosts: Path, lost_at: Callable[..., DeviceLost], tmp_path: Path
) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {(tmp_path / 'other.pub').read_text()}")
    assert "Host key verification failed" in lost_at().message


def test_without_a_key_there_the_remedy_is_to_copy_one(sshd: Any, lost_at: Callable[..., DeviceLost]) -> None:
    keys = sshd.authorized_keys.read_text()
    sshd.authorized_keys.write_text("")
    try:
        told = lost_at()
    finally:
        sshd.authorized_keys.write_text(keys)
    assert "Permission denied" in told.message
    user = sshd.address.removeprefix("ssh://").partition("@")[0]
    assert f"ssh-copy-id -p {sshd.port} {user}@127.0.0.1" in told.remedy


def test_where_nobody_listens_or_no_name_is_known_it_is_said(lost_at: Callable[..., DeviceLost]) -> None:
    refused, unknown = lost_at("ssh://pi@127.0.0.1:1"), lost_at("ssh://nobody.invalid")
    assert "Connection refused" in refused.message
    assert "Is ssh enabled" in refused.remedy
    assert "Could not resolve" in unknown.message
    assert "Check the name" in unknown.remedy


def test_what_a_program_said_is_no_reason_for_a_loss(sshd: Any) -> None:
    with connect(sshd.address, ask=False) as device:
        threading.Timer(1, sshd.cut_connections).start()
        with pytest.raises(DeviceLost) as told:
            device.run("echo cat: x: Permission denied >&2; sleep 60")
    assert "Permission denied" not in told.value.message


def test_the_user_s_own_multiplexing_and_commands_do_not_come_between(sshd: Any, ssh_configs: Path) -> None:
    theirs = ssh_configs / "a-user.conf"
    theirs.write_text(
        f'Host *\nControlMaster auto\nControlPath "{ssh_configs}/%C"\nControlPersist 10m\n'
        "RemoteCommand id\nRequestTTY yes\n"
    )
    try:
        with connect(sshd.address, ask=False) as device:
            assert device.run("echo hi").out == b"hi\n"
            assert device.run("cat", stdin=b"\x00\x04\r\n").out == b"\x00\x04\r\n"
    finally:
        theirs.unlink()
    assert not [path for path in ssh_configs.iterdir() if path.is_socket()]


# adb


def test_the_only_phone_needs_no_name_and_of_two_one_must_be_named(phone: Any) -> None:
    with connect("adb://") as device:
        assert device.run("getprop ro.product.cpu.abi").out == b"arm64-v8a\n"
    other = f"localhost:{phone.port}"
    subprocess.run(["adb", "connect", other], check=True, capture_output=True)
    try:
        with connect("adb://") as device, pytest.raises(ResourceError) as told:
            device.run("true")
        assert f"adb://{phone.serial}" in told.value.remedy
        with connect(f"adb://{other}") as device:
            assert device.run("echo named").out == b"named\n"
    finally:
        subprocess.run(["adb", "disconnect", other], check=True, capture_output=True)


def test_a_phone_that_is_not_there_is_told_with_what_to_do(phone: Any) -> None:
    with connect("adb://127.0.0.1:1") as device, pytest.raises(DeviceLost) as told:
        device.run("true")
    assert "not connected" in told.value.message
    assert "adb connect 127.0.0.1:1" in told.value.remedy


def test_without_adb_it_is_said_what_to_install(
    phone: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with connect(phone.address) as device, pytest.raises(ResourceError, match="adb is not installed"):
        device.run("true")


# What is emulated


def test_a_board_has_nothing_of_ours_and_a_phone_nothing_of_gnu(board: Any, phone: Any) -> None:
    bare = board.run("python3 -c 'import sys; print(sys.version_info[:2])'; ls /opt", user="pi")
    assert bare.stdout == "(3, 11)\n"
    assert board.run("python3 -c 'import numpy'").returncode
    assert phone.run("ls /bin /lib /usr /tmp 2>/dev/null; command -v awk bash gcc python3").stdout == ""
    assert phone.run("cat --version").stdout.startswith("toybox")
    assert phone.run("id -u; getprop ro.build.version.sdk").stdout == "2000\n34\n"
    assert phone.run("echo no > /system/x").returncode
    assert phone.run("cp /system/bin/toybox /sdcard/x; chmod +x /sdcard/x; /sdcard/x true").returncode


def test_a_full_disk_is_full(board: Any) -> None:
    board.leave_free(30)
    try:
        done = board.run("head -c 40000000 /dev/zero > ~/big", user="pi")
        assert "No space left" in done.stderr
    finally:
        board.run("rm -f /home/pi/big")
        board.leave_free(3000)


def test_what_was_written_outlives_a_reboot_and_power_that_is_cut(board: Any) -> None:
    board.run("echo kept > ~/kept", user="pi")
    before = board.boot_id
    board.reboot()
    assert board.run("cat ~/kept", user="pi").stdout == "kept\n"
    board.reboot(power_cut=True)
    assert board.run("cat ~/kept", user="pi").stdout == "kept\n"
    assert board.boot_id != before


def test_a_phone_comes_back_from_a_reboot_with_what_was_written(phone: Any) -> None:
    phone.run("echo kept > /data/local/tmp/kept")
    before = phone.boot_id
    phone.reboot()
    assert phone.run("cat /data/local/tmp/kept").stdout == "kept\n"
    assert phone.boot_id != before
    with connect(phone.address) as device:
        assert device.run("echo hi").out == b"hi\n"


def test_nothing_of_them_listens_but_on_this_machine(sshd: Any, board: Any, phone: Any) -> None:
    ports = {sshd.port, board.port, phone.port, phone.server_port}
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            address, _, port = local.partition(":")
            if state == "0A" and int(port, 16) in ports:  # it listens
                found[int(port, 16)] = address
    assert found == dict.fromkeys(ports, "0100007F")
