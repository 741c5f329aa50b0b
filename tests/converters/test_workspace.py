"""What a user has is never half a bundle, and nothing but a bundle is ever replaced."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from converters import workspace as module
from converters.stages import StageFailed
from converters.workspace import Workspace, workspace
from rpi_runtime.errors import ResourceError, UsageError
from tests.converters import small_hosts

ROOT = Path(__file__).resolve().parents[2]


def fill(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(text)
    (folder / "decoder.tflite").write_text(text)


def content(bundle: Path) -> set[str]:
    return {p.read_text() for p in bundle.iterdir()}


def make(bundle: Path, text: str) -> None:
    with workspace(bundle) as space:
        fill(space.new_bundle, text)
        space.publish()


@pytest.fixture(params=["exchange", "two renames"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle that says "old", on a system that can exchange folders or cannot."""
    if request.param == "two renames":
        monkeypatch.setattr(module, "exchange", lambda one, other: False)
    make(tmp_path / "bundle", "old")
    return tmp_path / "bundle"


def test_a_new_bundle_takes_the_place_of_the_old_and_nothing_else_stays(bundle: Path) -> None:
    make(bundle, "new")
    assert content(bundle) == {"new"}
    assert list(bundle.parent.iterdir()) == [bundle]


def test_an_error_leaves_the_old_bundle_and_what_was_finished(bundle: Path) -> None:
    def stopped() -> None:
        with workspace(bundle) as space:
            fill(space.new_bundle, "half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert content(bundle) == {"old"}
    with workspace(bundle) as space:
        assert content(space.new_bundle) == {"half"}


def test_an_error_before_anything_was_finished_leaves_no_trace(bundle: Path) -> None:
    with pytest.raises(UsageError), workspace(bundle):
        raise UsageError("a wrong option")
    assert list(bundle.parent.iterdir()) == [bundle]


def test_a_crash_of_the_first_stage_keeps_its_log(bundle: Path) -> None:
    def crash() -> None:
        with workspace(bundle) as space:
            (space.folder / "log").write_text("the end")
            raise StageFailed("crash")

    with pytest.raises(StageFailed):
        crash()
    assert (bundle.with_name("bundle.partial") / "log").exists()


def test_an_exchange_that_was_cut_off_is_undone(tmp_path: Path) -> None:
    """The state between the two renames, as a power cut would leave it."""
    bundle = tmp_path / "bundle"
    make(bundle, "old")
    with suppress(KeyboardInterrupt), workspace(bundle) as space:
        fill(space.new_bundle, "new")
        bundle.rename(space.folder / "previous")
        raise KeyboardInterrupt
    assert not bundle.exists()
    with workspace(bundle):
        assert content(bundle) == {"old"}


def test_a_reader_finds_a_whole_bundle_at_every_moment(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    make(bundle, "0")
    script = f"""
        from pathlib import Path
        from tests.converters.test_workspace import make
        for n in range(1, 150):
            make(Path({str(bundle)!r}), str(n))
    """
    writer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT)
    seen = set()
    while writer.poll() is None:
        folder = os.open(bundle, os.O_RDONLY)  # never missing
        try:
            texts = set()
            for name in ("manifest.json", "decoder.tflite"):
                with suppress(FileNotFoundError):  # of the old bundle, which is being removed
                    file = os.open(name, os.O_RDONLY, dir_fd=folder)
                    texts.add(os.read(file, 100).decode())
                    os.close(file)
            assert len(texts) <= 1
            seen |= texts
        finally:
            os.close(folder)
    assert writer.returncode == 0
    assert len(seen) > 5
    assert content(bundle) == {"149"}


def test_two_converts_of_one_bundle_do_not_meet(bundle: Path) -> None:
    with workspace(bundle):
        with pytest.raises(UsageError, match="another convert is writing"), workspace(bundle):
            pass
        with workspace(bundle.with_name("other")):
            pass
    with workspace(bundle):
        pass


def test_the_lock_ends_with_its_process(bundle: Path) -> None:
    script = f"""
        import os, signal
        from pathlib import Path
        from converters.workspace import workspace
        with workspace(Path({str(bundle)!r})) as space:
            (space.folder / "work").mkdir()
            (space.folder / "work" / "x").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT)
    assert killed.returncode == -9
    with workspace(bundle) as space:
        assert (space.folder / "work" / "x").exists()


def test_a_link_to_a_bundle_stays_a_link(bundle: Path) -> None:
    link = bundle.with_name("current")
    link.symlink_to(bundle)
    make(link, "new")
    assert link.is_symlink()
    assert content(bundle) == {"new"}


def refusal(bundle: Path) -> UsageError:
    with pytest.raises(UsageError) as caught, workspace(bundle):
        pass
    assert caught.value.remedy
    return caught.value


def test_what_is_not_a_bundle_is_never_replaced(tmp_path: Path) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("years of work")
    assert "exists and is not a bundle" in refusal(thesis).message
    (thesis / "manifest.json").write_text("{}")
    assert "files that no convert made: chapter.txt" in refusal(thesis).message
    assert "exists and is a file" in refusal(thesis / "chapter.txt").message
    assert (thesis / "chapter.txt").read_text() == "years of work"
    assert "is a mount point" in refusal(Path("/proc")).message


def test_a_file_put_into_the_old_bundle_meanwhile_is_not_lost(bundle: Path) -> None:
    def convert_while_somebody_writes() -> None:
        with workspace(bundle) as space:
            fill(space.new_bundle, "new")
            (bundle / "notes.txt").write_text("mine")
            space.publish()

    with pytest.raises(UsageError, match=r"no convert made: notes.txt"):
        convert_while_somebody_writes()
    assert (bundle / "notes.txt").read_text() == "mine"


def test_an_empty_folder_may_become_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty", "new")
    assert content(tmp_path / "empty") == {"new"}


def test_somebody_elses_folder_of_the_same_name_is_left_alone(bundle: Path) -> None:
    partial = bundle.with_name("bundle.partial")
    partial.mkdir()
    (partial / "mine").touch()
    assert "is not the work folder of a convert" in refusal(bundle).message
    assert (partial / "mine").exists()


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no" / "bundle").message == f"{tmp_path / 'no'}: no such folder"


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder that this process may not write, also when the tests run as root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        if os.geteuid() == 0:
            os.seteuid(65534)
            try:
                yield folder
            finally:
                os.seteuid(0)
        else:
            yield folder
        folder.chmod(0o755)


def test_no_permission_to_write_is_said_before_anything_is_done(nobody: Path) -> None:
    with pytest.raises(ResourceError) as caught, workspace(nobody / "bundle"):
        pass
    assert f"cannot write {nobody / 'bundle.partial'}: Permission denied" in caught.value.message
    assert "that you may write" in caught.value.remedy


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_hosts.disk(tmp_path, megabytes=1) as disk:
        yield disk


def test_a_full_disk_leaves_the_old_bundle_and_says_how_full(small_disk: Path) -> None:
    bundle = small_disk / "bundle"
    make(bundle, "old")

    def overfill(space: Workspace) -> None:
        fill(space.new_bundle, "new")
        (space.new_bundle / "vrc.tflite").write_bytes(bytes(2 << 20))

    with pytest.raises(ResourceError) as caught, workspace(bundle) as space:
        overfill(space)
    assert "the disk is full: 0.0 MB free while writing" in caught.value.message
    assert content(bundle) == {"old"}
