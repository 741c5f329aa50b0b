"""What is found about a device: the level, what follows, and the remedy. Each is a function of facts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from field.doctor import FINE, PROBLEM, WARNING, Finding, examine
from field.doctor.delegates import for_apps, usable
from field.machine import Frequency, Machine, Node, Python
from tests.field.recorded import NAMES, machine

GB = 10**9


def found(machine: Machine, check: str) -> Finding:
    return next(finding for finding in examine(machine) if finding.check == check)


def checks(machine: Machine, level: str) -> set[str]:
    return {finding.check for finding in examine(machine) if finding.level == level}


PI4, PI5 = machine("pi4_bookworm"), machine("pi5")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_fine_has_a_remedy_and_what_is_fine_has_none(name: str) -> None:
    findings = examine(machine(name))
    assert len({finding.check for finding in findings}) == len(findings)
    for finding in findings:
        assert finding.level in (FINE, WARNING, PROBLEM)
        assert finding.found
        assert bool(finding.remedy) == (finding.level != FINE), finding


def test_a_pi_4_with_the_usual_system_can_do_the_job() -> None:
    assert checks(PI4, PROBLEM) == set()
    assert checks(PI4, WARNING) == {"board.governor"}


def test_a_phone_can_do_the_job_without_root() -> None:
    phone = machine("android_pixel8")
    assert checks(phone, PROBLEM) == checks(phone, WARNING) == set()
    assert "No root" in found(phone, "system").follows
    assert "/data/local/tmp" in found(phone, "system").follows


def test_what_is_not_linux_is_not_served() -> None:
    assert found(replace(PI4, system="Darwin"), "system").level == PROBLEM


# --- CPU ---


def test_without_lse_the_gpu_library_is_left_out_and_the_cpu_path_stays() -> None:
    lse = found(PI4, "cpu.lse")
    assert (lse.level, lse.found) == (FINE, "no LSE atomics")
    assert "132" in lse.follows
    assert found(PI5, "cpu.lse").found == "LSE atomics"
    assert "LSE" in found(PI4, "delegate.gpu").follows


def test_instructions_for_int8_and_fp16_are_told() -> None:
    assert found(PI4, "cpu.dot").found == "no dot product"
    assert found(PI5, "cpu.dot").found == "dot product"
    assert found(PI5, "cpu.i8mm").found == "no int8 matrix multiply"
    assert found(machine("android_pixel8"), "cpu.i8mm").found == "int8 matrix multiply"
    assert found(PI4, "cpu.fp16").found == "no fp16 arithmetic"
    assert found(PI5, "cpu.fp16").found == "fp16 arithmetic"
    assert found(machine("desktop"), "cpu.dot").found == "avx_vnni"


@pytest.mark.parametrize("names", [(), ("sse2", "avx2")], ids=["missing", "of another CPU"])
def test_a_foreign_cpuinfo_switches_xnnpack_off(names: tuple[str, ...]) -> None:
    finding = found(replace(PI5, cpu_names=names), "cpu.features")
    assert finding.level == WARNING
    assert "XNNPACK" in finding.follows


def test_32_bits_on_a_64_bit_kernel_lose_much_and_are_worth_a_new_system() -> None:
    cpu = found(machine("pi3_32bit"), "cpu")
    assert cpu.level == WARNING
    assert "64-bit kernel" in cpu.found
    for lost in ("CompiledModel", "cache of packed weights", "GPU", "int8"):
        assert lost in cpu.follows
    assert "64-bit" in cpu.remedy


@pytest.mark.parametrize("kind", ["armv6l", "i686", "riscv64", ""])
def test_a_cpu_without_a_runtime_is_a_problem(kind: str) -> None:
    assert found(replace(PI4, machine=kind), "cpu").level == PROBLEM


# --- memory and storage ---


def test_memory_says_what_auto_would_take_swap_included() -> None:
    told = found(replace(PI4, available_bytes=1 * GB, swap_free_bytes=GB // 2), "memory.free")
    assert (told.level, told.found) == (FINE, "1,500 MB free with swap; --memory auto takes 1,350 MB")


@pytest.mark.parametrize(
    ("free", "level", "words"),
    [
        (800_000_000, FINE, "Room for 0.6 B"),
        (300_000_000, FINE, "Room for the built-in model"),
        (120_000_000, PROBLEM, "Not even the built-in model"),
    ],
)
def test_free_memory_is_weighed_against_models(free: int, level: str, words: str) -> None:
    finding = found(replace(PI4, available_bytes=free, swap_free_bytes=0), "memory.free")
    assert finding.level == level
    assert finding.follows.startswith(words)


def test_the_limit_of_a_container_counts() -> None:
    told = found(machine("container"), "memory.free").found
    assert told == "453 MB free under the limit of its container; --memory auto takes 408 MB"


def test_memory_that_is_not_told_is_a_warning() -> None:
    assert found(replace(PI4, memory_bytes=0), "memory").level == WARNING


def test_swap_matters_on_a_small_board() -> None:
    small = machine("pi_zero2w")
    assert found(small, "memory.swap").level == WARNING
    assert "zram" in found(small, "memory.swap").remedy
    card = found(replace(small, swap_bytes=GB, swaps=("/var/swap",)), "memory.swap")
    assert card.level == WARNING
    assert "wears" in card.follows
    assert "--memory 275MB" in card.remedy  # nine tenths of what is free without it
    assert found(replace(small, swap_bytes=GB, swaps=("/dev/zram0",)), "memory.swap").level == FINE
    assert found(PI4, "memory.swap").level == FINE
    assert found(replace(PI4, swap_bytes=0, swaps=()), "memory.swap").level == FINE


def test_free_space_is_that_of_a_runtime_and_then_that_of_models() -> None:
    assert found(machine("pi_zero2w"), "disk.free").level == PROBLEM
    assert found(replace(PI4, free_bytes=GB), "disk.free").level == WARNING
    assert found(replace(PI4, free_bytes=2 * GB), "disk.free").level == FINE


def test_a_place_must_be_writable_and_run_programs() -> None:
    closed = found(replace(PI4, place_is_writable=False), "disk.place")
    noexec = found(replace(PI4, place_allows_programs=False), "disk.place")
    assert closed.level == noexec.level == PROBLEM
    assert "--prefix" in closed.remedy
    assert "noexec" in noexec.found


# --- software ---


def test_a_c_library_that_wheels_cannot_use_asks_for_an_own_python() -> None:
    for finding in (
        found(machine("alpine"), "libc"),
        found(replace(PI4, libc_version="2.24"), "libc"),
        found(replace(PI4, libc="", libc_version=""), "libc"),
    ):
        assert finding.level == WARNING
        assert "--python own" in finding.remedy
    assert found(replace(PI4, libc_version="2.27"), "libc").level == FINE
    # As numbers: 2.4 is older than 2.27.
    assert found(replace(PI4, libc_version="2.4"), "libc").level == WARNING


def test_a_missing_libstdcxx_is_told() -> None:
    finding = found(replace(PI4, libraries=()), "libc.libstdc++")
    assert finding.level == WARNING
    assert "apt install libstdc++6" in finding.remedy


def python(version: str, bits: int = 64, missing: tuple[str, ...] = (), **packages: str) -> Python:
    named = {name.replace("_", "-"): value for name, value in packages.items()}
    return Python(version, f"/usr/bin/python{version}", bits, missing, named, "/usr")


@pytest.mark.parametrize("version", ["3.11.2", "3.12.3", "3.13.5"])
def test_a_python_that_packages_are_made_for_is_fine(version: str) -> None:
    assert found(replace(PI4, pythons=(python(version),)), "python").level == FINE


@pytest.mark.parametrize(
    ("pythons", "word"),
    [
        ((), "none"),
        ((python("3.9.2"),), "3.9.2"),
        ((python("3.15.0"),), "3.15.0"),
        ((python("3.10.4"),), "3.10.4"),
        ((python("3.11.2", bits=32),), "32 bits"),
        ((python("3.11.2", missing=("ctypes", "json")),), "missing ctypes, json"),
    ],
)
def test_any_other_python_is_a_warning_since_a_package_can_bring_one(
    pythons: tuple[Python, ...], word: str
) -> None:
    finding = found(replace(PI4, pythons=pythons), "python")
    assert finding.level == WARNING
    assert word in finding.found
    assert "--python own" in finding.remedy


def test_the_minimal_python_of_debian_is_completed_with_apt() -> None:
    assert "sudo apt install python3" in found(machine("pi_zero2w"), "python").remedy


def test_a_second_python_that_fits_is_enough() -> None:
    assert found(machine("container"), "python").found == "3.11.2, /usr/bin/python3.11"


def test_what_was_deployed_is_named() -> None:
    told = found(PI5, "runtime").found
    assert "5f0c2b7a9d31e846" in told
    assert "panels" in told
    assert found(PI4, "runtime").found == "none yet"


def test_tflite_runtime_with_numpy_2_does_not_start() -> None:
    finding = found(machine("pi3_32bit"), "runtime.tflite")
    assert finding.level == WARNING  # what is deployed brings a NumPy of its own
    assert "SystemError" in finding.follows
    assert "numpy<2" in finding.remedy
    older = replace(
        machine("pi3_32bit"), pythons=(python("3.11.2", 32, numpy="1.24.2", tflite_runtime="2.14.0"),)
    )
    assert found(older, "runtime.tflite").level == FINE


def test_an_unchecked_version_of_litert_is_a_warning() -> None:
    assert found(machine("desktop"), "runtime.litert").level == WARNING
    checked = replace(PI4, pythons=(python("3.11.2", ai_edge_litert="2.3.0"),))
    finding = found(checked, "runtime.litert")
    assert finding.level == FINE
    assert "no LSE" in finding.follows


def test_tools_that_an_installation_uses_must_be_there() -> None:
    finding = found(machine("alpine"), "tools")
    assert (finding.level, finding.found) == (PROBLEM, "missing: sha256sum")


# --- delegates ---


def test_the_gpu_of_a_pi_5_needs_a_group() -> None:
    finding = found(PI5, "delegate.gpu")
    assert finding.level == WARNING
    assert finding.remedy == "sudo usermod -aG render $USER, then log in again."
    opened = replace(PI5, nodes=(Node("/dev/dri/renderD128", True),))
    assert found(opened, "delegate.gpu").level == FINE
    assert usable(PI5) == ("cpu",)
    assert usable(opened) == ("cpu", "gpu")


def test_no_delegate_is_no_problem() -> None:
    bare = replace(PI5, libraries=("/usr/lib/libstdc++.so.6",), vulkan_drivers=(), nodes=())
    for check in ("delegate.gpu", "delegate.npu"):
        assert found(bare, check).level == FINE
    assert "no Vulkan driver" in found(replace(PI5, vulkan_drivers=()), "delegate.gpu").found


def test_a_phones_drivers_are_for_apps_alone() -> None:
    phone = machine("android_pixel8")
    assert "an app can use it" in found(phone, "delegate.gpu").follows
    assert found(phone, "delegate.nnapi").follows.startswith("Deprecated since Android 15.")
    assert found(replace(phone, android_api=35), "delegate.nnapi").follows.startswith("Deprecated here.")
    assert "before 8.1" in found(replace(phone, android_api=26), "delegate.nnapi").found
    assert usable(phone) == ("cpu",)
    assert for_apps(phone) == ("OpenCL", "Vulkan", "NNAPI")


def test_nnapi_is_asked_of_phones_alone() -> None:
    assert "delegate.nnapi" not in {finding.check for finding in examine(PI4)}


def test_of_npus_only_openvino_is_used() -> None:
    assert usable(machine("desktop")) == ("cpu", "gpu", "npu:openvino")
    assert found(machine("desktop"), "delegate.npu").found == "OpenVINO 2026.3.1"
    hailo = replace(PI5, libraries=(*PI5.libraries, "/usr/lib/libhailort.so.4.20.0"))
    assert "Hailo" in found(hailo, "delegate.npu").found
    assert usable(hailo) == ("cpu",)


# --- the board ---


def test_closed_cameras_and_firmware_need_the_group_video() -> None:
    finding = found(machine("pi_zero2w"), "groups.video")
    assert finding.level == WARNING
    assert "usermod -aG video" in finding.remedy
    assert found(PI4, "groups.video").level == FINE


@pytest.mark.parametrize(
    ("bits", "level", "words"),
    [
        (0, FINE, "none since the start"),
        (0x1, PROBLEM, "under-voltage now"),
        (0x2, PROBLEM, "frequency capped now"),
        (0x4, PROBLEM, "throttled now"),
        (0x8, PROBLEM, "soft temperature limit now"),
        (0x10000, WARNING, "under-voltage since the start"),
        (0x20000, WARNING, "frequency capped since the start"),
        (0x40000, WARNING, "throttled since the start"),
        (0x80000, WARNING, "soft temperature limit since the start"),
        (0x50005, PROBLEM, "under-voltage now, throttled now"),
    ],
)
def test_what_the_firmware_of_a_pi_says_of_power_and_heat(bits: int, level: str, words: str) -> None:
    finding = found(replace(PI4, throttled=bits), "board.throttling")
    assert finding.level == level
    assert finding.found.startswith(words)


def test_under_voltage_asks_for_power_and_heat_for_cooling() -> None:
    assert "power supply" in found(replace(PI4, throttled=0x1), "board.throttling").remedy
    assert "heat sink" in found(replace(PI4, throttled=0x80000), "board.throttling").remedy
    assert "heat sink" not in found(replace(PI4, throttled=0x10003), "board.throttling").remedy


def test_80_degrees_are_a_warning_and_a_broken_sensor_is_none() -> None:
    assert found(replace(PI4, temperatures_c={"cpu-thermal": 80.0}), "board.temperature").level == WARNING
    hot = replace(PI4, temperatures_c={"cpu-thermal": 61.0, "broken": 3276.7, "off": -273.0})
    assert found(hot, "board.temperature").found == "61 °C at most (cpu-thermal)"


@pytest.mark.parametrize(
    ("governor", "level"),
    [("performance", FINE), ("schedutil", FINE), ("ondemand", WARNING), ("powersave", WARNING)],
)
def test_a_governor_that_waits_disturbs_measuring(governor: str, level: str) -> None:
    finding = found(replace(PI4, frequencies=(Frequency(governor, 600, 1800),) * 4), "board.governor")
    assert finding.level == level
    assert ("scaling_governor" in finding.remedy) == (level == WARNING)


def test_the_powersave_of_intels_driver_follows_the_load() -> None:
    assert "lowest clock" not in found(machine("desktop"), "board.governor").follows
    slow = replace(PI4, frequencies=(Frequency("powersave", 600, 1800),))
    assert "lowest clock" in found(slow, "board.governor").follows


def test_the_clock() -> None:
    assert found(PI4, "board.clock").level == FINE
    assert found(machine("alpine"), "board.clock").level == PROBLEM  # 1970
    behind = found(machine("pi_zero2w"), "board.clock")
    assert behind.level == WARNING
    assert behind.found.startswith("40 days behind this machine's")
    assert found(replace(PI4, clock_s=119.0), "board.clock").level == FINE
    assert found(replace(PI4, clock_s=121.0), "board.clock").found.startswith("2 minutes ahead of")
    assert found(replace(PI4, synchronized=False), "board.clock").level == WARNING
    assert found(replace(PI4, synchronized=None), "board.clock").level == FINE
