"""Facts about a device: one script in the shells that devices have, and what is read of its output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from field.connect import connect
from field.device import DeviceError
from field.doctor import examine
from field.machine import Frequency, Machine, Node, probe, read
from tests.conftest import script
from tests.field.recorded import NAMES, NOW, machine, text
from toolkit.report import plain

ROOT = Path(__file__).resolve().parents[2]
PROBE = ROOT / "field" / "data" / "probe.sh"


def test_this_machine_is_what_python_says_of_it() -> None:
    with connect("local") as device:
        here = probe(device)
    uname = os.uname()
    assert (here.system, here.kernel, here.kernel_machine) == (uname.sysname, uname.release, uname.machine)
    assert here.cores == os.cpu_count()
    assert here.memory_bytes == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < here.available_bytes <= here.memory_bytes
    assert here.uid == os.getuid()
    assert here.libc, here.libc_version == tuple(os.confstr("CS_GNU_LIBC_VERSION").split())  # type: ignore[union-attr]
    assert here.boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert abs(here.clock_s) < 30
    assert here.place_is_writable == os.access(here.place, os.W_OK)


def test_the_python_that_asks_is_among_those_of_this_machine() -> None:
    """Also one of a virtual environment, which is not the first on the path."""
    with connect("local") as device:
        pythons = probe(device).pythons
    ours = next(python for python in pythons if python.executable == sys.executable)
    assert ours.version == "{}.{}.{}".format(*sys.version_info[:3])
    assert ours.packages["ai-edge-litert"] == "2.3.0"
    assert ours.missing == ()
    assert len({(python.version, python.prefix) for python in pythons}) == len(pythons)


def test_a_shell_that_cannot_run_the_script_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with connect("local") as device:
        monkeypatch.setattr(device, "command", lambda script: ["/bin/sh", "-c", "cat >/dev/null; exit 0"])
        with pytest.raises(Exception, match="local"):
            probe(device)
        monkeypatch.setattr(
            device,
            "command",
            lambda script: ["/bin/sh", "-c", "echo no such thing; printf '\\n\\036%d\\n' 0"],
        )
        with pytest.raises(DeviceError, match="its shell cannot be asked"):
            probe(device)


def test_a_pi_4_of_64_bits() -> None:
    pi = machine("pi4_bookworm")
    assert pi.model == "Raspberry Pi 4 Model B Rev 1.4"
    assert (pi.machine, pi.cpu_model, pi.cores) == ("aarch64", "Cortex-A72", 4)
    assert "atomics" not in pi.cpu_names
    assert (pi.os, pi.os_id, pi.os_codename) == ("Debian GNU/Linux 12 (bookworm)", "debian", "bookworm")
    assert (pi.libc, pi.libc_version) == ("glibc", "2.36")
    assert pi.memory_bytes == 3885396 * 1024
    assert (pi.swaps, pi.swap_free_bytes) == (("/var/swap",), 524284 * 1024)
    assert pi.free_bytes == 23913936 * 1024
    assert pi.frequencies == (Frequency("ondemand", 600.0, 1800.0),) * 4
    assert pi.temperatures_c == {"cpu-thermal": 48.686}
    assert pi.throttled == 0
    assert Node("/dev/dri/renderD128", True) in pi.nodes
    assert pi.library("libvulkan.so.1") == "/usr/lib/aarch64-linux-gnu/libvulkan.so.1"
    assert len(pi.libraries) == 3  # /lib is a link to /usr/lib
    assert (pi.clock_s, pi.synchronized) == (0.0, True)
    assert pi.pythons[0].packages == {"numpy": "1.24.2"}


def test_a_pi_5_that_something_was_deployed_to() -> None:
    pi = machine("pi5")
    assert {"atomics", "asimddp", "fphp"} <= set(pi.cpu_names)
    assert (pi.prefix, pi.runtime_id) == ("/home/pi/.local/share/hypervl-edge", "5f0c2b7a9d31e846")
    assert (pi.bundle_id, pi.bundle_name) == ("a91be0c4d2f37650", "panels")
    assert pi.throttled == 0x50000


def test_a_32_bit_system_on_a_64_bit_kernel_is_what_its_programs_are() -> None:
    pi = machine("pi3_32bit")
    assert (pi.machine, pi.kernel_machine) == ("armv7l", "aarch64")
    assert pi.cpu_model == "Cortex-A53"
    assert pi.pythons[0].bits == 32


def test_a_pi_zero_has_programs_with_the_header_of_a_pi_2_and_is_known_by_its_kernel() -> None:
    assert read(text("pi3_32bit").replace("Linux\naarch64", "Linux\narmv6l"), NOW).machine == "armv6l"


def test_a_phone_has_three_kinds_of_cores_and_the_features_that_all_have() -> None:
    phone = machine("android_pixel8")
    assert phone.is_android
    assert (phone.model, phone.android_api, phone.soc) == ("Google Pixel 8", 34, "Tensor G3")
    assert phone.cpu_model == "Cortex-A510, Cortex-A715, Cortex-X3"
    assert "i8mm" in phone.cpu_names
    assert (phone.libc, phone.place) == ("bionic", "/data/local/tmp")
    assert phone.place_allows_programs
    assert phone.pythons == ()


def test_a_desktop_is_read_by_the_names_of_its_kernel() -> None:
    desktop = machine("desktop")
    assert (desktop.model, desktop.cpu_model, desktop.cores) == (
        "XPS 13 9320",
        "12th Gen Intel(R) Core(TM) i5-1240P",
        16,
    )
    assert "avx_vnni" in desktop.cpu_names


def test_musl_and_a_place_that_is_read_only_and_noexec() -> None:
    alpine = machine("alpine")
    assert (alpine.libc, alpine.libc_version) == ("musl", "1.2.5")
    assert (alpine.place_is_writable, alpine.place_allows_programs) == (False, False)
    assert alpine.time_s == 93784


def test_a_container_leaves_its_limit_less_what_cannot_be_dropped() -> None:
    container = machine("container")
    assert container.container_bytes == 536870912 - 115343360 + 10485760 + 20971520
    assert container.disk_bytes == 490048492 * 1024


def test_a_mount_inside_another_decides_whether_programs_run() -> None:
    inside = text("pi4_bookworm").replace("@mount\n", "@mount\nrw,noexec,relatime /home\n")
    beside = text("pi4_bookworm").replace("@mount\n", "@mount\nrw,noexec,relatime /hom\n")
    assert not read(inside, NOW).place_allows_programs
    assert read(beside, NOW).place_allows_programs


def test_lines_that_end_as_on_a_terminal_say_the_same() -> None:
    for name in NAMES:
        assert read(text(name).replace("\n", "\r\n"), NOW) == machine(name)


@given(st.text())
def test_any_text_can_be_read(told: str) -> None:
    json.dumps(plain(read(told, NOW)))


_PIECES = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["-", "²", "٣", "=", "@", "\t", "9" * 400, "-1", "0x", "max", "\x00", "1e999", "noexec"]),
)


@given(st.data())
def test_a_recorded_device_of_which_any_part_is_garbled_can_be_read_and_examined(data: st.DataObject) -> None:
    lines = text(data.draw(st.sampled_from(NAMES))).split("\n")
    for _ in range(data.draw(st.integers(1, 12))):
        at = data.draw(st.integers(0, len(lines) - 1))
        words = lines[at].split(" ")
        words[data.draw(st.integers(0, len(words) - 1))] = data.draw(_PIECES)
        lines[at] = " ".join(words)
    found = read("\n".join(lines), NOW)
    json.dumps(plain(found), allow_nan=False)
    assert examine(found)


@pytest.fixture(scope="session")
def shells() -> Path:
    """dash, BusyBox, and mksh with toybox, which Android has: of Debian's packages, unpacked."""
    emulation = script("emulation")
    try:
        mirror, host = emulation.debian("apt-get", "dpkg-deb")
        found: Path = emulation.unpacked(
            "shells",
            mirror,
            "bookworm",
            host,
            ("busybox-static", "dash", "mksh", "toybox"),
            dependencies=False,
        )
    except emulation.Unavailable as reason:
        pytest.skip(str(reason))
    return found / "bin"


