"""Packed weights on disk: used when they are whole and ours, built anew when not, bounded, safe to share."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from delegates.cpu import CpuFeatures, cpu_features
from rpi_runtime.backends import select, weight_cache
from rpi_runtime.backends.base import Array
from rpi_runtime.backends.compiled import CompiledGraph
from rpi_runtime.backends.select import choose, open_graph
from rpi_runtime.backends.weight_cache import cache_key, clear, default_folder, entries, lease

ROOT = Path(__file__).resolve().parents[2]
CPU = CpuFeatures("aarch64", frozenset({"asimd", "atomics"}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "weights"


@pytest.fixture
def graph_path(nano_bundle: Path) -> Path:
    return nano_bundle / "vision_base.tflite"


def opened(path: Path, folder: Path | None, threads: int = 2) -> tuple[str, Array]:
    """What became of the cache, and an output of the graph."""
    graph = open_graph(path, backend="compiled", weight_cache=folder, threads=threads)
    runner = graph.runner(next(iter(graph.signatures)))
    (image,) = runner.signature.inputs
    values = np.random.default_rng(0).random(image.shape, np.float32)
    (output,) = runner.run({image.name: values}).values()
    graph.close()
    return graph.weight_cache, output


def only(folder: Path, suffix: str) -> Path:
    (found,) = folder.glob(f"*{suffix}")
    return found


def change_bytes(path: Path, at: int, count: int = 64) -> None:
    """Flips bits in place, and puts the time back that tells of it."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(count)
        file.seek(at)
        file.write(bytes(b ^ 0xFF for b in old))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_first_start_builds_it_and_the_next_one_uses_it(graph_path: Path, folder: Path) -> None:
    without, expected = opened(graph_path, None)
    assert without == "off"
    first, built = opened(graph_path, folder)
    inode = only(folder, ".xnn").stat().st_ino
    second, reused = opened(graph_path, folder)
    assert (first, second) == ("built", "reused")
    assert only(folder, ".xnn").stat().st_ino == inode
    np.testing.assert_array_equal(built, expected)
    np.testing.assert_array_equal(reused, expected)


