"""Packages: the same bytes each time, and an installer that installs all or nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from field.package import sysext
from field.package.deb import write_deb
from field.package.errors import CannotGather
from field.package.package import Package, check_runs_there, safe_name, write_archive
from field.package.sysext import check_sysext
from field.platforms import OWN, platform
from rpi_runtime.bundle import Bundle
from rpi_runtime.errors import UsageError
from tests.field.package_parts import Board, bundle, runtime, tree, unpacked


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return Package(runtime(tmp_path / "made"), bundle(tmp_path / "bundle"))


# The archive.


def test_the_same_package_has_the_same_bytes_wherever_and_whenever_it_is_made(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        one = Package(runtime(tmp_path / name), bundle(tmp_path / f"{name} bundle"))
        write_archive(one, tmp_path / f"{name}.tar.gz")
        write_deb(one, tmp_path / f"{name}.deb")
        made.append([(tmp_path / f"{name}{end}").read_bytes() for end in (".tar.gz", ".deb")])
    assert made[0] == made[1]


def test_an_archive_has_one_folder_with_an_installer_and_tells_no_times_or_users(
    tmp_path: Path, package: Package
) -> None:
    write_archive(package, tmp_path / "p.tar.gz")
    with tarfile.open(tmp_path / "p.tar.gz") as held:
        members = held.getmembers()
    assert {member.name.split("/")[0] for member in members} == {"hypervl-edge"}
    names = {member.name.removeprefix("hypervl-edge/") for member in members}
    assert {"install.sh", "uninstall.sh", "README.txt", "package.json", "files.sha256"} <= names
    assert {(m.uid, m.gid, m.uname, m.mtime) for m in members} == {(0, 0, "root", 315532800)}
    assert all(member.isreg() or member.isdir() for member in members)


def test_an_archive_says_what_it_is_for_and_what_such_a_device_loses(tmp_path: Path) -> None:
    folder = unpacked(Package(runtime(tmp_path / "r", "pi-armv7", OWN), None), tmp_path / "u")
    told = json.loads((folder / "package.json").read_text())
    assert (told["target"], told["python"], told["bundle"]) == ("pi-armv7", OWN, None)
    assert "tflite-runtime" in (folder / "README.txt").read_text()
    assert any("tflite-runtime" in line for line in told["loses"])
    for text in (folder / "install.sh", folder / "README.txt", folder / "uninstall.sh"):
        assert "@" not in text.read_text().replace('"$@"', "")


def test_nothing_is_left_where_writing_ended_midway(
    tmp_path: Path, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/p.tar.gz").write_text("before")

    def full(count: int) -> None:
        raise OSError(28, "No space left on device")

    for write, name in ((write_archive, "p.tar.gz"), (write_deb, "p.deb")):
        with pytest.raises(OSError, match="No space left"):
            write(package, tmp_path / "out" / name, full)
    assert tree(tmp_path / "out") == ["p.tar.gz"]
    assert (tmp_path / "out/p.tar.gz").read_text() == "before"


def test_a_bundles_name_cannot_steer_a_shell() -> None:
    assert safe_name("my bundle; rm -rf $HOME") == "my-bundle-rm--rf-HOME"
    assert safe_name("..") == "bundle"


@pytest.mark.parametrize(
    ("name", "recipe", "refused"),
    [
        ("decoder", "fp32", False),
        ("decoder", "int4-channel", False),
        ("decoder", "int8", True),
        ("decoder", "int4", True),
        ("decoder", "int4-block32", True),
        ("vision_base", "fp16", False),
        ("vision_base", "w8a8", False),
        ("vision_base", "int4-channel", True),
        ("vrc", "int8", True),
    ],
)
def test_a_bundle_that_tflite_runtime_miscomputes_is_refused_for_32_bits(
    monkeypatch: pytest.MonkeyPatch, name: str, recipe: str, refused: bool
) -> None:
    component = SimpleNamespace(name=name, recipe=recipe)
    opened = SimpleNamespace(manifest=SimpleNamespace(components=(component,)))
    monkeypatch.setattr(Bundle, "open", lambda path, verify: opened)
    check_runs_there(Path("bundle"), platform("pi-arm64"))
    if not refused:
        return check_runs_there(Path("bundle"), platform("pi-armv7"))
    with pytest.raises(UsageError, match=f"miscomputes {name} {recipe}") as raised:
        check_runs_there(Path("bundle"), platform("pi-armv7"))
    assert "decoder=fp16" in raised.value.remedy


# install.sh.


def test_it_installs_in_the_users_own_folder_and_starts_with_the_bundle(
    tmp_path: Path, package: Package
) -> None:
    folder, board = unpacked(package, tmp_path / "u"), Board(tmp_path / "board")
    done = board.sh(folder / "install.sh")
    assert done.returncode == 0, done.stderr
    assert package.bundle
    assert (board.prefix / "current").read_text() == package.current
    assert f"{board.prefix}/bin/toolkit run --image" in done.stdout
    asked = board.sh(board.prefix / "bin/toolkit", "run", "a b")
    assert asked.stdout == f"{board.prefix}/bundles/{package.bundle.id}: run a b\n"
    assert not (board.prefix / "previous").exists()


def test_installing_twice_changes_nothing_and_mends_what_was_damaged(
    tmp_path: Path, package: Package
) -> None:
    folder, board = unpacked(package, tmp_path / "u"), Board(tmp_path / "board")
    board.sh(folder / "install.sh")
    before = tree(board.prefix)
    module = board.prefix / "runtimes" / package.runtime.id / "site/some/module.py"
    module.write_text("cut o")
    assert board.sh(folder / "install.sh").returncode == 0
    assert module.read_text() == "answer = 42\n"
    assert tree(board.prefix) == before


def test_an_update_keeps_the_version_before_and_a_package_without_a_bundle_keeps_the_bundle(
    tmp_path: Path, package: Package
) -> None:
    board = Board(tmp_path / "board")
    board.sh(unpacked(package, tmp_path / "u") / "install.sh")
    newer = Package(runtime(tmp_path / "newer", says="#!/bin/sh\necho newer\n"), None)
    assert board.sh(unpacked(newer, tmp_path / "v") / "install.sh").returncode == 0
    assert (board.prefix / "previous").read_text() == package.current
    assert (board.prefix / "current").read_text() == package.current.replace(
        package.runtime.id, newer.runtime.id
    )
    assert len(list((board.prefix / "runtimes").iterdir())) == 2
    assert board.sh(board.prefix / "bin/toolkit").stdout == "newer\n"


def test_uninstalling_removes_what_was_installed_and_only_that(tmp_path: Path, package: Package) -> None:
    folder, board = unpacked(package, tmp_path / "u"), Board(tmp_path / "board")
    board.sh(folder / "install.sh", "--prefix", "some place")
    prefix = board.folder / "some place"
    (prefix / "field/run 1").mkdir(parents=True)
    (prefix / "field/run 1/records.jsonl").write_text("{}\n")
    done = board.sh(prefix / "uninstall.sh")
    assert done.returncode == 0, done.stderr
    assert tree(prefix) == ["field/run 1/records.jsonl"]
    again = board.sh(folder / "uninstall.sh", "--prefix", str(prefix))
    assert (again.returncode, "nothing is installed" in again.stderr) == (3, True)


def test_uninstalling_leaves_no_folder_behind(tmp_path: Path, package: Package) -> None:
    folder, board = unpacked(package, tmp_path / "u"), Board(tmp_path / "board")
    board.sh(folder / "install.sh")
    assert board.sh(folder / "uninstall.sh").returncode == 0
    assert tree(board.home / ".local") == ["share"]


def test_it_may_be_installed_where_it_was_unpacked(tmp_path: Path, package: Package) -> None:
    """As on a phone, where /data/local/tmp has room for both."""
    folder, board = unpacked(package, tmp_path / "u"), Board(tmp_path / "board")
    done = board.sh(folder / "install.sh", "--prefix", str(folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert board.sh(folder / "bin/toolkit", "x").stdout.endswith(": x\n")


@pytest.mark.parametrize(
    ("board", "said"),
    [
        ({"machine": "x86_64"}, "this machine is x86_64, and the package is for pi-arm64"),
        ({"machine": "armv6l"}, "this machine is armv6l"),
        ({"python": ""}, "there is no Python 3.11 here"),
        ({"python": "3.13"}, "Python is 3.13 here, and the package is for Python 3.11"),
        ({"python": "3.13"}, "toolkit package --python 3.13"),
        ({"python": "3.9"}, "with a Python of its own: --python own"),
        ({"glibc": "glibc-2.26"}, "glibc 2.26, and the package needs 2.27 or newer"),
        ({"glibc": "-"}, "the C library here is not glibc"),
    ],
)
def test_a_device_that_cannot_run_it_is_told_why_and_nothing_is_installed(
    tmp_path: Path, package: Package, board: dict[str, str], said: str
) -> None:
    device = Board(tmp_path / "board", **board)
    done = device.sh(unpacked(package, tmp_path / "u") / "install.sh")
    assert done.returncode == 3
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert tree(device.home) == []


@pytest.mark.parametrize("glibc", ["glibc-2.27", "glibc-2.100", "glibc-3.0"])
def test_a_newer_c_library_will_do(tmp_path: Path, package: Package, glibc: str) -> None:
    device = Board(tmp_path / "board", glibc=glibc)
    assert device.sh(unpacked(package, tmp_path / "u") / "install.sh").returncode == 0


def test_a_python_of_32_bits_on_a_kernel_of_64_is_noticed(tmp_path: Path, package: Package) -> None:
    """Raspberry Pi OS of 32 bits has had such a kernel since 2023."""
    device = Board(tmp_path / "board")
    device.program("python3", 'case "$2" in *ctypes*) echo 3.11 32 glibc-2.36 ;; *) echo 3.11 ;; esac')
    done = device.sh(unpacked(package, tmp_path / "u") / "install.sh")
    assert done.returncode == 3
    assert "--target pi-armv7" in done.stderr


def test_a_python_that_lacks_modules_is_noticed(tmp_path: Path, package: Package) -> None:
    device = Board(tmp_path / "board")
    broken = "echo \"ModuleNotFoundError: No module named 'ctypes'\" >&2; exit 1"
    device.program("python3", f'case "$2" in *ctypes*) {broken} ;; *) echo 3.11 ;; esac')
    done = device.sh(unpacked(package, tmp_path / "u") / "install.sh")
    assert done.returncode == 3
    assert "No module named 'ctypes'" in done.stderr
    assert "sudo apt install python3" in done.stderr


def test_a_package_with_its_own_python_asks_for_none(tmp_path: Path) -> None:
    made = Package(runtime(tmp_path / "r", "pi-arm64", OWN), None)
    device = Board(tmp_path / "board", python="")
    assert device.sh(unpacked(made, tmp_path / "u") / "install.sh").returncode == 0


def test_too_little_space_is_told_before_anything_is_written(tmp_path: Path, package: Package) -> None:
    device = Board(tmp_path / "board")
    device.program("df", "echo Filesystem 1024-blocks Used Available; echo /dev/root 99999 89999 10000 90% /")
    done = device.sh(unpacked(package, tmp_path / "u") / "install.sh")
    assert done.returncode == 3
    assert "has 10 MB free, and 17 MB are needed" in done.stderr
    assert tree(device.home) == []


def test_programs_of_32_bits_need_pages_of_4_kb(tmp_path: Path) -> None:
    """A Pi 5's usual kernel has larger ones."""
    device = Board(tmp_path / "board", machine="aarch64", python="")
    folder = unpacked(Package(runtime(tmp_path / "r", "pi-armv7", OWN), None), tmp_path / "u")
    device.program("getconf", "echo 16384")
    done = device.sh(folder / "install.sh")
    assert done.returncode == 3
    assert "pages of 16384 bytes" in done.stderr
    device.program("getconf", "echo 4096")
    assert device.sh(folder / "install.sh").returncode == 0


