"""What a device is: facts that one shell script (`data/probe.sh`) reads there, with nothing installed."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass
from importlib import resources

from delegates.cpu import CpuFeatures, features_in
from field.address import LOCAL
from field.device import Device, DeviceError, quote
from field.machine_text import (
    KIB,
    container_room,
    cpu_model,
    decimal,
    kib,
    libc_of,
    machine_of,
    mount_options,
    pairs,
    temperatures,
    whole,
)


@dataclass(frozen=True)
class Python:
    version: str  # "3.11.2"
    executable: str
    bits: int
    missing: tuple[str, ...]  # modules of the standard library that we need
    packages: dict[str, str]  # of those that we use: version
    prefix: str = ""  # of the installation

    @property
    def minor(self) -> str:
        return ".".join(self.version.split(".")[:2])


@dataclass(frozen=True)
class Frequency:
    governor: str
    now_mhz: float
    most_mhz: float


@dataclass(frozen=True)
class Node:
    path: str
    is_open: bool  # to this user, to read and write


@dataclass(frozen=True)
class Machine:
    """A fact that a system does not tell is empty, 0 or None."""

    model: str
    system: str  # "Linux"
    kernel: str
    kernel_machine: str  # as uname has it
    machine: str  # of programs here: "aarch64", "armv7l", "armv6l", "x86_64"
    os: str
    os_id: str  # "debian", "android", ...
    os_codename: str
    android_api: int | None
    soc: str
    libc: str  # "glibc", "musl", "bionic"
    libc_version: str
    cores: int
    cpu_names: tuple[str, ...]  # features that every core has
    cpu_model: str
    memory_bytes: int
    available_bytes: int
    swap_bytes: int
    swap_free_bytes: int
    swaps: tuple[str, ...]  # where it lies: "/dev/zram0", "/var/swap"
    container_bytes: int | None  # what a container around us still leaves
    uid: int
    user: str
    groups: tuple[str, ...]
    home: str
    place: str  # where an installation goes
    place_is_writable: bool
    place_allows_programs: bool  # not mounted noexec
    disk_bytes: int  # of its file system
    free_bytes: int
    pythons: tuple[Python, ...]
    prefix: str  # of what is installed there already
    runtime_id: str
    bundle_id: str
    bundle_name: str
    libraries: tuple[str, ...]
    vulkan_drivers: tuple[str, ...]
    nodes: tuple[Node, ...]
    frequencies: tuple[Frequency, ...]  # a core each
    temperatures_c: dict[str, float]
    power_sensors: tuple[str, ...]
    throttled: int | None  # bits of a Raspberry Pi's firmware
    boot: str
    up_s: float
    time_s: float  # since 1970, as its clock has it
    clock_s: float  # ahead of ours
    synchronized: bool | None
    tools: tuple[str, ...]

    @property
    def cpu(self) -> CpuFeatures:
        return CpuFeatures(self.machine, frozenset(self.cpu_names))

    @property
    def free_memory_bytes(self) -> int:
        """As `rpi_runtime.kernel.memory_available` counts there: with swap, which the limit of a container
        does not let in."""
        free = self.available_bytes + self.swap_free_bytes
        return free if self.container_bytes is None else min(free, self.container_bytes)

    @property
    def is_android(self) -> bool:
        return self.android_api is not None

    def library(self, *names: str) -> str:
        """The first of `libraries` with one of these names, or ""."""
        return next((path for path in self.libraries if path.rpartition("/")[2] in names), "")


def probe(device: Device) -> Machine:
    """Raises `DeviceLost`, and `DeviceError` for a device whose shell does not run our script."""
    script = (resources.files("field") / "data/probe.sh").read_text(encoding="utf-8")
    if device.address.kind == LOCAL:
        script = f"PYTHON={quote(sys.executable)}\n{script}"  # it may be that of an environment
    before = time.time()
    told = device.run(script, timeout=120, check=False)
    ours = (before + time.time()) / 2
    if "\n@end" not in told.text:
        raise DeviceError(
            f"{device.address}: its shell cannot be asked ({told.said})", "Is it a POSIX shell?"
        )
    return read(told.text, ours)


def read(text: str, now: float) -> Machine:
    """The facts in what the script printed; `now` is our clock at that time, in s since 1970."""
    told = text.replace("\r\n", "\n")  # as a terminal has it
    sections = {
        name: body.strip("\n") for name, body in re.findall(r"^@(\w+)\n(.*?)(?=^@|\Z)", told, re.M | re.S)
    }

    def lines(name: str) -> list[str]:
        return [line.strip() for line in sections.get(name, "").splitlines() if line.strip()]

    def line(name: str, number: int = 0) -> str:
        found = lines(name)
        return found[number] if number < len(found) else ""

    memory = pairs(lines("meminfo"), ":")
    os_release = {key: value.strip('"') for key, value in pairs(lines("os"), "=").items()}
    machine = machine_of(" ".join(lines("elf")), line("kernel", 1))
    cpuinfo = sections.get("cpuinfo", "")
    libc, libc_version = libc_of(lines("libc"))
    disk = line("disk").split()
    user, place, prefix = (pairs(lines(name), "=") for name in ("user", "place", "prefix"))
    throttled = re.search(r"throttled=0x([0-9a-fA-F]{1,8})\b", sections.get("throttled", ""))
    clock = decimal(line("time"))
    return Machine(
        model=line("model") or pairs(cpuinfo.splitlines(), ":").get("Model", ""),
        system=line("kernel"),
        kernel=line("kernel", 2),
        kernel_machine=line("kernel", 1),
        machine=machine,
        os=os_release.get("PRETTY_NAME", ""),
        os_id="android" if "ANDROID_API" in os_release else os_release.get("ID", ""),
        os_codename=os_release.get("VERSION_CODENAME", ""),
        android_api=whole(os_release.get("ANDROID_API", "")),
        soc=os_release.get("ANDROID_SOC", ""),
        libc=libc,
        libc_version=libc_version,
        cores=len(re.findall(r"^processor\s*:", cpuinfo, re.M)),
        cpu_names=tuple(sorted(features_in(cpuinfo, machine).names)),
        cpu_model=cpu_model(cpuinfo),
        memory_bytes=kib(memory, "MemTotal"),
        available_bytes=kib(memory, "MemAvailable"),
        swap_bytes=kib(memory, "SwapTotal"),
        swap_free_bytes=kib(memory, "SwapFree"),
        swaps=tuple(name.split()[0] for name in lines("swaps")[1:]),
        container_bytes=container_room(lines("cgroup")),
        uid=whole(user.get("uid", "")) or 0,
        user=user.get("name", ""),
        groups=tuple(user.get("groups", "").split()),
        home=user.get("home", ""),
        place=place.get("place", ""),
        place_is_writable=place.get("state") == "writable",
        place_allows_programs="noexec" not in mount_options(place.get("real", ""), lines("mount")),
        disk_bytes=KIB * (whole(disk[1]) or 0) if len(disk) >= 4 else 0,
        free_bytes=KIB * (whole(disk[3]) or 0) if len(disk) >= 4 else 0,
        pythons=_pythons(lines("python")),
        prefix=prefix.get("prefix", ""),
        runtime_id=prefix.get("runtime", ""),
        bundle_id=prefix.get("bundle", ""),
        bundle_name=prefix.get("name", ""),
        libraries=_libraries(lines("libraries")),
        vulkan_drivers=tuple(lines("icd")),
        nodes=tuple(
            Node(path, state == "open") for state, _, path in (n.partition(" ") for n in lines("nodes"))
        ),
        frequencies=tuple(found for found in map(_frequency, lines("cpufreq")) if found),
        temperatures_c=temperatures(lines("thermal")),
        power_sensors=tuple(lines("power")),
        throttled=int(throttled[1], 16) if throttled else None,
        boot=line("boot"),
        up_s=decimal(line("boot", 1).split(" ")[0]) or 0.0,
        time_s=now if clock is None else clock,
        clock_s=0.0 if clock is None else clock - now,
        synchronized={"yes": True, "no": False}.get(line("synchronized")),
        tools=tuple(lines("tools")),
    )


def _pythons(lines: list[str]) -> tuple[Python, ...]:
    """One of each installation: python3 and python3.11 are often the same."""
    found: dict[tuple[str, str], Python] = {}
    for line in lines:
        words = line.split("\t")
        bits = whole(words[2]) if len(words) == 6 else None
        if bits is None or not re.fullmatch(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}", words[0]):
            continue
        version, executable, _, missing, packages, prefix = words
        python = Python(
            version,
            executable,
            bits,
            () if missing == "-" else tuple(missing.split(",")),
            pairs(packages.split(","), "="),
            prefix,
        )
        found.setdefault((version, prefix), python)
    return tuple(found.values())


def _libraries(lines: list[str]) -> tuple[str, ...]:
    """Each once: /lib is often a link to /usr/lib."""
    found: dict[str, str] = {}
    for path in lines:
        found.setdefault(path.removeprefix("/usr"), path)
    return tuple(found.values())


def _frequency(line: str) -> Frequency | None:
    governor, now, most = (*line.split(), "", "", "")[:3]
    now_khz, most_khz = whole(now), whole(most)
    if now_khz is None or most_khz is None:
        return None
    return Frequency(governor, now_khz / 1000, most_khz / 1000)
