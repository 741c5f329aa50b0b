"""What the CPU can do decides whether LiteRT's GPU library may be loaded: on a Pi 4 it kills the process."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from delegates.cpu import cpu_features, gpu_library_loads_here

# /proc/cpuinfo of the boards (Raspberry Pi OS, 64 bit), one line of interest per core.
PI_4 = "fp asimd evtstrm crc32 cpuid"
PI_5 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"


def cpuinfo(folder: Path, *cores: str, key: str = "Features") -> Path:
    path = folder / "cpuinfo"
    path.write_text(
        "".join(f"processor\t: {i}\nBogoMIPS\t: 108.00\n{key}\t: {core}\n\n" for i, core in enumerate(cores))
        + "Hardware\t: BCM2835\nModel\t: Raspberry Pi\n"
    )
    return path


def test_a_pi_4_must_not_load_it(tmp_path: Path) -> None:
    verdict = gpu_library_loads_here(cpu_features(cpuinfo(tmp_path, *[PI_4] * 4), "aarch64"))
    assert not verdict.loads
    assert "LSE atomics" in verdict.reason


def test_a_pi_5_loads_it(tmp_path: Path) -> None:
    features = cpu_features(cpuinfo(tmp_path, *[PI_5] * 4), "aarch64")
    assert gpu_library_loads_here(features).loads
    assert "asimddp" in features.names


def test_a_feature_counts_only_if_every_core_has_it(tmp_path: Path) -> None:
    features = cpu_features(cpuinfo(tmp_path, PI_5, PI_5, PI_4), "aarch64")
    assert features.names == set(PI_4.split())
    assert not gpu_library_loads_here(features).loads


def test_an_arm_cpu_that_tells_nothing_gets_the_answer_that_keeps_the_process_alive(tmp_path: Path) -> None:
    for path in (cpuinfo(tmp_path, "Cortex-A72", key="model name"), tmp_path / "absent"):
        verdict = gpu_library_loads_here(cpu_features(path, "aarch64"))
        assert not verdict.loads
        assert "cannot be read" in verdict.reason


def test_the_flags_of_an_x86_cpu_are_read_and_it_loads_it(tmp_path: Path) -> None:
    features = cpu_features(cpuinfo(tmp_path, "fpu sse2 avx2", key="flags"), "x86_64")
    assert features.names == {"fpu", "sse2", "avx2"}
    assert gpu_library_loads_here(features).loads


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="only Linux has /proc/cpuinfo")
def test_this_machine_is_read() -> None:
    features = cpu_features()
    assert features.machine == platform.machine()
    assert features.names
