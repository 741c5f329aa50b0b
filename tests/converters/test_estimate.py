"""A convert says what it needs, knows what the host has, and does not start what cannot end."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from converters import estimate, host
from converters.estimate import StageNeed
from converters.host import Resources
from converters.options import ConvertOptions, Plan, plan
from converters.pipeline import stages_of
from converters.stages import Stage
from hypervl.config import preset
from rpi_runtime.errors import ResourceError

GB = 10**9
PLENTY = Resources(64 * GB, "memory of this machine", 1000 * GB)
KNOWN = {"fingerprint": "0", "has_chat_template": True}
# Parameters of the 0.6b preset's graphs.
SMALL = {"vrc": 4 * 10**6, "vision_base": 93 * 10**6, "vision_large": 305 * 10**6, "decoder": 596 * 10**6}
SMALL["embedding"] = 151936 * 1024


def a_plan(recipe: str = "int8") -> Plan:
    return plan(ConvertOptions(Path("c"), Path("b"), recipe=recipe), preset("0.6b"))


def all_stages(decided: Plan) -> list[Stage]:
    return stages_of(decided, Path("c"), KNOWN)


def needs(recipe: str = "int8", available: Resources = PLENTY) -> estimate.Needs:
    decided = a_plan(recipe)
    return estimate.needs(all_stages(decided), decided, SMALL, available)


def need(found: estimate.Needs, stage: str) -> StageNeed:
    return next(s for s in found.stages if s.stage == stage)


def test_every_stage_has_its_need() -> None:
    assert [s.stage for s in needs().stages] == [s.name for s in all_stages(a_plan())]
    assert all(s.memory_bytes > 0 for s in needs().stages)


def test_the_0_6b_model_is_expected_to_stay_under_4_gb() -> None:
    assert 3 * GB < needs().memory_bytes < 4 * GB


def test_float_graphs_and_small_graphs_both_take_disk() -> None:
    found = needs()
    assert need(found, "export decoder").disk_bytes > 2.38 * GB
    assert 0.59 * GB < need(found, "quantize decoder").disk_bytes < 0.8 * GB
    assert need(needs("int4"), "quantize decoder").disk_bytes < need(found, "quantize decoder").disk_bytes
    assert need(needs("fp32"), "quantize decoder").disk_bytes > 2.38 * GB
    assert need(found, "embedding").disk_bytes > 155_000_000


def test_what_is_finished_needs_nothing_more() -> None:
    decided = a_plan()
    rest = all_stages(decided)[-3:]
    found = estimate.needs(rest, decided, SMALL, PLENTY)
    assert found.disk_bytes < 0.3 * GB
    nothing = estimate.needs([], decided, SMALL, Resources(0, "memory of this machine", 0))
    assert (nothing.memory_bytes, nothing.disk_bytes) == (0, 0)
    estimate.require(nothing)


def test_too_little_memory_is_refused_with_both_numbers() -> None:
    with pytest.raises(ResourceError) as caught:
        estimate.require(needs(available=dataclasses.replace(PLENTY, memory_bytes=2 * GB)))
    message = caught.value.message
    assert "not enough memory: stage '" in message
    assert "2,000 MB are free (memory of this machine)" in message
    assert f"needs about {needs().memory_bytes / 1e6:,.0f} MB" in message
    assert "--components" in caught.value.remedy


def test_too_little_disk_is_refused_with_both_numbers() -> None:
    with pytest.raises(ResourceError) as caught:
        estimate.require(needs(available=dataclasses.replace(PLENTY, disk_bytes=GB)))
    assert (
        f"not enough disk: converting needs about {needs().disk_bytes / 1e6:,.0f} MB" in caught.value.message
    )
    assert "1,000 MB are free" in caught.value.message


def test_enough_is_enough() -> None:
    found = needs()
    exact = dataclasses.replace(
        found, host=Resources(found.memory_bytes, "memory of this machine", found.disk_bytes)
    )
    estimate.require(exact)


# What the host has: kernel files of a pretended machine.


def machine(root: Path, available_mb: int = 8000, swap_mb: int = 0) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(
        f"MemTotal: 16000000 kB\nMemAvailable: {available_mb * 1000} kB\nSwapFree: {swap_mb * 1000} kB\n"
    )


def group(root: Path, path: str, **files: str) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def version_2(root: Path, path: str, inside: str = "/") -> None:
    (root / "proc/self/cgroup").write_text(f"0::{path}\n")
    (root / "proc/self/mountinfo").write_text(
        f"30 23 0:26 {inside} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw,nsdelegate\n"
    )


def test_a_plain_machine_has_what_the_kernel_calls_available(tmp_path: Path) -> None:
    machine(tmp_path)
    assert host.memory_available(tmp_path) == (8000 * 1000 * 1024, "memory of this machine")


def test_swap_counts_and_is_named(tmp_path: Path) -> None:
    machine(tmp_path, swap_mb=2000)
    assert host.memory_available(tmp_path) == (10_000 * 1000 * 1024, "memory and swap of this machine")


def test_a_container_has_its_limit_less_what_it_uses_without_cached_files(tmp_path: Path) -> None:
    machine(tmp_path)
    version_2(tmp_path, "/")
    group(
        tmp_path,
        "sys/fs/cgroup",
        memory__max=str(3 * GB),
        memory__current=str(2 * GB),
        memory__stat=f"anon {GB}\ninactive_file {GB // 2}\nactive_file {GB // 4}",
    )
    free, source = host.memory_available(tmp_path)
    assert free == 3 * GB - 2 * GB + GB * 3 // 4
    assert "limit of the control group" in source


def test_the_tightest_group_on_the_way_up_decides(tmp_path: Path) -> None:
    machine(tmp_path)
    version_2(tmp_path, "/user/job")
    group(tmp_path, "sys/fs/cgroup/user/job", memory__max="max", memory__current=str(GB))
    group(tmp_path, "sys/fs/cgroup/user", memory__max=str(4 * GB), memory__current=str(GB))
    free, source = host.memory_available(tmp_path)
    assert free == 3 * GB
    assert source.endswith("sys/fs/cgroup/user")


def test_a_container_that_sees_only_its_own_part_of_the_tree_is_understood(tmp_path: Path) -> None:
    machine(tmp_path)
    version_2(tmp_path, "/docker/abc", inside="/docker/abc")
    group(tmp_path, "sys/fs/cgroup", memory__max=str(2 * GB), memory__current="0")
    assert host.memory_available(tmp_path)[0] == 2 * GB


def test_the_older_control_groups_are_read_too(tmp_path: Path) -> None:
    machine(tmp_path)
    (tmp_path / "proc/self/cgroup").write_text("5:cpu,cpuacct:/\n4:memory:/job\n0::/\n")
    (tmp_path / "proc/self/mountinfo").write_text(
        "31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
        "33 23 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    )
    group(
        tmp_path,
        "sys/fs/cgroup/memory",
        memory__limit_in_bytes="9223372036854771712",
        memory__usage_in_bytes=str(GB),
    )
    group(
        tmp_path,
        "sys/fs/cgroup/memory/job",
        memory__limit_in_bytes=str(2 * GB),
        memory__usage_in_bytes=str(GB),
        memory__stat=f"total_inactive_file {GB // 10}\ntotal_active_file 0",
    )
    assert host.memory_available(tmp_path)[0] == GB + GB // 10


def test_a_group_without_limit_changes_nothing(tmp_path: Path) -> None:
    machine(tmp_path)
    version_2(tmp_path, "/")
    group(tmp_path, "sys/fs/cgroup", memory__max="max", memory__current=str(GB))
    assert host.memory_available(tmp_path)[1] == "memory of this machine"


def test_this_machine_has_some_memory_and_disk(tmp_path: Path) -> None:
    found = host.resources(tmp_path)
    assert found.memory_bytes > 10**8
    assert found.disk_bytes > 0