def test_a_full_disk_is_no_matter_when_all_of_it_is_there(tmp_path: Path, package: Package) -> None:
    folder, device = unpacked(package, tmp_path / "u"), Board(tmp_path / "board")
    device.sh(folder / "install.sh")
    device.program("df", "echo; echo /dev/root 99999 99999 0 100% /")
    assert device.sh(folder / "install.sh").returncode == 0


def test_a_copy_that_fails_midway_leaves_what_was_installed(tmp_path: Path, package: Package) -> None:
    device = Board(tmp_path / "board")
    device.sh(unpacked(package, tmp_path / "u") / "install.sh")
    before = tree(device.prefix)
    newer = Package(runtime(tmp_path / "newer", says="#!/bin/sh\necho newer\n"), package.bundle)
    device.program("cp", "mkdir -p \"$3\"; echo 'No space left on device' >&2; exit 1")
    done = device.sh(unpacked(newer, tmp_path / "v") / "install.sh")
    assert done.returncode == 3
    assert "What was installed before is as it was" in done.stderr
    assert tree(device.prefix) == before
    assert (device.prefix / "current").read_text() == package.current


def test_a_damaged_package_is_noticed(tmp_path: Path, package: Package) -> None:
    folder, device = unpacked(package, tmp_path / "u"), Board(tmp_path / "board")
    (folder / "runtimes" / package.runtime.id / "site/some/module.py").write_text("answer = 43\n")
    done = device.sh(folder / "install.sh")
    assert done.returncode == 3
    assert "module.py" in done.stderr
    assert tree(device.home) == []


