"""install.sh and uninstall.sh with the tools that boards and phones have: busybox, and mksh with toybox."""

from __future__ import annotations

from pathlib import Path

import pytest

from field.package.package import Package
from field.platforms import OWN
from tests.conftest import script
from tests.field.package_parts import Board, bundle, runtime, tree, unpacked

pytestmark = pytest.mark.emulation


@pytest.fixture(params=["busybox", "toybox"])
def board(request: pytest.FixtureRequest, tmp_path: Path) -> Board:
    emulation = script("emulation")
    try:
        mirror, host = emulation.debian("apt-get", "dpkg-deb")
        packages = ("busybox-static",) if request.param == "busybox" else ("toybox", "mksh")
        name = f"shell-{request.param}"
        root = emulation.unpacked(name, mirror, emulation.ROOT_SUITE, host, packages, dependencies=False)
    except emulation.Unavailable as reason:
        pytest.skip(str(reason))
    if request.param == "busybox":
        # Its own shell would take its own uname before the one on the PATH.
        return Board(tmp_path / "board", tools=root / "bin/busybox")
    (toybox,) = (path for path in (root / "bin/toybox", root / "usr/bin/toybox") if path.exists())
    return Board(tmp_path / "board", shell=[str(root / "bin/mksh")], tools=toybox)


def test_it_installs_mends_updates_and_uninstalls(board: Board, tmp_path: Path) -> None:
    package = Package(runtime(tmp_path / "r", "android-arm64", OWN), bundle(tmp_path / "b"))
    folder, prefix = unpacked(package, tmp_path / "u"), board.folder / "some place"
    to = ("--prefix", str(prefix))
    for _ in range(2):
        done = board.sh(folder / "install.sh", *to)
        assert (done.returncode, done.stderr) == (0, "")
        assert (prefix / "current").read_text() == package.current
        module = prefix / "runtimes" / package.runtime.id / "site/some/module.py"
        assert module.read_text() == "answer = 42\n"
        module.write_text("cut o")
    newer = Package(package.runtime, bundle(tmp_path / "newer", text='{"newer": 1}'))
    assert board.sh(unpacked(newer, tmp_path / "v") / "install.sh", *to).returncode == 0
    assert (prefix / "current").read_text() == newer.current
    assert (prefix / "previous").read_text() == package.current
    done = board.sh(prefix / "uninstall.sh")
    assert (done.returncode, done.stderr) == (0, "")
    assert not prefix.exists()


def test_it_notices_damage_another_machine_and_too_little_room(board: Board, tmp_path: Path) -> None:
    package = Package(runtime(tmp_path / "r", "android-arm64", OWN), bundle(tmp_path / "b"))
    folder, prefix = unpacked(package, tmp_path / "u"), board.folder / "some place"
    before = tree(board.folder)

    def refused(said: str) -> bool:
        done = board.sh(folder / "install.sh", "--prefix", str(prefix))
        return done.returncode == 3 and said in done.stderr and not prefix.exists()

    board.program("uname", "echo armv8l")
    assert refused("this machine is armv8l")
    board.program("uname", "echo aarch64")
    module = folder / "runtimes" / package.runtime.id / "site/some/module.py"
    module.write_text("answer = 43\n")
    assert refused("module.py")
    board.program("df", "echo; echo /dev/root 99999 89999 10000 90% /")
    assert refused("has 10 MB free")
    assert tree(board.folder) == before