def test_a_graph_that_packed_its_weights_is_opened_again_from_the_file(
    graph_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What packing wrote stays in the memory of the graph that did it: of a decoder of 0.6 B, 160 MB."""
    found: list[int] = []

    class Recorded(CompiledGraph):
        def __init__(self, path: Path, *, cache_file: Path | None, **options: Any) -> None:
            assert cache_file is not None
            found.append(cache_file.stat().st_size if cache_file.exists() else 0)
            super().__init__(path, cache_file=cache_file, **options)

    monkeypatch.setattr("rpi_runtime.backends.compiled.CompiledGraph", Recorded)
    for state in ("built", "reused"):
        assert opened(graph_path, folder)[0] == state
    size = only(folder, ".xnn").stat().st_size
    assert found == [0, size, size]


def test_the_number_of_threads_makes_no_other_cache(graph_path: Path, folder: Path) -> None:
    _, expected = opened(graph_path, folder, threads=1)
    state, found = opened(graph_path, folder, threads=2)
    assert state == "reused"
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


class TestWhatIsNotWholeOrNotOursIsBuiltAnew:
    @pytest.fixture
    def cache(self, graph_path: Path, folder: Path) -> Path:
        opened(graph_path, folder)
        return only(folder, ".xnn")

    @pytest.fixture
    def expected(self, graph_path: Path) -> Array:
        return opened(graph_path, None)[1]

    @pytest.fixture(autouse=True)
    def _rebuilt(self, graph_path: Path, folder: Path, cache: Path, expected: Array) -> object:
        """After each of these tests: built anew, with the right answers, and trusted the next time."""
        whole = cache.read_bytes()
        yield
        for state in ("built", "reused"):
            found, output = opened(graph_path, folder)
            assert found == state
            np.testing.assert_array_equal(output, expected)
        assert only(folder, ".xnn").read_bytes() == whole

    def test_cut_short(self, cache: Path) -> None:
        os.truncate(cache, cache.stat().st_size // 2)

    def test_cut_to_nothing(self, cache: Path) -> None:
        os.truncate(cache, 0)

    def test_one_byte_longer(self, cache: Path) -> None:
        with cache.open("ab") as file:
            file.write(b"\0")

    @pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
    def test_changed_weights_that_native_code_would_use(self, cache: Path, share: float) -> None:
        change_bytes(cache, int(share * cache.stat().st_size))

    def test_a_changed_list_of_buffers(self, cache: Path) -> None:
        change_bytes(cache, cache.stat().st_size - 100)

    def test_the_cache_of_another_graph_in_its_place(
        self, cache: Path, folder: Path, nano_bundle: Path
    ) -> None:
        other = folder.with_name("other")
        opened(nano_bundle / "vrc.tflite", other)
        cache.write_bytes(only(other, ".xnn").read_bytes())

    def test_a_missing_sidecar(self, cache: Path) -> None:
        cache.with_suffix(".json").unlink()

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"bytes": 1, "more": 2}', '{"blocks": 5}', "\xff"])
    def test_a_sidecar_that_says_nothing(self, cache: Path, text: str) -> None:
        cache.with_suffix(".json").write_text(text, encoding="latin-1")

    def test_a_sidecar_without_its_cache(self, cache: Path) -> None:
        cache.unlink()


def test_a_cache_that_was_copied_is_read_whole_once_and_then_trusted(graph_path: Path, folder: Path) -> None:
    opened(graph_path, folder)
    cache, sidecar = only(folder, ".xnn"), only(folder, ".json")
    cache.write_bytes(cache.read_bytes())  # same bytes, another time
    assert opened(graph_path, folder)[0] == "reused"
    assert json.loads(sidecar.read_text())["mtime_ns"] == cache.stat().st_mtime_ns


def test_bit_rot_that_leaves_every_time_alone_is_seen_within_a_few_starts(folder: Path) -> None:
    blocks, rotten = 20, 7
    with lease(folder, "key", graph_bytes=1) as lent:
        assert lent.file is not None
        _write_packed(lent.file, blocks << 20)
    cache, sidecar = folder / "key.xnn", folder / "key.json"
    change_bytes(cache, rotten << 20)
    # A disk that rots does not set times: the sidecar is made to agree with what `change_bytes` could not
    # help.
    known = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({**known, "ctime_ns": cache.stat().st_ctime_ns}))
    states = []
    while "built" not in states and len(states) < 200:  # 4 of 18 blocks each time
        with lease(folder, "key", graph_bytes=1) as lent:
            states.append(lent.state)
    assert states[-1] == "built"


def test_a_cache_notes_which_graph_it_is_of_and_whose_kernels_it_serves(
    graph_path: Path, folder: Path
) -> None:
    opened(graph_path, folder)
    (entry,) = entries(folder)
    assert Path(entry.graph) == graph_path
    assert entry.runtime == f"ai-edge-litert {choose('compiled').version}"
    assert entry.bytes == only(folder, ".xnn").stat().st_size
    assert clear(folder, [entry]) == ()
    assert entries(folder) == []
    assert opened(graph_path, folder)[0] == "built"


class TestKey:
    def test_it_tells_graphs_runtimes_and_cpus_apart(self) -> None:
        other_cpu = CpuFeatures("aarch64", CPU.names | {"asimddp"})
        keys = {
            cache_key("a" * 64, "2.3.0", CPU),
            cache_key("b" * 64, "2.3.0", CPU),
            cache_key("a" * 64, "2.4.0", CPU),
            cache_key("a" * 64, "2.3.0", other_cpu),
            cache_key("a" * 64, "2.3.0", CpuFeatures("x86_64", CPU.names)),
        }
        assert len(keys) == 5

    def test_it_is_the_same_in_every_process(self) -> None:
        code = (
            "from delegates.cpu import cpu_features\n"
            "from rpi_runtime.backends.weight_cache import cache_key\n"
            "print(cache_key('a' * 64, '2.3.0', cpu_features()))\n"
        )
        keys = {
            subprocess.run(
                [sys.executable, "-c", code],
                cwd=ROOT,
                env={**os.environ, "PYTHONHASHSEED": seed},
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            for seed in ("1", "2")
        }
        assert keys == {cache_key("a" * 64, "2.3.0", cpu_features())}

    def test_another_runtime_version_does_not_touch_it(
        self, graph_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened(graph_path, folder)
        kept = only(folder, ".xnn")
        monkeypatch.setattr(select, "_version", lambda package: "2.2.0")
        assert opened(graph_path, folder)[0] == "built"
        assert len(list(folder.glob("*.xnn"))) == 2
        monkeypatch.undo()
        assert opened(graph_path, folder)[0] == "reused"
        assert kept.exists()


class TestInterruption:
    def test_a_killed_build_leaves_nothing_that_is_trusted(self, graph_path: Path, folder: Path) -> None:
        code = (
            "import os, signal, sys\nfrom pathlib import Path\n"
            "from rpi_runtime.backends.select import open_graph\n"
            "from rpi_runtime.backends import weight_cache\n"
            "weight_cache._publish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
            "open_graph(Path(sys.argv[1]), backend='compiled', weight_cache=Path(sys.argv[2]))\n"
        )
        command = [sys.executable, "-c", code, str(graph_path), str(folder)]
        assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
        assert list(folder.glob("*.building"))
        assert not list(folder.glob("*.xnn"))
        assert opened(graph_path, folder)[0] == "built"
        assert not list(folder.glob("*.building"))

    def test_an_error_while_loading_publishes_nothing(self, folder: Path) -> None:
        def fails() -> None:
            with lease(folder, "key", graph_bytes=1) as lent:
                assert lent.file is not None
                _write_packed(lent.file, 1 << 20)
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fails()
        assert not [p for p in folder.iterdir() if p.suffix != ".lock"]

    def test_a_build_that_native_code_did_not_finish_is_thrown_away(self, folder: Path) -> None:
        with lease(folder, "key", graph_bytes=1) as lent:
            assert lent.file is not None
            lent.file.write_bytes(bytes(1 << 20))  # XNNPACK writes its header last
        assert lent.state == "off: the runtime did not finish writing it"
        assert not [p for p in folder.iterdir() if p.suffix != ".lock"]


class TestSharing:
    def test_processes_that_start_at_once_build_it_once(self, graph_path: Path, folder: Path) -> None:
        code = (
            "import sys\nfrom pathlib import Path\nfrom rpi_runtime.backends.select import open_graph\n"
            "g = open_graph(Path(sys.argv[1]), backend='compiled', weight_cache=Path(sys.argv[2]))\n"
            "print(g.weight_cache)\n"
        )
        started = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(graph_path), str(folder)],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(3)
        ]
        states = [process.communicate()[0].strip() for process in started]
        assert sorted(states) == ["built", "reused", "reused"]
        assert only(folder, ".xnn").with_suffix(".json").exists()

    def test_who_cannot_wait_longer_goes_without(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(weight_cache, "_LOCK_WAIT_SECONDS", 0.1)
        with lease(folder, "key", graph_bytes=1), lease(folder, "key", graph_bytes=1) as second:
            assert second.file is None
            assert second.state == "off: another process is still building it"


class TestBound:
    def test_the_least_recently_used_goes_first(self, folder: Path) -> None:
        for key in ("a", "b"):
            _build(folder, key, limit=3 << 20)
            os.utime(folder / f"{key}.json", (1, 1) if key == "a" else (2, 2))
        with lease(folder, "a", graph_bytes=1, limit_bytes=3 << 20) as lent:
            assert lent.state == "reused"  # now b is the older one
        _build(folder, "c", limit=2 << 20)
        assert sorted(p.stem for p in folder.glob("*.xnn")) == ["a", "c"]
        assert sorted(p.stem for p in folder.glob("*.json")) == ["a", "c"]
        assert not (folder / "b.lock").exists()

    def test_one_that_is_being_opened_is_left_alone(self, folder: Path) -> None:
        _build(folder, "a", limit=8 << 20)
        with lease(folder, "a", graph_bytes=1):
            _build(folder, "b", limit=1 << 20)
            assert (folder / "a.xnn").exists()

    def test_files_that_belong_to_no_cache_go_too(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "stray.xnn").write_bytes(b"left by an older version")
        _build(folder, "a", limit=8 << 20)
        assert [p.name for p in folder.glob("*.xnn")] == ["a.xnn"]

    def test_what_cannot_fit_is_not_begun(self, folder: Path) -> None:
        with lease(folder, "key", graph_bytes=4 << 20, limit_bytes=1 << 20) as lent:
            assert lent.file is None
        assert "more than the limit of 1 MB" in lent.state

    def test_one_that_turns_out_too_large_is_not_kept(self, folder: Path) -> None:
        _build(folder, "a", limit=1 << 19)
        assert not list(folder.glob("*.xnn"))


class TestWithoutACache:
    """Whatever stands in the way, the graph runs, and the reason is told."""

    def test_a_folder_that_cannot_be_made(self, graph_path: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        state, output = opened(graph_path, tmp_path / "file" / "weights")
        assert state.startswith("off: Not a directory")
        np.testing.assert_array_equal(output, opened(graph_path, None)[1])

    def test_a_full_disk(self, graph_path: Path, folder: Path) -> None:
        """Native code would abort the process. A limit on the size of files stands for the disk."""
        code = (
            "import resource, sys\nfrom pathlib import Path\n"
            "from rpi_runtime.backends.select import open_graph\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
            "g = open_graph(Path(sys.argv[1]), backend='compiled', weight_cache=Path(sys.argv[2]))\n"
            "print(g.weight_cache)\n"
        )
        command = [sys.executable, "-c", code, str(graph_path), str(folder)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("off: File too large")
        assert not list(folder.glob("*.building"))

    def test_it_is_said_once(
        self,
        graph_path: Path,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(select, "_said", set())
        (tmp_path / "file").write_text("in the way")
        for _ in range(2):
            opened(graph_path, tmp_path / "file" / "weights")
        assert caplog.text.count("without a weight cache") == 1


class TestFolder:
    def test_it_lies_where_the_xdg_specification_says(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
        assert default_folder() == Path("/var/cache/me/hypervl-edge/weights")

    @pytest.mark.parametrize("value", ["", "relative/path"])
    def test_an_unset_or_relative_variable_means_the_home(
        self, value: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        monkeypatch.setenv("HOME", "/home/pi")
        assert default_folder() == Path("/home/pi/.cache/hypervl-edge/weights")

    def test_only_its_owner_may_enter(self, graph_path: Path, folder: Path) -> None:
        opened(graph_path, folder)
        assert folder.stat().st_mode & 0o077 == 0
        assert only(folder, ".xnn").stat().st_uid == os.geteuid()


def test_the_cache_saves_anonymous_memory(nano_bundle: Path, folder: Path) -> None:
    """The largest graph's weights are mapped, once, instead of packed for each signature."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom rpi_runtime.backends.select import open_graph\n"
        "from rpi_runtime.kernel import memory\n"
        "cache = Path(sys.argv[2]) if len(sys.argv) > 2 else None\n"
        "g = open_graph(Path(sys.argv[1]), backend='compiled', weight_cache=cache)\n"
        "print(memory().anonymous_bytes)\n"
    )

    def anonymous(*arguments: object) -> int:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)

    path = nano_bundle / "decoder.tflite"  # three signatures
    opened_once = open_graph(path, backend="compiled", weight_cache=folder)
    opened_once.close()
    assert anonymous(path) - anonymous(path, folder) > path.stat().st_size


def test_the_key_of_this_machine_names_a_compiled_graph(graph_path: Path, folder: Path) -> None:
    """A cache that is handed to native code directly works too: nothing else is needed."""
    choice = choose("compiled")
    key = cache_key("0" * 64, choice.version, cpu_features())
    with lease(folder, key, graph_bytes=graph_path.stat().st_size) as lent:
        CompiledGraph(graph_path, threads=1, cache_file=lent.file, verbose=False, choice=choice).close()
    assert (folder / f"{key}.xnn").exists()


def _build(folder: Path, key: str, limit: int) -> None:
    """A cache of 1 MB under `key`."""
    with lease(folder, key, graph_bytes=1, limit_bytes=limit) as lent:
        assert lent.file is not None
        _write_packed(lent.file, 1 << 20)


def _write_packed(path: Path, size: int) -> None:
    """A file as XNNPACK leaves one: its header, with the place of the list of buffers, and `size` bytes."""
    header = np.array([4, size - 64, 64], np.uint64).tobytes()
    path.write_bytes(header + np.random.default_rng(0).bytes(size - len(header)))