@pytest.mark.parametrize(
    "given",
    [
        ["--nonsense"],
        ["--prefix"],
        ["--prompt", "What?"],
        ["--watch", "in"],
        ["--watch", "in", "--prompt", ""],
    ],
)
def test_wrong_usage_is_told_with_exit_code_2(tmp_path: Path, package: Package, given: list[str]) -> None:
    device = Board(tmp_path / "board")
    done = device.sh(unpacked(package, tmp_path / "u") / "install.sh", *given)
    assert done.returncode == 2
    assert tree(device.home) == []


# The watched folder.


def test_a_watched_folder_becomes_a_service_of_the_user(tmp_path: Path, package: Package) -> None:
    folder, device = unpacked(package, tmp_path / "u"), Board(tmp_path / "board")
    device.program("systemctl", f'echo "$*" >>{device.folder}/asked')
    prompt = 'Is "FLOW $C" at 10% \\ now?'
    done = device.sh(folder / "install.sh", "--watch", "in box", "--prompt", prompt)
    assert done.returncode == 0, done.stderr
    unit = device.home / ".config/systemd/user/hypervl-edge-watch.service"
    (line,) = (line for line in unit.read_text().splitlines() if line.startswith("ExecStart="))
    assert f'"{device.prefix}/bin/toolkit" watch --folder "{device.folder}/in box"' in line
    assert r'--prompt "Is \"FLOW $$C\" at 10%% \\ now?"' in line
    assert "--user enable hypervl-edge-watch.service" in (device.folder / "asked").read_text()
    if shutil.which("systemd-analyze"):
        checked = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True
        )
        assert unit.name not in checked.stderr
    (device.folder / "asked").unlink()
    newer = Package(package.runtime, bundle(tmp_path / "newer", text='{"newer": 1}'))
    device.sh(unpacked(newer, tmp_path / "v") / "install.sh")
    assert "--user restart hypervl-edge-watch.service" in (device.folder / "asked").read_text()
    assert device.sh(device.prefix / "uninstall.sh").returncode == 0
    assert not unit.exists()
    assert "--user disable --now" in (device.folder / "asked").read_text()


