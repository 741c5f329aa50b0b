"""What the kernel says: of this process, of a plain machine, and of the containers around us."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from rpi_runtime import kernel

ROOT = Path(__file__).resolve().parents[2]

GB = 1 << 30


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
    assert kernel.memory_available(tmp_path) == (8000 * 1000 * 1024, "memory of this machine")


def test_swap_counts_and_is_named(tmp_path: Path) -> None:
    machine(tmp_path, swap_mb=2000)
    assert kernel.memory_available(tmp_path) == (10_000 * 1000 * 1024, "memory and swap of this machine")


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
    free, source = kernel.memory_available(tmp_path)
    assert free == 3 * GB - 2 * GB + GB * 3 // 4
    assert "limit of the control group" in source


def test_the_tightest_group_on_the_way_up_decides(tmp_path: Path) -> None:
    machine(tmp_path)
    version_2(tmp_path, "/user/job")
    group(tmp_path, "sys/fs/cgroup/user/job", memory__max="max", memory__current=str(GB))
    group(tmp_path, "sys/fs/cgroup/user", memory__max=str(4 * GB), memory__current=str(GB))
    free, source = kernel.memory_available(tmp_path)
    assert free == 3 * GB
    assert source.endswith("sys/fs/cgroup/user")


def test_a_container_that_sees_only_its_own_part_of_the_tree_is_understood(tmp_path: Path) -> None:
    machine(tmp_path)
    version_2(tmp_path, "/docker/abc", inside="/docker/abc")
    group(tmp_path, "sys/fs/cgroup", memory__max=str(2 * GB), memory__current="0")
    assert kernel.memory_available(tmp_path)[0] == 2 * GB


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
    assert kernel.memory_available(tmp_path)[0] == GB + GB // 10


def test_a_group_without_limit_changes_nothing(tmp_path: Path) -> None:
    machine(tmp_path)
    version_2(tmp_path, "/")
    group(tmp_path, "sys/fs/cgroup", memory__max="max", memory__current=str(GB))
    assert kernel.memory_available(tmp_path)[1] == "memory of this machine"


def fresh_pages(count: int) -> mmap.mmap:
    """Written to, and none that the allocator had of earlier tests."""
    pages = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    np.frombuffer(pages, np.uint8)[:] = 1
    return pages


def test_a_process_is_told_apart_by_what_can_be_dropped() -> None:
    before = kernel.memory()
    held = fresh_pages(64 << 20)
    after = kernel.memory(os.getpid())
    assert 64 << 20 <= after.anonymous_bytes - before.anonymous_bytes < 80 << 20
    assert after.peak_resident_bytes >= after.resident_bytes >= len(held)


def test_the_peak_counts_from_the_reset_on() -> None:
    kernel.reset_peak()
    fresh_pages(64 << 20)
    peak = kernel.memory().peak_resident_bytes
    assert kernel.reset_peak()
    assert kernel.memory().peak_resident_bytes <= peak - (32 << 20)


def test_pages_of_a_mapped_file_are_dropped_and_read_again(tmp_path: Path) -> None:
    file = tmp_path / "with a space.bin"
    file.write_bytes(bytes(range(256)) * (16 << 10))
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        assert data[::4096].count(0) == 1024  # touches every page
        before = kernel.memory().mapped_bytes
        kernel.drop_mapped(tmp_path / "another.bin")
        assert before - kernel.memory().mapped_bytes < 1 << 20
        kernel.drop_mapped(file)
        assert before - kernel.memory().mapped_bytes > 3 << 20
        assert data[1000:1003] == bytes([232, 233, 234])


def test_what_was_written_to_a_private_mapping_stays(tmp_path: Path) -> None:
    file = tmp_path / "copied.bin"
    file.write_bytes(bytes(1 << 20))
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as data:
        data[5] = 7
        kernel.drop_mapped(file)
        assert data[5] == 7


def test_the_code_of_a_library_is_dropped_and_runs_on() -> None:
    """In a process of its own, with a library that nothing else needs here."""
    script = """
from pathlib import Path
from rpi_runtime import kernel
from PIL import _imaging
from PIL import Image
library = Path(_imaging.__file__)
Image.new("RGB", (64, 64), (200, 10, 10)).resize((32, 32), Image.Resampling.BICUBIC)
before = kernel.memory()
kernel.drop_code(library)
after = kernel.memory()
small = Image.new("RGB", (64, 64), (200, 10, 10)).resize((32, 32), Image.Resampling.BICUBIC)
print(before.mapped_bytes - after.mapped_bytes, after.anonymous_bytes - before.anonymous_bytes)
print(*small.getpixel((3, 3)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    dropped, lost, *pixel = map(int, done.stdout.split())
    assert dropped > 100 << 10
    assert abs(lost) < 1 << 20, "data stays"
    assert pixel == [200, 10, 10]


def test_a_process_that_is_gone_has_nothing(tmp_path: Path) -> None:
    assert kernel.memory(root=tmp_path) == kernel.Memory(0, 0, 0)
