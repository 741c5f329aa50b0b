"""Every backend computes what the stock Interpreter computes, and the right one is chosen."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import litert_torch
import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter

from converters.quantize import quantize_component
from converters.recipes import RECIPES
from delegates.cpu import CpuFeatures
from rpi_runtime.backends import select
from rpi_runtime.backends.base import Array, Graph
from rpi_runtime.backends.compiled import BoundArrays
from rpi_runtime.backends.select import choose, default_threads, open_graph
from rpi_runtime.errors import BundleError, ResourceError, UsageError
from rpi_runtime.kernel import memory
from rpi_runtime.manifest import DECODER, Signature

ROOT = Path(__file__).resolve().parents[2]
BOTH = ("compiled", "interpreter")
COMPONENTS = ("vrc", "vision_base", "vision_large", "decoder")
PI_4 = CpuFeatures("aarch64", frozenset(["fp", "asimd", "evtstrm", "crc32", "cpuid"]))
CACHE_ROWS, CACHE_COLUMNS = 64, 1 << 18  # 64 MB of float32


def inputs_of(signature: Signature, seed: int = 0) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    return {
        t.name: random.standard_normal(t.shape).astype(np.float32)
        for t in sorted(signature.inputs, key=lambda t: t.name)
    }


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("backend", BOTH)
def test_every_signature_computes_what_the_stock_interpreter_computes(
    nano_bundle: Path, backend: str, component: str
) -> None:
    path = nano_bundle / f"{component}.tflite"
    stock = Interpreter(str(path))
    graph = open_graph(path, backend=backend)
    assert graph.choice.name == backend
    assert set(graph.signatures) == set(stock.get_signature_list())
    for name, signature in graph.signatures.items():
        inputs = inputs_of(signature)
        expected = stock.get_signature_runner(name)(**inputs)
        for _ in range(2):  # a second run must not see anything of the first
            found = graph.runner(name).run(inputs)
            assert found.keys() == expected.keys()
            for output, values in expected.items():
                np.testing.assert_allclose(found[output], values, rtol=1e-3, atol=1e-3)
                assert found[output].shape == values.shape
    graph.close()


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("recipe", ["int8", "int4-channel", "int4-block32"])
def test_quantised_graphs_too(nano_bundle: Path, tmp_path: Path, recipe: str, backend: str) -> None:
    path = tmp_path / "decoder.tflite"
    quantize_component(nano_bundle / "decoder.tflite", RECIPES[DECODER][recipe], path)
    graph = open_graph(path, backend=backend)
    runner = graph.runner("decode")
    inputs = inputs_of(runner.signature)
    expected = Interpreter(str(path)).get_signature_runner("decode")(**inputs)["logits"]
    np.testing.assert_allclose(runner.run(inputs)["logits"], expected, rtol=1e-2, atol=1e-2)
    assert np.abs(expected).max() > 0.1
    graph.close()


@pytest.mark.parametrize("backend", BOTH)
def test_results_of_an_earlier_run_stay_as_they_were(nano_bundle: Path, backend: str) -> None:
    runner = open_graph(nano_bundle / "vrc.tflite", backend=backend).runner("route")
    first = runner.run(inputs_of(runner.signature, seed=1))["scale_logits"]
    kept = first.copy()
    runner.run(inputs_of(runner.signature, seed=2))
    np.testing.assert_array_equal(first, kept)


class TestInputs:
    @pytest.fixture(scope="class", params=BOTH)
    def graph(self, nano_bundle: Path, request: pytest.FixtureRequest) -> Graph:
        return open_graph(nano_bundle / "vrc.tflite", backend=request.param)

    def test_a_missing_or_unknown_one_is_named(self, graph: Graph) -> None:
        with pytest.raises(ValueError, match=r"missing \['images'\], unknown \['image'\]"):
            graph.runner("route").run({"image": np.zeros((1, 96, 96, 3), np.float32)})

    def test_a_wrong_shape_or_type_is_told(self, graph: Graph) -> None:
        with pytest.raises(ValueError, match=r"float32 \[1, 2, 96, 3\], the graph wants float32"):
            graph.runner("route").run({"images": np.zeros((1, 2, 96, 3), np.float32)})
        with pytest.raises(ValueError, match="float64"):
            graph.runner("route").run({"images": np.zeros((1, 96, 96, 3))})


class Reader(torch.nn.Module):
    """Reads a flat cache of 64 MB, as the decoder reads its keys and values."""

    def forward(self, x: torch.Tensor, kv: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": x @ kv.reshape(CACHE_ROWS, CACHE_COLUMNS)[:, :256]}


class TestSharedInputs:
    """The KV cache as the backends see it."""

    @pytest.fixture(scope="class")
    def path(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("graphs") / "reader.tflite"
        cache = torch.zeros(CACHE_ROWS * CACHE_COLUMNS)
        converter = litert_torch.signature(
            "one", Reader().eval(), sample_kwargs={"x": torch.zeros(1, CACHE_ROWS), "kv": cache}
        )
        sample = {"x": torch.zeros(4, CACHE_ROWS), "kv": cache}
        converter.signature("four", Reader().eval(), sample_kwargs=sample)
        converter.convert().export(str(path))
        return path

    @pytest.fixture(params=BOTH)
    def graph(self, path: Path, request: pytest.FixtureRequest) -> Iterator[Graph]:
        graph = open_graph(path, backend=request.param)
        yield graph
        graph.close()

    def test_what_is_written_is_read_by_every_signature(self, graph: Graph) -> None:
        shared = graph.shared({"kv": (CACHE_ROWS, CACHE_COLUMNS)})
        one = graph.runner("one", shared)
        rows = np.arange(CACHE_ROWS * 256, dtype=np.float32).reshape(CACHE_ROWS, 256) / 4096
        shared.write("kv", (slice(None), slice(0, 128)), rows[:, :128])
        four = graph.runner("four", shared)  # joins later, and sees what is there
        shared.write("kv", (slice(None), slice(128, 256)), rows[:, 128:])
        for runner, tokens in ((one, 1), (four, 4), (one, 1)):
            x = np.random.default_rng(tokens).standard_normal((tokens, CACHE_ROWS)).astype(np.float32)
            np.testing.assert_allclose(runner.run({"x": x})["y"], x @ rows, rtol=1e-4, atol=1e-3)
        np.testing.assert_array_equal(shared.read("kv")[:, :256], rows)

    def test_before_the_first_write_it_is_zero(self, graph: Graph) -> None:
        shared = graph.shared({"kv": (CACHE_ROWS, CACHE_COLUMNS)})
        assert not shared.read("kv").any()
        runner = graph.runner("one", shared)
        assert not runner.run({"x": np.ones((1, CACHE_ROWS), np.float32)})["y"].any()
        assert not shared.read("kv").any()

    def test_compiled_model_reads_the_one_array_where_it_lies(self, path: Path) -> None:
        graph = open_graph(path, backend="compiled")
        graph.runner("one"), graph.runner("four")  # what they need without a shared cache comes before
        shared = graph.shared({"kv": (CACHE_ROWS, CACHE_COLUMNS)})
        assert isinstance(shared, BoundArrays)
        address = shared.address("kv")
        assert address % 64 == 0
        shared.write("kv", ..., np.ones((), np.float32))  # untouched pages would not count
        before = memory().anonymous_bytes
        for tokens, name in ((1, "one"), (4, "four")):
            y = graph.runner(name, shared).run({"x": np.ones((tokens, CACHE_ROWS), np.float32)})["y"]
            assert np.all(y == CACHE_ROWS)
        # A copy of the cache would be 64 MB.
        assert memory().anonymous_bytes - before < 16 << 20
        assert shared.address("kv") == address
        graph.close()

    def test_those_of_another_backend_are_refused(self, path: Path) -> None:
        compiled, interpreter = (open_graph(path, backend=b) for b in BOTH)
        shape = {"kv": (CACHE_ROWS, CACHE_COLUMNS)}
        with pytest.raises(TypeError):
            compiled.runner("one", interpreter.shared(shape))
        with pytest.raises(TypeError):
            interpreter.runner("one", compiled.shared(shape))


def _only(*installed: str) -> Callable[[str], str]:
    """As if these packages were installed and no other."""
    return lambda package: "2.14.0" if package in installed else ""


class TestChoice:
    def test_compiled_model_where_it_runs(self) -> None:
        choice = choose("auto")
        assert (choice.name, choice.package) == ("compiled", "ai-edge-litert")

    def test_on_a_pi_4_compiled_model_without_the_gpu_library(
        self, nano_bundle: Path, tmp_path: Path
    ) -> None:
        code = (
            "import sys\nfrom pathlib import Path\nimport numpy as np\n"
            "from delegates.cpu import CpuFeatures\n"
            "from rpi_runtime.backends import select\n"
            "select.cpu_features = lambda: CpuFeatures('aarch64', frozenset(['fp', 'asimd']))\n"
            "graph = select.open_graph(Path(sys.argv[1]), weight_cache=Path(sys.argv[2]))\n"
            "inputs = {t.name: np.zeros(t.shape, t.dtype) for t in graph.signatures['route'].inputs}\n"
            "graph.runner('route').run(inputs)\n"
            "maps = Path('/proc/self/maps').read_text()\n"
            "print(graph.choice.name, graph.weight_cache, 'WebGpu' in maps, 'libLiteRt' in maps)\n"
            "print(graph.choice.reason)\n"
        )
        arguments = [str(nano_bundle / "vrc.tflite"), str(tmp_path / "cache")]
        (tmp_path / "temporary").mkdir()
        environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        facts, reason = done.stdout.splitlines()
        assert facts.split() == ["compiled", "built", "False", "True"]
        assert "LSE atomics" in reason
        assert "without its GPU library" in reason
        assert list((tmp_path / "temporary").iterdir()) == [], "nothing is left behind"

    def test_where_the_gpu_library_cannot_be_left_out_the_interpreter_and_why(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(select, "cpu_features", lambda: PI_4)
        assert "ai_edge_litert" in sys.modules, "this process has imported it, with the library"
        choice = choose("auto")
        assert (choice.name, choice.package) == ("interpreter", "ai-edge-litert")
        assert "LSE atomics" in choice.reason
        assert "was imported before" in choice.reason
        with pytest.raises(ResourceError, match="LSE atomics") as caught:
            choose("compiled")
        assert "interpreter" in caught.value.remedy

    def test_other_packages_serve_where_ai_edge_litert_is_absent(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(select, "_version", _only("tflite-runtime", "tensorflow"))
        monkeypatch.setattr(np, "__version__", "1.26.4")
        choice = choose("auto")
        assert (choice.name, choice.package) == ("interpreter", "tflite-runtime")
        assert "not installed" in choice.reason
        assert choose("tensorflow").package == "tensorflow"

    def test_tflite_runtime_with_numpy_2_is_passed_over_or_explained(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(np, "__version__", "2.1.0")
        monkeypatch.setattr(select, "_version", _only("tflite-runtime"))
        with pytest.raises(ResourceError, match=r"NumPy 2\.1\.0") as caught:
            choose("auto")
        assert "numpy<2" in caught.value.remedy
        monkeypatch.setattr(select, "_version", _only("tflite-runtime", "tensorflow"))
        assert choose("interpreter").package == "tensorflow"

    def test_nothing_installed_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(select, "_version", _only())
        with pytest.raises(ResourceError) as caught:
            choose("auto")
        assert "pip install ai-edge-litert" in caught.value.remedy

    def test_an_unknown_name_is_answered_with_the_nearest(self) -> None:
        with pytest.raises(UsageError, match="'compield'") as caught:
            choose("compield")
        assert "'compiled'" in caught.value.remedy

    def test_threads_are_the_cores_this_process_may_use_at_most_four(self) -> None:
        assert default_threads() == min(4, len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("backend", BOTH)
def test_a_file_that_no_runtime_can_load_is_named(tmp_path: Path, backend: str) -> None:
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"\x1c\0\0\0TFL3" + bytes(100))
    with pytest.raises(BundleError, match=r"broken\.tflite"):
        open_graph(broken, backend=backend)
    with pytest.raises(BundleError, match="is not a file"):
        open_graph(tmp_path / "absent.tflite", backend=backend)
