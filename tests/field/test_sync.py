"""Folders reach a device whole or not at all, and go on where a lost connection ended them."""

from __future__ import annotations

import os
import shlex
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from field.address import LOCAL, Address
from field.connect import LocalDevice, connect
from field.device import DeviceError, DeviceLost
from field.sync import digest, items_of, push

LARGE = 3 << 20  # bytes; sent on its own


class Cut(LocalDevice):
    """Its connection ends when so many bytes went there; what arrived stays."""

    def __init__(self, bytes_: int) -> None:
        super().__init__(Address(LOCAL))
        self._bytes = bytes_

    def command(self, script: str) -> list[str]:
        if "cat >>" not in script and "tar xf" not in script:
            return super().command(script)
        return [
            "/bin/sh",
            "-c",
            f"head -c {self._bytes} | sh -c {shlex.quote(script)} >/dev/null; kill -9 $$",
        ]


class Counted(LocalDevice):
    """Counts the bytes of files that travel."""

    def __init__(self) -> None:
        super().__init__(Address(LOCAL))
        self.copies: list[str] = []

    def command(self, script: str) -> list[str]:
        if "cat >>" in script or "tar xf" in script:
            self.copies.append(script)
        return super().command(script)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "deep/er").mkdir(parents=True)
    (folder / "large.bin").write_bytes(os.urandom(LARGE))
    (folder / "deep/small.txt").write_text("small\n")
    (folder / "deep/er/empty").write_bytes(b"")
    return folder


def same(one: Path, other: Path) -> bool:
    def content(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    return content(one) == content(other)


def test_a_folder_arrives_as_it_is(source: Path, tmp_path: Path) -> None:
    counted: list[int] = []
    sent = push(connect("local"), items_of(source), str(tmp_path / "there"), on_bytes=counted.append)
    assert same(source, tmp_path / "there")
    assert sent.bytes == sum(counted) == LARGE + 6
    assert not (tmp_path / "there.partial").exists()


@pytest.mark.parametrize("bytes_", [0, 1000, 1 << 20, LARGE - 1])
def test_a_cut_connection_leaves_no_folder_and_the_same_call_sends_the_rest(
    source: Path, tmp_path: Path, bytes_: int
) -> None:
    target = tmp_path / "there"
    with pytest.raises(DeviceLost):
        push(Cut(bytes_), items_of(source), str(target))
    assert not target.exists()
    arrived = tmp_path / "there.partial/large.bin"
    there = arrived.stat().st_size if arrived.exists() else 0
    counted: list[int] = []
    sent = push(connect("local"), items_of(source), str(target), on_bytes=counted.append)
    assert same(source, target)
    assert sent.kept_bytes >= there
    assert sum(counted) == LARGE + 6


def test_what_arrived_changed_is_sent_again(source: Path, tmp_path: Path) -> None:
    partial = tmp_path / "there.partial"
    partial.mkdir()
    (partial / "large.bin").write_bytes(bytes(LARGE // 2))  # not what the file begins with
    push(connect("local"), items_of(source), str(tmp_path / "there"))
    assert same(source, tmp_path / "there")


def test_what_is_too_long_is_sent_again(source: Path, tmp_path: Path) -> None:
    partial = tmp_path / "there.partial"
    partial.mkdir()
    (partial / "large.bin").write_bytes(bytes(LARGE + 1))
    push(connect("local"), items_of(source), str(tmp_path / "there"))
    assert same(source, tmp_path / "there")


def test_what_another_folder_there_holds_does_not_travel(source: Path, tmp_path: Path) -> None:
    device = Counted()
    items = items_of(source)
    push(device, items, str(tmp_path / "old"))
    device.copies.clear()
    there = {one.sha256: f"{tmp_path}/old/{one.path}" for one in items}
    sent = push(device, items, str(tmp_path / "new"), there=there)
    assert sent.bytes == 0
    assert same(source, tmp_path / "new")
    assert not [script for script in device.copies if "cat >>" in script]


def test_a_full_disk_is_told_and_no_folder_is_left(source: Path) -> None:
    """/dev/full refuses every byte, as a full disk does."""
    items = items_of(source)
    large = next(one for one in items if one.bytes == LARGE)

    class Full(LocalDevice):
        def command(self, script: str) -> list[str]:
            return super().command(
                script.replace("cat >>", "cat >/dev/full #") if "cat >>" in script else script
            )

    with tempfile.TemporaryDirectory() as name:
        with pytest.raises(DeviceError, match="No space left"):
            push(Full(Address(LOCAL)), [large], f"{name}/there")
        assert not (Path(name) / "there").exists()


def test_one_name_for_the_same_content(source: Path, tmp_path: Path) -> None:
    before = digest(items_of(source))
    assert digest(list(reversed(items_of(source)))) == before
    (source / "deep/small.txt").write_text("other\n")
    assert digest(items_of(source)) != before


HOSTILE = st.text(
    st.sampled_from("ab \n\t'\"$`\\*?[]{}()<>|&;!~#-=%ü\N{SNOWMAN}\x01"), min_size=1, max_size=12
).filter(lambda name: name not in (".", ".."))


@settings(max_examples=15)
@example(names={";"}, folder="\\a")  # GNU tar would take it for a bell
@given(names=st.sets(HOSTILE, min_size=1, max_size=4), folder=HOSTILE)
def test_names_are_only_names(names: set[str], folder: str) -> None:
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "source" / folder
        source.mkdir(parents=True)
        for name in names:
            (source / name).write_bytes(name.encode())
        target = Path(work) / f"there {folder}"
        push(connect("local"), items_of(source.parent), str(target))
        assert same(source.parent, target)
        assert {path.name for path in Path(work).iterdir()} == {"source", target.name}
