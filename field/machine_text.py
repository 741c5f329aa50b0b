"""What lines of `data/probe.sh` mean, one kind after another; `machine.py` puts them together."""

from __future__ import annotations

import re

KIB = 1024
# What a program's own header says it was made for (elf.h): class and e_machine.
_ELF = {
    (2, 0xB7): "aarch64",
    (1, 0x28): "armv7l",
    (2, 0x3E): "x86_64",
    (1, 0x03): "i686",
    (2, 0xF3): "riscv64",
}
_CGROUP_UNLIMITED = 1 << 60


def pairs(lines: list[str], mark: str) -> dict[str, str]:
    """Key and value of each line that has both; the first of a key counts."""
    found: dict[str, str] = {}
    for line in lines:
        key, split, value = line.partition(mark)
        if split:
            found.setdefault(key.strip(), value.strip())
    return found


def kib(memory: dict[str, str], name: str) -> int:
    return KIB * (whole(memory.get(name, "").split(" ")[0]) or 0)


def whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text.strip()) else None


def decimal(text: str) -> float | None:
    return float(text) if re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]{1,9})?", text.strip()) else None


def machine_of(dump: str, kernel_machine: str) -> str:
    """Of the first 20 bytes of a program, as od prints them in hex; else what the kernel says."""
    numbers = [int(word, 16) for word in dump.split() if re.fullmatch("[0-9a-f]{2}", word)]
    if len(numbers) < 20 or bytes(numbers[:4]) != b"\x7fELF":
        return kernel_machine
    found = _ELF.get((numbers[4], numbers[18] | numbers[19] << 8), kernel_machine)
    # Programs for a Pi Zero and a Pi 2 have the same header.
    return kernel_machine if found == "armv7l" and kernel_machine.startswith("armv6") else found


def libc_of(lines: list[str]) -> tuple[str, str]:
    told = " ".join(lines)
    if found := re.search(r"(?:glibc|GLIBC|GNU libc)[^\d]*(?:[\d.]+-\S+\)\s*)?([0-9]+\.[0-9]+)", told):
        return "glibc", found[1]
    if "musl" in told:
        version = re.search(r"Version ([0-9.]+)", told)
        return "musl", version[1] if version else ""
    return ("bionic", "") if "/system/bin/linker" in told else ("", "")


def cpu_model(cpuinfo: str) -> str:
    """Arm's cores by the numbers of implementer and part, others by the name that the kernel has."""
    ids = re.findall(
        r"^CPU implementer\s*:\s*(0x[0-9a-f]+)$.*?^CPU part\s*:\s*(0x[0-9a-f]+)$", cpuinfo, re.M | re.S
    )
    if ids:
        return ", ".join(
            _CORES.get(core, f"implementer {core[0]} part {core[1]}") for core in dict.fromkeys(ids)
        )
    found = pairs(cpuinfo.splitlines(), ":")
    return found.get("model name", found.get("Hardware", ""))


# By implementer and part of the main ID register, as lscpu (util-linux, sys-utils/lscpu-arm.c) names them.
_ARM, _QUALCOMM = "0x41", "0x51"
_CORES = {
    (_ARM, "0xb76"): "ARM1176",
    (_ARM, "0xc07"): "Cortex-A7",
    (_ARM, "0xc09"): "Cortex-A9",
    (_ARM, "0xc0f"): "Cortex-A15",
    (_ARM, "0xd03"): "Cortex-A53",
    (_ARM, "0xd04"): "Cortex-A35",
    (_ARM, "0xd05"): "Cortex-A55",
    (_ARM, "0xd07"): "Cortex-A57",
    (_ARM, "0xd08"): "Cortex-A72",
    (_ARM, "0xd09"): "Cortex-A73",
    (_ARM, "0xd0a"): "Cortex-A75",
    (_ARM, "0xd0b"): "Cortex-A76",
    (_ARM, "0xd0c"): "Neoverse-N1",
    (_ARM, "0xd0d"): "Cortex-A77",
    (_ARM, "0xd40"): "Neoverse-V1",
    (_ARM, "0xd41"): "Cortex-A78",
    (_ARM, "0xd44"): "Cortex-X1",
    (_ARM, "0xd46"): "Cortex-A510",
    (_ARM, "0xd47"): "Cortex-A710",
    (_ARM, "0xd48"): "Cortex-X2",
    (_ARM, "0xd49"): "Neoverse-N2",
    (_ARM, "0xd4d"): "Cortex-A715",
    (_ARM, "0xd4e"): "Cortex-X3",
    (_ARM, "0xd80"): "Cortex-A520",
    (_ARM, "0xd81"): "Cortex-A720",
    (_ARM, "0xd82"): "Cortex-X4",
    (_ARM, "0xd85"): "Cortex-X925",
    (_ARM, "0xd87"): "Cortex-A725",
    (_QUALCOMM, "0x001"): "Oryon",
    (_QUALCOMM, "0x802"): "Kryo 3xx Gold",
    (_QUALCOMM, "0x803"): "Kryo 3xx Silver",
    (_QUALCOMM, "0x804"): "Kryo 4xx Gold",
    (_QUALCOMM, "0x805"): "Kryo 4xx Silver",
}


def container_room(lines: list[str]) -> int | None:
    """What the tightest control group leaves: its limit less what it holds, files that may go not counted."""
    rooms = []
    for line in lines:
        numbers = [whole(word) for word in line.split()]  # limit, use, files...
        limit, used = (*numbers, None, None)[:2]
        if limit is not None and used is not None and limit < _CGROUP_UNLIMITED:
            rooms.append(max(0, min(limit, limit - used + sum(files or 0 for files in numbers[2:]))))
    return min(rooms, default=None)


def mount_options(place: str, mounts: list[str]) -> list[str]:
    """Of the file system that `place` lies on."""
    best, options = "", ""
    for line in mounts:
        told, _, at = line.partition(" ")
        inside = place == at or place.startswith(at.rstrip("/") + "/")
        if inside and len(at) >= len(best):
            best, options = at, told
    return options.split(",")


def temperatures(lines: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for line in lines:
        milli, _, zone = line.partition(" ")
        if (value := whole(milli)) is not None:
            found[zone if zone not in found else f"{zone} {len(found)}"] = value / 1000
    return found
