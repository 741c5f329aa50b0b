"""External delegates: shared libraries of a vendor that compute parts of a graph on the vendor's hardware.

Such a library exports `tflite_plugin_create_delegate` and `tflite_plugin_destroy_delegate`, as TFLite's
`external_delegate_interface.h` has them. Here it is judged by its ELF header (elf.h), without being loaded.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from delegates.cpu import Verdict

CREATE = "tflite_plugin_create_delegate"
DESTROY = "tflite_plugin_destroy_delegate"

_THIS_PROCESS = Path("/proc/self/exe")
_MAGIC = b"\x7fELF"
_SHARED = 3  # ET_DYN
_LOADED = 1  # PT_LOAD
_MACHINES = {3: "i686", 40: "armv7l", 62: "x86_64", 183: "aarch64", 243: "riscv64"}


@dataclass(frozen=True)
class _Layout:
    """Where things lie in a header, and in an entry of the table of segments."""

    bits: int
    word: str  # of `struct`
    header_bytes: int
    table_at: int  # e_phoff
    sizes_at: int  # e_phentsize, e_phnum
    entry_bytes: int
    segment_at: tuple[int, int]  # p_offset, p_filesz


_LAYOUTS = {1: _Layout(32, "I", 52, 28, 42, 32, (4, 16)), 2: _Layout(64, "Q", 64, 32, 54, 56, (8, 32))}
_ORDERS = {1: "<", 2: ">"}


@dataclass(frozen=True)
class ElfHeader:
    bits: int  # 32 or 64
    little_endian: bool
    machine: str  # as `CpuFeatures.machine` has it
    is_shared: bool  # a shared library, or a program that may lie anywhere
    needed_bytes: int  # the file's length that its loaded parts ask for

    @property
    def told(self) -> str:
        return f"{self.machine} with {self.bits} bits" + ("" if self.little_endian else ", big-endian")


class NotElf(ValueError):
    """The text says what is there instead."""


def library_verdict(path: Path, process: Path = _THIS_PROCESS) -> Verdict:
    """Whether the library at `path` can be loaded into a process that runs the program at `process`, as far
    as its header tells. What else it needs is only found out by loading it."""
    try:
        found = elf_header(path)
    except NotElf as error:
        return Verdict(False, f"{path} is not a shared library: {error}")
    except OSError as error:
        return Verdict(False, f"{path} cannot be read: {error.strerror}")
    if not found.is_shared:
        return Verdict(False, f"{path} is not a shared library: it is an object file or a program")
    try:
        ours = elf_header(process)
    except (NotElf, OSError):  # not Linux: loading it will tell
        ours = found
    if (found.bits, found.little_endian, found.machine) != (ours.bits, ours.little_endian, ours.machine):
        return Verdict(False, f"{path} is for {found.told}, and this process runs on {ours.told}")
    here = path.stat().st_size
    if here < found.needed_bytes:
        return Verdict(False, f"{path} is cut off: it has {here} bytes of at least {found.needed_bytes}")
    return Verdict(True, f"a shared library for {found.told}")


def elf_header(path: Path) -> ElfHeader:
    """Raises `NotElf` for another file, or one that ends within its header, and OSError for one that cannot
    be read."""
    with path.open("rb") as file:
        start = file.read(64)
        if not start:
            raise NotElf("it is empty")
        if start[:4] != _MAGIC:
            raise NotElf(f"it begins with {start[:4]!r} and not with {_MAGIC!r}")
        layout = _LAYOUTS.get(start[4]) if len(start) > 5 else None
        if layout is None or start[5] not in _ORDERS or len(start) < layout.header_bytes:
            raise NotElf("its header is damaged")
        order = _ORDERS[start[5]]
        kind, machine = struct.unpack_from(order + "HH", start, 16)
        table = struct.unpack_from(order + layout.word, start, layout.table_at)[0]
        entry_bytes, entries = struct.unpack_from(order + "HH", start, layout.sizes_at)
        needed = table + entry_bytes * entries
        if needed <= os.fstat(file.fileno()).st_size and entry_bytes == layout.entry_bytes:
            file.seek(table)
            for _ in range(entries):
                entry = file.read(entry_bytes)
                if struct.unpack_from(order + "I", entry)[0] == _LOADED:
                    offset, count = (
                        struct.unpack_from(order + layout.word, entry, at)[0] for at in layout.segment_at
                    )
                    needed = max(needed, offset + count)
    name = _MACHINES.get(machine, f"a CPU of ELF number {machine}")
    return ElfHeader(layout.bits, order == "<", name, kind == _SHARED, needed)
