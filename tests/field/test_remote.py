"""A command that runs on a device does what it would do here: words, files, streams, exit code, Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from field.address import LOCAL, Address
from field.connect import LocalDevice, connect
from field.device import DeviceError, DeviceLost
from field.installed import Installed, read_installed
from field.remote import Given, Word, run_there, unpack

ROOT = Path(__file__).resolve().parent.parent.parent
# In place of the toolkit: says what it was given, and does as it is told.
PROGRAM = f"""#!{sys.executable}
import json, os, pathlib, signal, sys, time
words = sys.argv[1:]
print(json.dumps({{"words": words, "files": sorted(map(str, pathlib.Path(".").rglob("*")))}}), flush=True)
for word in words:
    if word.startswith("--read="):
        print(pathlib.Path(word[7:]).read_text(), end="", flush=True)
    if word.startswith("--write="):
        at = pathlib.Path(word[8:])
        (at.parent if at.suffix else at).mkdir(parents=True, exist_ok=True)
        (at if at.suffix else at / "result").write_text("written there")
        print("wrote", at, file=sys.stderr)
    if word.startswith("--exit="):
        sys.exit(int(word[7:]))
    if word.startswith("--die"):
        os.kill(os.getppid(), signal.SIGKILL)
"""


@pytest.fixture
def here(tmp_path: Path) -> Installed:
    return made(tmp_path / "prefix")


def made(prefix: Path) -> Installed:
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin/toolkit").write_text(PROGRAM)
    (prefix / "bin/toolkit").chmod(0o755)
    return read_installed(connect("local"), str(prefix))


def ran(here: Installed, *words: Word) -> tuple[int, str, str]:
    out, err = io.BytesIO(), io.BytesIO()
    code = run_there(connect("local"), here, words, environment={}, out=out, err=err)
    return code, out.getvalue().decode(), err.getvalue().decode()


def test_exit_codes_come_back(here: Installed) -> None:
    assert [ran(here, f"--exit={code}")[0] for code in (0, 1, 2, 3, 77, 130)] == [0, 1, 2, 3, 77, 130]


def test_files_are_there_and_paths_are_ours_in_what_is_printed(here: Installed, tmp_path: Path) -> None:
    photo = tmp_path / "my photos" / "a b.txt"
    photo.parent.mkdir()
    photo.write_text("pixels\n")
    code, out, _ = ran(here, Given(photo, prefix="--read="))
    assert code == 0
    told, _, rest = out.partition("\n")
    assert rest == "pixels\n"
    assert json.loads(told)["words"] == [f"--read={photo}"]


def test_a_relative_path_is_the_same_there(
    here: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/a.txt").write_text("x")
    _, out, _ = ran(here, Given(Path("deep/a.txt"), prefix="--read="))
    assert "deep/a.txt" in json.loads(out.partition("\n")[0])["files"]


def test_what_it_writes_comes_here(here: Installed, tmp_path: Path) -> None:
    file, folder = tmp_path / "out" / "page.html", tmp_path / "results"
    _, _, err = ran(here, Given(file, is_output=True, prefix="--write="))
    ran(here, Given(folder, is_output=True, prefix="--write="))
    assert file.read_text() == (folder / "result").read_text() == "written there"
    assert err == f"wrote {file}\n"


def test_a_folder_that_goes_on_is_there(here: Installed, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "earlier").write_text("kept")
    ran(here, Given(folder, is_output=True, prefix="--write="))
    assert {path.name for path in folder.iterdir()} == {"earlier", "result"}


def test_a_dataset_travels_once(here: Installed, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.txt").write_text("x" * 1000)
    sent: list[int] = []
    for _ in range(2):
        run_there(
            connect("local"),
            here,
            [Given(data, prefix="--data=")],
            environment={},
            out=io.BytesIO(),
            err=io.BytesIO(),
            on_sent=sent.append,
        )
    assert sum(sent) == 1000


def test_nothing_is_left_there(here: Installed, tmp_path: Path) -> None:
    photo = tmp_path / "a.txt"
    photo.write_text("secret")
    ran(here, Given(photo, prefix="--read="))
    assert list((Path(here.prefix) / "work").iterdir()) == []


def test_a_session_that_ends_too_early_is_lost(here: Installed) -> None:
    with pytest.raises(DeviceLost):
        ran(here, "--die")


@pytest.mark.parametrize("name", ["\\a", "a b", "it's $(so)"])
def test_any_name_of_what_is_written_comes_here(here: Installed, tmp_path: Path, name: str) -> None:
    for target in (tmp_path / name, tmp_path / f"{name}.html"):
        ran(here, Given(target, is_output=True, prefix="--write="))
    assert (tmp_path / name / "result").read_text() == "written there"
    assert (tmp_path / f"{name}.html").read_text() == "written there"


@settings(max_examples=15)
@given(words=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)))
def test_words_arrive_as_they_are(words: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        _, out, _ = ran(made(Path(name)), "--", *words)
    assert json.loads(out.splitlines()[0])["words"] == ["--", *words]


def test_ctrl_c_ends_it_there(tmp_path: Path) -> None:
    """A real process, held by a host that is told to stop."""
    here = made(tmp_path / "prefix")
    (tmp_path / "prefix/bin/toolkit").write_text(
        f"#!{sys.executable}\nimport os, sys, time\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from field.held import hold\nhold()\nprint(os.getpid(), flush=True)\n"
        "try:\n    time.sleep(120)\n"
        "except KeyboardInterrupt:\n    print('ended', flush=True)\n    sys.exit(130)\n"
    )
    out = io.BytesIO()
    main = threading.main_thread().ident
    assert main is not None

    def stop() -> None:
        while b"\n" not in out.getvalue():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop, daemon=True).start()
    code = run_there(connect("local"), here, [], environment={}, out=out, err=io.BytesIO())
    pid, said = out.getvalue().decode().split()
    assert (code, said) == (130, "ended")
    assert subprocess.run(["kill", "-0", pid], capture_output=True).returncode != 0


@pytest.mark.parametrize("name", ["/tmp/outside", "../outside", "a/../../outside"])
def test_an_archive_is_unpacked_inside_its_folder_only(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "archive.tar"
    with tarfile.open(archive, "w") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    with pytest.raises(DeviceError, match="outside its folder"):
        unpack(archive, tmp_path / "files")


def test_links_in_an_archive_are_left_out(tmp_path: Path) -> None:
    archive = tmp_path / "archive.tar"
    with tarfile.open(archive, "w") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(link)
        inside = tarfile.TarInfo("link/passwd")
        inside.size = 1
        tar.addfile(inside, io.BytesIO(b"x"))
    unpack(archive, tmp_path / "files")
    assert (tmp_path / "files/link/passwd").read_text() == "x"
    assert not (tmp_path / "files/link").is_symlink()


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    class Gone(LocalDevice):
        def command(self, script: str) -> list[str]:
            return ["/bin/sh", "-c", "exit 255"]

    with pytest.raises(DeviceLost):
        read_installed(Gone(Address(LOCAL)), str(tmp_path))