def programs(folder: Path, tools: Path, *listing: str) -> Path:
    """A folder with the programs of a multi-call binary, and no other."""
    folder.mkdir()
    for name in subprocess.run([tools, *listing], capture_output=True, text=True, check=True).stdout.split():
        (folder / name).symlink_to(tools)
    return folder


def asked(*shell: Path | str, path: Path | str) -> Machine:
    done = subprocess.run(
        [*shell, PROBE], env={"PATH": str(path), "HOME": "/"}, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout.endswith("@end\n")
    return read(done.stdout, NOW)


def lasting(found: Machine) -> Machine:
    """What does not change from one asking to the next, and needs no program that a shell may not have."""
    return replace(
        found,
        available_bytes=0,
        swap_free_bytes=0,
        container_bytes=None,
        free_bytes=0,  # toybox counts blocks that are root's alone
        time_s=0,
        clock_s=0,
        up_s=0,
        frequencies=(),
        temperatures_c={},
        synchronized=None,
        pythons=(),
        tools=(),
        vulkan_drivers=(),
    )


@pytest.mark.emulation
def test_the_shells_of_devices_tell_the_same(shells: Path, tmp_path: Path) -> None:
    busybox = programs(tmp_path / "busybox", shells / "busybox", "--list")
    toybox = programs(tmp_path / "toybox", shells / "toybox")
    ours = asked(shells / "dash", path="/usr/bin:/bin")
    assert ours.cores
    assert lasting(asked(shells / "busybox", "sh", path=busybox)) == lasting(ours)
    assert lasting(asked(shells / "mksh", path=toybox)) == lasting(ours)


@pytest.mark.emulation
def test_what_has_getprop_is_a_phone(shells: Path, tmp_path: Path) -> None:
    toybox = programs(tmp_path / "toybox", shells / "toybox")
    getprop = toybox / "getprop"
    properties = {
        "ro.product.manufacturer": "Google",
        "ro.product.model": "Pixel 8",
        "ro.build.version.release": "14",
        "ro.build.version.sdk": "34",
        "ro.soc.model": "Tensor G3",
    }
    cases = "".join(f"{name}) echo '{value}' ;;\n" for name, value in properties.items())
    getprop.write_text(f"#!{shells / 'mksh'}\ncase $1 in\n{cases}esac\n")
    getprop.chmod(0o755)
    phone = asked(shells / "mksh", path=toybox)
    assert (phone.os, phone.os_id, phone.android_api) == ("Android 14", "android", 34)
    assert (phone.model, phone.soc) == ("Google Pixel 8", "Tensor G3")
