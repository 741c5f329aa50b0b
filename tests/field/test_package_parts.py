"""Locks, and the unpacking of what they name: nothing lands outside its folder, nothing unknown is used."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from field.package import contents, gather, lock
from field.package.errors import CannotGather, NotAsLocked
from field.package.gather import gather_debs, gather_wheels
from field.package.lock import Deb, Wheel, debs_for, least_glibc, read_debs, read_wheels, wheels_for
from field.package.unpack import deb_members, wheel_members
from field.platforms import OWN, PLATFORMS, PYTHONS, platform
from rpi_runtime.bundle import sha256_of
from rpi_runtime.errors import UsageError


def a_wheel(folder: Path, members: dict[str, bytes], mode: int = stat.S_IFREG | 0o644) -> Path:
    file = folder / "some-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as held:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            held.writestr(info, data)
    return file


def a_deb(
    folder: Path, entries: Sequence[tarfile.TarInfo], data: bytes = b"x", name: str = "data.tar.xz"
) -> Path:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as held:
        for info in entries:
            info.size = len(data) if info.isreg() else 0
            held.addfile(info, io.BytesIO(data))
    packed = lzma.compress(inner.getvalue()) if name.endswith(".xz") else gzip.compress(inner.getvalue())
    out = b"!<arch>\n"
    for member, content in (("debian-binary", b"2.0\n"), (name, packed)):
        out += f"{member:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode() + content
        out += b"\n" * (len(content) % 2)
    file = folder / "some.deb"
    file.write_bytes(out)
    return file


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


# Locks.


def test_every_target_has_all_its_wheels_for_every_python_it_offers() -> None:
    for target in PLATFORMS.values():
        assert target.python in target.pythons
        for python in target.pythons:
            names = {wheel.name for wheel in lock.wheels_of(target, python)}
            assert {"tokenizers", "jinja2", "typer", "rich"} <= names
            assert names & {"ai_edge_litert", "tflite_runtime"}
        if target.pythons[-1] == OWN:
            assert {"libc6", "python3.11-minimal"} <= {deb.package for deb in debs_for(target.debian)}


def test_doctor_can_ask_which_wheels_there_are() -> None:
    assert wheels_for("aarch64", "3.13") is not None
    assert wheels_for("armv7l", "3.11") is not None
    assert wheels_for("armv7l", "3.13") is None
    assert wheels_for("riscv64", "3.11") is None


def test_the_oldest_c_library_that_serves_is_read_off_the_wheels_tags() -> None:
    found = wheels_for("aarch64", "3.11")
    assert found is not None
    assert least_glibc(found) == (2, 27)
    assert Wheel("a-1-py3-none-any.whl", "", 0).glibc == (0, 0)
    assert Wheel("a-1-cp311-cp311-manylinux_2_28_x86_64.manylinux_2_17_x86_64.whl", "", 0).glibc == (2, 17)


def test_a_python_for_which_wheels_lack_is_refused_with_those_that_serve() -> None:
    with pytest.raises(UsageError, match=r"3\.12: not all wheels exist for pi-armv7") as raised:
        lock.wheels_of(platform("pi-armv7"), "3.12")
    assert raised.value.remedy == "It may be: own."
    assert lock.wheels_of(platform("pi-arm64"), PYTHONS[-1])


def test_a_target_that_does_not_exist_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError) as raised:
        platform("rpi-arm64")
    assert "Did you mean 'pi-arm64'?" in raised.value.remedy


@pytest.mark.parametrize(
    ("file", "sha256"),
    [
        ("../some-1.0-py3-none-any.whl", "0" * 64),
        ("/tmp/some-1.0-py3-none-any.whl", "0" * 64),
        ("some-1.0-py3-none-any.whl", "0" * 63),
        ("some-1.0-py3-none-any.whl", "--hash"),
        ("some.zip", "0" * 64),
    ],
)
def test_a_lock_that_names_a_path_or_no_hash_is_not_read(file: str, sha256: str) -> None:
    held = {"wheels": {file: {"sha256": sha256, "bytes": 1}}, "sets": {}}
    with pytest.raises(ValueError, match="is no "):
        read_wheels(json.dumps(held))


def test_a_lock_of_debian_packages_holds_no_path_that_leaves_the_archive() -> None:
    deb = {"package": "a", "version": "1", "path": "pool/../../a.deb", "sha256": "0" * 64}
    with pytest.raises(ValueError, match="is no file's name"):
        read_debs(json.dumps({"arm64": [{**deb, "sha1": "", "bytes": 1, "libraries": [], "part": "python"}]}))


# Wheels.


@pytest.mark.parametrize(
    "name", ["../evil.py", "/etc/evil", "some/../../evil", "a\\..\\evil", "some-1.data/purelib/../x"]
)
def test_a_wheel_with_a_member_outside_its_folder_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotAsLocked, match="outside its folder"):
        list(wheel_members(a_wheel(tmp_path, {name: b""}), lambda path: True))


def test_a_wheel_with_a_link_in_it_is_an_error(tmp_path: Path) -> None:
    file = a_wheel(tmp_path, {"some/link": b"/etc/passwd"}, stat.S_IFLNK | 0o777)
    with pytest.raises(NotAsLocked, match="no plain file"):
        list(wheel_members(file, lambda path: True))


def test_a_wheels_data_for_site_packages_is_merged_and_its_scripts_are_left(tmp_path: Path) -> None:
    held = {"a/b.py": b"1", "some-1.data/platlib/a/c.so": b"2", "some-1.data/scripts/run": b"3"}
    found = wheel_members(a_wheel(tmp_path, held), lambda path: True)
    assert [str(path) for path, _ in found] == ["a/b.py", "a/c.so"]


def test_a_wheel_that_is_cut_off_is_an_error(tmp_path: Path) -> None:
    file = a_wheel(tmp_path, {"a.py": b"1" * 1000})
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(NotAsLocked, match="cannot be unpacked"):
        list(wheel_members(file, lambda path: True))


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("ai_edge_litert/libLiteRt.so", True),
        ("ai_edge_litert/libLiteRtWebGpuAccelerator.so", False),
        ("ai_edge_litert/aot/aot_compile.py", False),
        ("numpy/_core/tests/test_multiarray.py", False),
        ("numpy/_core/include/numpy/arrayobject.h", False),
        ("numpy/__init__.pyi", False),
        ("numpy-2.4.6.dist-info/licenses/LICENSE.txt", True),
        ("numpy-2.4.6.dist-info/METADATA", True),
        ("numpy-2.4.6.dist-info/RECORD", False),
        ("jinja2/tests.py", True),
    ],
)
def test_what_a_device_does_not_need_stays_here_and_licences_go_along(path: str, kept: bool) -> None:
    assert contents.wanted(gpu=False)(path) is kept


def test_the_gpu_library_goes_along_where_a_graph_is_for_a_gpu() -> None:
    assert contents.wanted(gpu=True)("ai_edge_litert/libLiteRtWebGpuAccelerator.so")


# Debian packages.


def test_a_debian_package_gives_its_files_and_a_link_as_what_it_points_to(tmp_path: Path) -> None:
    entries = [
        entry("./usr/lib", tarfile.DIRTYPE),
        entry("./usr/lib/liba.so.1.2"),
        entry("./usr/lib/liba.so.1", tarfile.SYMTYPE, "liba.so.1.2"),
        entry("./usr/lib/liba.so", tarfile.SYMTYPE, "/usr/lib/liba.so.1"),
        entry("./usr/lib/away.so", tarfile.SYMTYPE, "../../../../etc/passwd"),
        entry("./usr/lib/round", tarfile.SYMTYPE, "round"),
    ]
    for name in ("data.tar.xz", "data.tar.gz"):
        found = deb_members(a_deb(tmp_path, entries, name=name))
        assert sorted(found) == ["usr/lib/liba.so", "usr/lib/liba.so.1", "usr/lib/liba.so.1.2"]
        assert found["usr/lib/liba.so"].data == b"x"


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "./usr/../../evil"])
def test_a_debian_package_with_a_member_outside_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotAsLocked, match="outside its folder"):
        deb_members(a_deb(tmp_path, [entry(name)]))


def test_a_debian_package_with_a_device_in_it_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotAsLocked, match="no plain file"):
        deb_members(a_deb(tmp_path, [entry("dev/sda", tarfile.BLKTYPE)]))


def test_a_debian_package_that_is_cut_off_or_none_is_an_error(tmp_path: Path) -> None:
    file = a_deb(tmp_path, [entry("a")])
    whole = file.read_bytes()
    for cut in (whole[:-40], whole[:70], b"PK" + whole, b""):
        file.write_bytes(cut)
        with pytest.raises(NotAsLocked):
            deb_members(file)


def test_a_compression_that_python_cannot_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotAsLocked, match=r"data\.tar\.zst"):
        deb_members(a_deb(tmp_path, [entry("a")], name="data.tar.zst"))


# Gathering.


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip looks in an empty folder, and archives are on a port that nobody serves."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    monkeypatch.setattr(gather, "_ARCHIVE", "http://127.0.0.1:9")
    monkeypatch.setattr(gather, "_SNAPSHOT", "http://127.0.0.1:9")
    monkeypatch.setattr(gather, "_apt_archives", lambda: [])


def a_locked_wheel(folder: Path) -> Wheel:
    file = a_wheel(folder, {"some.py": b"1"})
    return Wheel(file.name, sha256_of(file), file.stat().st_size)


def test_what_lies_in_the_cache_needs_no_network(tmp_path: Path, no_network: None) -> None:
    (tmp_path / "cache/wheels").mkdir(parents=True)
    wheel = a_locked_wheel(tmp_path / "cache/wheels")
    assert gather_wheels([wheel], "3.11", tmp_path / "cache", print) == [
        tmp_path / "cache/wheels" / wheel.file
    ]


def test_a_wheel_in_the_cache_that_was_changed_is_not_used(tmp_path: Path, no_network: None) -> None:
    (tmp_path / "cache/wheels").mkdir(parents=True)
    wheel = a_locked_wheel(tmp_path / "cache/wheels")
    with (tmp_path / "cache/wheels" / wheel.file).open("ab") as file:
        file.write(b"!")
    with pytest.raises(CannotGather, match="pip cannot fetch wheels") as raised:
        gather_wheels([wheel], "3.11", tmp_path / "cache", lambda line: None)
    assert "Connect this machine" in raised.value.remedy
    assert list((tmp_path / "cache/wheels").iterdir()) == []


def test_a_wheel_of_the_same_name_with_other_bytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a tampered package index would give it."""
    (tmp_path / "index").mkdir()
    info = {"some-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: some\nVersion: 1.0\n"}
    info["some-1.0.dist-info/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    file = a_wheel(tmp_path / "index", info)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    with pytest.raises(NotAsLocked, match=r"not what field/data/wheels\.lock says"):
        gather_wheels([Wheel(file.name, "0" * 64, 1)], "3.11", tmp_path / "cache", lambda line: None)
    good = Wheel(file.name, sha256_of(file), 1)
    (found,) = gather_wheels([good], "3.11", tmp_path / "cache", lambda line: None)
    assert sha256_of(found) == good.sha256


def test_a_debian_package_is_fetched_from_the_first_archive_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    (tmp_path / "archive/pool").mkdir(parents=True)
    file = a_deb(tmp_path / "archive/pool", [entry("a")])
    monkeypatch.setattr(gather, "_ARCHIVE", (tmp_path / "archive").as_uri())
    deb = Deb("some", "1", "pool/some.deb", sha256_of(file), "", 1, (), "libraries")
    (found,) = gather_debs([deb], tmp_path / "cache", lambda line: None)
    assert found.read_bytes() == file.read_bytes()
    file.write_bytes(b"another")
    found.unlink()
    with pytest.raises(NotAsLocked, match=r"not what field/data/debs\.lock says"):
        gather_debs([deb], tmp_path / "cache", lambda line: None)
    assert list((tmp_path / "cache/debs").iterdir()) == []


def test_without_a_network_the_package_that_lacks_is_named(tmp_path: Path, no_network: None) -> None:
    deb = Deb("some", "1", "pool/some.deb", "0" * 64, "0" * 40, 1, (), "libraries")
    with pytest.raises(CannotGather, match=r"some\.deb cannot be fetched"):
        gather_debs([deb], tmp_path / "cache", lambda line: None)
    assert list((tmp_path / "cache/debs").iterdir()) == []
