"""What a device is: facts that one shell script (`data/probe.sh`) reads there, with nothing installed."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from importlib import resources

from delegates.cpu import CpuFeatures, features_in
from field.device import Device, DeviceError

_KIB = 1024
# What a program's own header says it was made for (elf.h): class and e_machine.
_ELF = {
    (2, 0xB7): "aarch64",
    (1, 0x28): "armv7l",
    (2, 0x3E): "x86_64",
    (1, 0x03): "i686",
    (2, 0xF3): "riscv64",
}
_CGROUP_UNLIMITED = 1 << 60


@dataclass(frozen=True)
class Python:
    version: str  # "3.11.2"
    executable: str
    bits: int
    missing: tuple[str, ...]  # modules of the standard library that we need
    packages: dict[str, str]  # of those that we use: version

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
    machine: str  # of programs here: "aarch64", "armv7l", "x86_64"
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
    clock_s: float  # ahead of ours
    synchronized: bool | None
    tools: tuple[str, ...]

    @property
    def cpu(self) -> CpuFeatures:
        return CpuFeatures(self.machine, frozenset(self.cpu_names))

    @property
    def is_android(self) -> bool:
        return self.android_api is not None

    def library(self, *names: str) -> str:
        """The first of `libraries` with one of these names, or ""."""
        return next((path for path in self.libraries if path.rpartition("/")[2] in names), "")


def probe(device: Device) -> Machine:
    """Raises `DeviceLost`, and `DeviceError` for a device whose shell does not run our script."""
    script = (resources.files("field") / "data/probe.sh").read_text(encoding="utf-8")
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
    sections = {
        name: body.strip("\n") for name, body in re.findall(r"^@(\w+)\n(.*?)(?=^@|\Z)", text, re.M | re.S)
    }

    def lines(name: str) -> list[str]:
        return [line.strip() for line in sections.get(name, "").splitlines() if line.strip()]

    def line(name: str, number: int = 0) -> str:
        found = lines(name)
        return found[number] if number < len(found) else ""

    memory = _pairs(lines("meminfo"), ":")
    os_release = {key: value.strip('"') for key, value in _pairs(lines("os"), "=").items()}
    machine = _machine(line("elf") + " " + line("elf", 1)) or line("kernel", 1)
    cpuinfo = sections.get("cpuinfo", "")
    libc, libc_version = _libc(lines("libc"))
    disk = line("disk").split()
    prefix = _pairs(lines("prefix"), "=")
    throttled = re.search(r"throttled=0x([0-9a-fA-F]+)", line("throttled"))
    place = line("place")
    return Machine(
        model=line("model") or _pairs(cpuinfo.splitlines(), ":").get("Model", ""),
        system=line("kernel"),
        kernel=line("kernel", 2),
        kernel_machine=line("kernel", 1),
        machine=machine,
        os=os_release.get("PRETTY_NAME", ""),
        os_id="android" if "ANDROID_API" in os_release else os_release.get("ID", ""),
        os_codename=os_release.get("VERSION_CODENAME", ""),
        android_api=_int(os_release.get("ANDROID_API", "")),
        soc=os_release.get("ANDROID_SOC", ""),
        libc=libc,
        libc_version=libc_version,
        cores=len(re.findall(r"^processor\s*:", cpuinfo, re.M)),
        cpu_names=tuple(sorted(features_in(cpuinfo, machine).names)),
        cpu_model=_cpu_model(cpuinfo),
        memory_bytes=_kib(memory, "MemTotal"),
        available_bytes=_kib(memory, "MemAvailable"),
        swap_bytes=_kib(memory, "SwapTotal"),
        container_bytes=_container(lines("cgroup")),
        uid=_int(line("user")) or 0,
        user=line("user", 1),
        groups=tuple(line("user", 2).split()),
        home=line("user", 3),
        place=place,
        place_is_writable=line("place", 1) == "writable",
        place_allows_programs="noexec" not in _options_of(place, lines("mount")),
        disk_bytes=_KIB * int(disk[1]) if len(disk) >= 4 and disk[1].isdigit() else 0,
        free_bytes=_KIB * int(disk[3]) if len(disk) >= 4 and disk[3].isdigit() else 0,
        pythons=tuple({found.version: found for found in map(_python, lines("python")) if found}.values()),
        prefix=prefix.get("prefix", ""),
        runtime_id=prefix.get("runtime", ""),
        bundle_id=prefix.get("bundle", ""),
        bundle_name=prefix.get("name", ""),
        libraries=tuple(lines("libraries")),
        vulkan_drivers=tuple(lines("icd")),
        nodes=tuple(
            Node(path, state == "open") for state, _, path in (n.partition(" ") for n in lines("nodes"))
        ),
        frequencies=tuple(found for found in map(_frequency, lines("cpufreq")) if found),
        temperatures_c=_temperatures(lines("thermal")),
        power_sensors=tuple(lines("power")),
        throttled=int(throttled[1], 16) if throttled else None,
        boot=line("boot"),
        up_s=_float(line("boot", 1).split(" ")[0]) or 0.0,
        clock_s=(_float(line("time")) or now) - now,
        synchronized={"yes": True, "no": False}.get(line("synchronized")),
        tools=tuple(lines("tools")),
    )


def _pairs(lines: list[str], mark: str) -> dict[str, str]:
    """Key and value of each line that has both; the first of a key counts."""
    found: dict[str, str] = {}
    for line in lines:
        key, split, value = line.partition(mark)
        if split:
            found.setdefault(key.strip(), value.strip())
    return found


def _kib(memory: dict[str, str], name: str) -> int:
    return _KIB * (_int(memory.get(name, "").split(" ")[0]) or 0)


def _int(text: str) -> int | None:
    return int(text) if re.fullmatch(r"-?\d+", text.strip()) else None


def _float(text: str) -> float | None:
    return float(text) if re.fullmatch(r"-?\d+(\.\d+)?", text.strip()) else None


def _machine(dump: str) -> str:
    """Of the first 20 bytes of a program, as od prints them in hex."""
    numbers = [int(word, 16) for word in dump.split() if re.fullmatch("[0-9a-f]{2}", word)]
    if len(numbers) < 20 or bytes(numbers[:4]) != b"\x7fELF":
        return ""
    return _ELF.get((numbers[4], numbers[18] | numbers[19] << 8), "")


def _libc(lines: list[str]) -> tuple[str, str]:
    told = " ".join(lines)
    if found := re.search(r"(?:glibc|GLIBC|GNU libc)[^\d]*(?:[\d.]+-\S+\)\s*)?(\d+\.\d+)", told):
        return "glibc", found[1]
    if "musl" in told:
        return "musl", ""
    return ("bionic", "") if "linker64" in told else ("", "")


def _cpu_model(cpuinfo: str) -> str:
    """A name where the kernel has one, else implementer and part, as Arm numbers them."""
    found = _pairs(cpuinfo.splitlines(), ":")
    if "model name" in found:
        return found["model name"]
    parts = sorted(set(re.findall(r"^CPU part\s*:\s*(0x[0-9a-f]+)", cpuinfo, re.M)))
    return ", ".join(_ARM_PARTS.get(part, f"part {part}") for part in parts)


# Source: Arm's main ID registers, as lscpu (util-linux) names them.
_ARM_PARTS = {
    "0xc07": "Cortex-A7",
    "0xd03": "Cortex-A53",
    "0xd04": "Cortex-A35",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0d": "Cortex-A77",
    "0xd41": "Cortex-A78",
    "0xd44": "Cortex-X1",
    "0xd46": "Cortex-A510",
    "0xd47": "Cortex-A710",
    "0xd48": "Cortex-X2",
    "0xd4d": "Cortex-A715",
    "0xd4e": "Cortex-X3",
    "0xd80": "Cortex-A520",
    "0xd81": "Cortex-A720",
    "0xd82": "Cortex-X4",
}


def _container(lines: list[str]) -> int | None:
    rooms = []
    for line in lines:
        most, _, taken = line.partition(" ")
        if most.isdigit() and taken.strip().isdigit() and int(most) < _CGROUP_UNLIMITED:
            rooms.append(max(0, int(most) - int(taken)))
    return min(rooms, default=None)


def _options_of(place: str, mounts: list[str]) -> list[str]:
    """Of the file system that `place` lies on."""
    best, options = "", ""
    for line in mounts:
        told, _, at = line.partition(" ")
        inside = place == at or place.startswith(at.rstrip("/") + "/")
        if inside and len(at) >= len(best):
            best, options = at, told
    return options.split(",")


def _python(line: str) -> Python | None:
    words = line.split(" ")
    if len(words) != 5 or not words[2].isdigit():
        return None
    version, executable, bits, missing, packages = words
    return Python(
        version,
        executable,
        int(bits),
        () if missing == "-" else tuple(missing.split(",")),
        {} if packages == "-" else dict(pair.split("=", 1) for pair in packages.split(",")),
    )


def _frequency(line: str) -> Frequency | None:
    words = line.split()
    if len(words) != 3 or not (words[1].isdigit() and words[2].isdigit()):
        return None
    return Frequency(words[0], int(words[1]) / 1000, int(words[2]) / 1000)


def _temperatures(lines: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for line in lines:
        milli, _, zone = line.partition(" ")
        if (value := _int(milli)) is not None:
            found[zone if zone not in found else f"{zone} {len(found)}"] = value / 1000
    return found
