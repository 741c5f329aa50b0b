"""`toolkit package`: what it refuses before anything is fetched, and what it tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from field.package import runtime as runtimes
from field.package.package import Package
from rpi_runtime.errors import BundleError, UsageError
from tests.field.package_parts import runtime
from toolkit.commands.package import package
from toolkit.packing_view import print_package


@pytest.fixture(autouse=True)
def nothing_is_gathered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def gather(*given: object, **named: object) -> None:
        raise AssertionError("something was to be fetched")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(runtimes, "gather_wheels", gather)
    monkeypatch.setattr(runtimes, "gather_debs", gather)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"target": "pi-arm46"}, "unknown target 'pi-arm46'"),
        ({"target": "pi-arm64", "python": "3.8"}, "--python 3.8"),
        ({"target": "android-arm64", "python": "3.11"}, "not all wheels exist for android-arm64"),
        ({"target": "android-arm64", "deb": True}, "Android has no dpkg"),
        ({"target": "pi-arm64", "deb": True, "sysext": True}, "two kinds of package"),
        ({"target": "pi-arm64", "sysext": True}, "ends in .raw"),
        ({"target": "pi-arm64", "deb": True}, "ends in .deb"),
        ({"target": "pi-arm64", "output": Path("p.zip")}, "ends in .tar.gz"),
        ({"target": "pi-arm64", "output": Path("/")}, "is a folder"),
        ({"target": "pi-arm64", "output": Path("/nowhere/p.tar.gz")}, "there is no folder /nowhere"),
    ],
)
def test_what_cannot_be_packed_is_refused_at_once(
    tmp_path: Path, given: dict[str, object], said: str
) -> None:
    with pytest.raises(UsageError) as raised:
        package(**{"output": tmp_path / "p.tar.gz", **given})  # type: ignore[arg-type]
    assert said in raised.value.message
    assert raised.value.remedy
    assert not (tmp_path / "p.tar.gz").exists()


def test_a_folder_that_is_no_bundle_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/manifest.json").write_text("{}")
    for bundle in (tmp_path / "bundle", tmp_path / "nowhere"):
        with pytest.raises(BundleError):
            package(bundle=bundle, target="pi-arm64", output=tmp_path / "p.tar.gz")


def test_json_is_what_the_archive_says_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = runtime(tmp_path / "made")
    monkeypatch.setattr(runtimes, "build_runtime", lambda *given, **named: made)
    package(target="pi-arm64", output=tmp_path / "p.tar.gz", as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["runtime"], told["target"], told["glibc"]) == (made.id, "pi-arm64", "2.27")
    assert told["output_bytes"] == (tmp_path / "p.tar.gz").stat().st_size


def test_the_table_has_the_size_of_each_part_and_what_such_a_device_loses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p").write_bytes(b"1" * 200_000)
    print_package(Package(runtime(tmp_path / "made", "pi-armv7", "own"), None), tmp_path / "p", "a kernel")
    told = capsys.readouterr().out
    assert "this program" in told
    assert "0.2 MB" in told
    assert "tflite-runtime 2.14" in told
