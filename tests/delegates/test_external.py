"""What the header of a delegate's library tells, without loading it. The linker's own tool is the oracle."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delegates.external import NotElf, elf_header, library_verdict
from tests.conftest import script

ARCHES = {"host": None, "arm64": "aarch64"}


@pytest.fixture(scope="module")
def extension() -> Path:
    """A shared library that is surely there: one of NumPy's, which this process has loaded."""
    return next(Path(np.__file__).parent.rglob("_multiarray_umath*.so"))


@pytest.fixture(scope="module", params=ARCHES)
def built(request: pytest.FixtureRequest) -> Path:
    emulation = script("emulation")
    script("nnapi_delegate")
    try:
        library: Path = script("external_delegate").prepare(request.param)
    except emulation.Unavailable as reason:
        pytest.skip(str(reason))
    return library


def test_a_library_for_this_process_passes(extension: Path) -> None:
    verdict = library_verdict(extension)
    assert verdict.loads
    assert "a shared library for" in verdict.reason


def test_headers_read_as_readelf_reads_them(built: Path, extension: Path) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("readelf not found")
    for library in (built, extension, Path(sys.executable).resolve()):
        told = subprocess.run(["readelf", "-hlW", library], capture_output=True, text=True, check=True).stdout
        header = elf_header(library)
        assert f"ELF{header.bits}" in told
        assert header.little_endian == ("little endian" in told)
        machine = {"x86_64": "X86-64", "aarch64": "AArch64"}[header.machine]
        assert re.search(rf"Machine:\s+.*{machine}", told)
        assert header.is_shared == bool(re.search(r"Type:\s+DYN", told))
        loads = re.findall(r"^\s*LOAD\s+(0x\w+)\s+0x\w+\s+0x\w+\s+(0x\w+)", told, re.MULTILINE)
        assert loads
        assert header.needed_bytes == max(int(offset, 16) + int(count, 16) for offset, count in loads)


def test_another_cpu_is_named(extension: Path, tmp_path: Path) -> None:
    data = extension.read_bytes()
    for machine, name in (
        (40, "armv7l"),
        (183, "aarch64"),
        (62, "x86_64"),
        (9999, "a CPU of ELF number 9999"),
    ):
        other = tmp_path / "other.so"
        other.write_bytes(data[:18] + machine.to_bytes(2, "little") + data[20:])
        header = elf_header(other)
        assert header.machine == name
        verdict = library_verdict(other)
        assert verdict.loads == (header == elf_header(extension))
        if not verdict.loads:
            assert f"is for {name} with 64 bits, and this process runs on" in verdict.reason


def test_32_bits_are_told_from_64(built: Path, tmp_path: Path) -> None:
    """A header of an armv7l library, as readelf shows Debian's: ELF32, 52 bytes, entries of 32."""
    ident = b"\x7fELF\x01\x01\x01" + bytes(9)
    fields = (3).to_bytes(2, "little") + (40).to_bytes(2, "little") + (1).to_bytes(4, "little")
    table = bytes(4) + (52).to_bytes(4, "little") + bytes(4) + bytes(4)
    sizes = b"".join(n.to_bytes(2, "little") for n in (52, 32, 1, 0, 0, 0))
    segment = b"".join(n.to_bytes(4, "little") for n in (1, 0, 0, 0, 200, 200, 5, 4096))
    library = tmp_path / "armv7l.so"
    library.write_bytes((ident + fields + table + sizes + segment).ljust(200, b"\0"))
    header = elf_header(library)
    assert (header.bits, header.machine, header.is_shared, header.needed_bytes) == (32, "armv7l", True, 200)
    assert library_verdict(library, process=library).loads
    assert "armv7l with 32 bits, and this process runs on" in library_verdict(library).reason
    library.write_bytes(library.read_bytes()[:150])
    assert library_verdict(library, process=library).reason.endswith("it has 150 bytes of at least 200")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (b"#!/bin/sh\n", r"it begins with b'#!/b' and not with b'\x7fELF'"),
        (b"\x7fELF", "its header is damaged"),
        (b"\x7fELF\x02\x01" + bytes(30), "its header is damaged"),
        (b"\x7fELF\x07\x01" + bytes(90), "its header is damaged"),
        (b"\x7fELF\x02\x01" + bytes(10) + b"\x01\0" + bytes(90), "it is an object file or a program"),
    ],
)
def test_what_is_no_library_is_told(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "x.so"
    file.write_bytes(content)
    verdict = library_verdict(file)
    assert not verdict.loads
    assert verdict.reason == f"{file} is not a shared library: {says}"


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    assert library_verdict(tmp_path / "absent.so").reason.endswith(
        "cannot be read: No such file or directory"
    )
    assert library_verdict(tmp_path).reason.endswith("cannot be read: Is a directory")


def test_a_file_cut_anywhere_is_refused_or_loads(built: Path, tmp_path: Path) -> None:
    """What lies behind its last loaded part, the loader does not need."""
    data, cut = built.read_bytes(), tmp_path / "cut.so"
    needed = elf_header(built).needed_bytes
    for length in (0, 3, 40, 64, 100, needed // 2, needed - 1, needed, len(data) - 1):
        cut.write_bytes(data[:length])
        assert library_verdict(cut, process=built).loads == (length >= needed), length


@given(
    start=st.sampled_from(
        [b"\x7fELF\x01\x01", b"\x7fELF\x01\x02", b"\x7fELF\x02\x01", b"\x7fELF\x02\x02", b""]
    ),
    rest=st.binary(max_size=200),
)
def test_no_file_ends_in_anything_but_a_verdict(
    tmp_path_factory: pytest.TempPathFactory, start: bytes, rest: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "hostile.so"
    file.write_bytes(start + rest)
    with suppress(NotElf):
        assert elf_header(file).needed_bytes >= 0
    assert library_verdict(file).reason