def test_a_service_is_only_written_with_no_start_or_without_systemd(tmp_path: Path, package: Package) -> None:
    folder, device = unpacked(package, tmp_path / "u"), Board(tmp_path / "board")
    for more in ([], ["--no-start"]):
        done = device.sh(folder / "install.sh", "--watch", "in", "--prompt", "What?", *more)
        assert done.returncode == 0
        assert "systemctl --user enable --now hypervl-edge-watch.service" in done.stdout


def test_android_has_no_service(tmp_path: Path) -> None:
    made = Package(runtime(tmp_path / "r", "android-arm64", OWN), bundle(tmp_path / "b"))
    device = Board(tmp_path / "board")
    done = device.sh(unpacked(made, tmp_path / "u") / "install.sh", "--watch", "in", "--prompt", "What?")
    assert done.returncode == 2
    assert "Android has no systemd" in done.stderr


# Other kinds.


def test_a_debian_package_is_one_to_dpkg(tmp_path: Path, package: Package) -> None:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not here")
    write_deb(package, tmp_path / "p.deb")

    def dpkg(*given: str) -> str:
        return subprocess.run(["dpkg-deb", *given], capture_output=True, text=True, check=True).stdout

    file = str(tmp_path / "p.deb")
    assert dpkg("--field", file, "Architecture") == "arm64\n"
    assert "python3 (>= 3.11), python3 (<< 3.12), libc6 (>= 2.27)" in dpkg("--field", file, "Depends")
    listed = dpkg("--contents", file)
    assert {line.split()[1] for line in listed.splitlines()} == {"root/root"}
    dpkg("--raw-extract", file, str(tmp_path / "out"))
    sums = subprocess.run(["md5sum", "-c", "DEBIAN/md5sums"], cwd=tmp_path / "out", capture_output=True)
    assert sums.returncode == 0
    assert (tmp_path / "out/opt/hypervl-edge/current").read_text() == package.current
    starter = (tmp_path / "out/usr/bin/toolkit").read_text()
    assert 'exec /opt/hypervl-edge/bin/toolkit "$@"' in starter
    counted = (tmp_path / "out/DEBIAN/md5sums").read_text().splitlines()
    assert len(counted) == len(tree(tmp_path / "out")) - 3


def test_android_has_neither_debian_packages_nor_system_extensions(tmp_path: Path) -> None:
    made = Package(runtime(tmp_path / "r", "android-arm64", OWN), None)
    with pytest.raises(UsageError, match="Android has no dpkg"):
        write_deb(made, tmp_path / "p.deb")
    with pytest.raises(UsageError, match="Android has no systemd"):
        check_sysext(made.runtime.platform)


def test_without_mksquashfs_a_system_extension_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sysext.shutil, "which", lambda name: None)
    with pytest.raises(CannotGather, match="mksquashfs") as raised:
        check_sysext(platform("pi-arm64"))
    assert raised.value.remedy == "sudo apt install squashfs-tools"
