"""What a component's float32 graph looks like: the contract with the runtime and with a GPU's rules."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from litert_torch import fx_infra
from litert_torch._convert import core
from torch import Tensor, nn

from converters import lowering, vision
from converters.export import export_component
from converters.folding import fold_norms
from converters.lowering import Component, Traced, lower
from hypervl.checkpoint import Checkpoint
from hypervl.vision import VisionBranch
from hypervl.vrc import VRC as VRCModule
from hypervl.vrc import MBConv
from rpi_runtime import tflite_file
from rpi_runtime.errors import EdgeError
from rpi_runtime.manifest import DECODER, VISION_BASE, VISION_LARGE, VRC
from tests.converters.tiny import OPTIONS

ROOT = Path(__file__).resolve().parents[2]
KINDS = (VRC, VISION_BASE, DECODER)


def operators(path: Path) -> set[str]:
    return {op.name for graph in tflite_file.read(path).subgraphs for op in graph.operators}


def signatures(path: Path) -> dict[str, tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]]:
    """Signature -> input shapes and output shapes by name."""
    return {
        s.name: ({t.name: t.shape for t in s.inputs}, {t.name: t.shape for t in s.outputs})
        for s in tflite_file.read(path).signatures
    }


# The contract


def test_the_router_has_the_signature_route(tiny_graphs: dict[str, Path]) -> None:
    assert signatures(tiny_graphs[VRC]) == {
        "route": ({"images": (1, 64, 64, 3)}, {"scale_logits": (1, 4)}),
    }


def test_a_branch_has_one_signature_per_tile_side(tiny_graphs: dict[str, Path]) -> None:
    assert signatures(tiny_graphs[VISION_BASE]) == {
        "tile_96": ({"images": (1, 96, 96, 3)}, {"visual_tokens": (1, 9, 64)}),
        "tile_64": ({"images": (1, 64, 64, 3)}, {"visual_tokens": (1, 4, 64)}),
    }


def test_the_decoder_takes_flat_caches_and_returns_new_slices(tiny_graphs: dict[str, Path]) -> None:
    found = signatures(tiny_graphs[DECODER])
    assert list(found) == ["prefill_32", "prefill_8", "decode"]
    names = ("k_0", "v_0", "k_1", "v_1")
    for name, tokens in (("prefill_32", 32), ("prefill_8", 8), ("decode", 1)):
        inputs, outputs = found[name]
        assert inputs == {
            "embeddings": (1, tokens, 64),
            "rope_cos": (1, 1, tokens, 8),
            "rope_sin": (1, 1, tokens, 8),
            "mask": (1, 1, tokens, 96 + tokens),
            **{f"kv_{n}": (2 * 96 * 16,) for n in names},
        }
        logits = {"logits": (1, 320)} if name == "decode" else {}
        assert outputs == {**dict.fromkeys(names, (1, 2, tokens, 16)), **logits}


# What delegates cannot run


@pytest.mark.parametrize("name", KINDS)
def test_no_tensor_exceeds_rank_4(tiny_graphs: dict[str, Path], name: str) -> None:
    graphs = tflite_file.read(tiny_graphs[name]).subgraphs
    assert max(len(t.shape) for graph in graphs for t in graph.tensors) <= 4


@pytest.mark.parametrize("name", KINDS)
def test_only_operators_that_phones_and_boards_run(tiny_graphs: dict[str, Path], name: str) -> None:
    """A new one may be fine, but somebody must have looked: GPU delegates lack GATHER_ND and BROADCAST_TO,
    and resizing a constant keeps a whole graph off them."""
    known = {
        "ABS ADD BATCH_MATMUL CONCATENATION CONV_2D DEPTHWISE_CONV_2D DIV FULLY_CONNECTED GELU LOGISTIC",
        "MAXIMUM MEAN MUL PAD REDUCE_MAX RESHAPE RSQRT SLICE SOFTMAX SUB TRANSPOSE",
    }
    assert operators(tiny_graphs[name]) <= {word for line in known for word in line.split()}


@pytest.mark.parametrize("name", [VISION_BASE, DECODER])
def test_attention_multiplies_at_rank_4(tiny_graphs: dict[str, Path], name: str) -> None:
    for graph in tflite_file.read(tiny_graphs[name]).subgraphs:
        products = [op for op in graph.operators if op.name == "BATCH_MATMUL"]
        assert products
        assert {len(graph.tensors[i].shape) for op in products for i in op.inputs} == {4}


def test_the_cache_is_read_where_it_lies(tiny_graphs: dict[str, Path]) -> None:
    """No operator but its reshape and the product sees a cache: a transpose would copy all of it each
    token."""
    for graph in tflite_file.read(tiny_graphs[DECODER]).subgraphs:
        caches = {i for i in graph.inputs if len(graph.tensors[i].shape) == 1}
        assert len(caches) == 4
        views = {op.outputs[0] for op in graph.operators if op.inputs[0] in caches and op.name == "RESHAPE"}
        readers = [op.name for op in graph.operators if (caches | views) & set(op.inputs)]
        assert set(readers) == {"RESHAPE", "BATCH_MATMUL"}


# Weights


@pytest.mark.parametrize("name", KINDS)
def test_signatures_share_one_copy_of_the_weights(
    tiny_graphs: dict[str, Path], tiny_checkpoint: Checkpoint, name: str
) -> None:
    held = tflite_file.read(tiny_graphs[name])
    weights = sum(b.bytes for b in held.buffers if b.bytes >= 1024)
    assert weights < 1.2 * 4 * tiny_checkpoint.parameters(f"{name}.")


@pytest.mark.parametrize("name", KINDS)
def test_every_linear_layer_is_named_as_in_the_checkpoint(
    tiny_graphs: dict[str, Path], tiny_checkpoint: Checkpoint, name: str
) -> None:
    """Recipes address layers by these names."""
    module = tiny_checkpoint.load_component(name)
    wanted = {n for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    if name == DECODER:
        wanted.add("lm_head")
    for graph in tflite_file.read(tiny_graphs[name]).subgraphs:
        products = [op for op in graph.operators if op.name == "FULLY_CONNECTED"]
        labels = [graph.tensors[o.inputs[1]].name + ";" + graph.tensors[o.outputs[0]].name for o in products]
        named = [
            {w for w in wanted if re.search(rf"{re.escape(w)}(?![.\w]*proj)", label)} for label in labels
        ]
        assert all(len(found) == 1 for found in named), labels
        if graph.name != "main" and "prefill" not in graph.name:  # a prefill leaves out what only logits need
            assert set.union(*named) == wanted


def test_batch_norms_are_folded_into_convolutions(
    tiny_graphs: dict[str, Path], tiny_checkpoint: Checkpoint
) -> None:
    (graph,) = tflite_file.read(tiny_graphs[VRC]).subgraphs
    count = {n: sum(op.name == n for op in graph.operators) for n in ("MUL", "SUB", "ADD", "RSQRT")}
    module = tiny_checkpoint.load_component(VRC)
    assert isinstance(module, VRCModule)
    skips = sum(m.skip for m in module.modules() if isinstance(m, MBConv))
    assert count == {"MUL": 1, "SUB": 1, "ADD": skips, "RSQRT": 0}  # MUL, SUB: the input's scale and offset

    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(fold_norms(module)(images), module(images), atol=1e-5)
    assert any(isinstance(m, nn.BatchNorm2d) for m in module.modules()), "the module itself was changed"


def test_a_stems_batch_norms_are_folded_and_the_rest_is_shared(tiny_checkpoint: Checkpoint) -> None:
    branch = tiny_checkpoint.load_component(VISION_LARGE)
    assert isinstance(branch, VisionBranch)
    folded = vision.signatures(branch, (96,))[0].module.component
    assert isinstance(folded, VisionBranch)
    images = torch.rand(2, 96, 96, 3, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(folded(images), branch(images), atol=1e-4)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in branch.modules()), "the module itself was changed"
    assert folded.encoder is branch.encoder


# Determinism


def test_another_process_writes_the_same_bytes_in_silence(
    tiny_graphs: dict[str, Path], tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    again = tmp_path / "again.tflite"
    script = (
        "import sys; from pathlib import Path; from converters.export import export_component;"
        "from hypervl.checkpoint import Checkpoint; from tests.converters import tiny;"
        "export_component(sys.argv[1], Checkpoint.open(sys.argv[2]), tiny.OPTIONS, Path(sys.argv[3]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script, VRC, str(tiny_checkpoint.folder), str(again)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert again.read_bytes() == tiny_graphs[VRC].read_bytes()
    assert done.stdout + done.stderr == "", "the converter's libraries were not silent"


@pytest.mark.parametrize("name", KINDS)
def test_tracing_a_program_once_gives_what_the_library_gives_after_three_times(
    tiny_graphs: dict[str, Path],
    tiny_checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    def canonicalized(canonicalize: object, program: object) -> object:
        done = fx_infra.safe_run_decompositions(program, {})
        return fx_infra.ExportedProgramPassResult(done, True)

    def whole(programs: object, index: int) -> object:
        return core._run_convert_passes(core.export_torch_signature(vars(programs)["_signatures"][index]))

    monkeypatch.setattr(fx_infra.CanonicalizePass, "call", canonicalized)
    monkeypatch.setattr(lowering._Programs, "__getitem__", whole)
    export_component(name, tiny_checkpoint, OPTIONS, tmp_path / "graph.tflite")
    assert (tmp_path / "graph.tflite").read_bytes() == tiny_graphs[name].read_bytes()


def test_a_graph_says_nothing_about_the_machine_that_made_it(tiny_graphs: dict[str, Path]) -> None:
    for path in tiny_graphs.values():
        content = path.read_bytes()
        for word in (str(ROOT), "site-packages", ".py", str(path.parent)):
            assert word.encode() not in content, word


# Errors


class Sorted(Component):
    def forward(self, numbers: Tensor) -> dict[str, Tensor]:
        return {"sorted": torch.linalg.svdvals(numbers)}


def test_an_operator_without_a_tflite_form_is_one_clear_error(tmp_path: Path) -> None:
    traced = Traced("svd", Sorted(nn.Identity()), {"numbers": torch.rand(4, 4)})
    with pytest.raises(EdgeError) as raised:
        lower([traced], tmp_path / "svd.tflite")
    assert "svd.tflite" in raised.value.message
    assert "aten" in raised.value.message
    assert raised.value.remedy


@pytest.mark.parametrize("name", KINDS)
def test_weights_lie_behind_a_small_flatbuffer(tiny_graphs: dict[str, Path], name: str) -> None:
    """At addresses that kernels like, in a file that was never in memory as a whole."""
    held = tflite_file.read(tiny_graphs[name])
    weights = [b for b in held.buffers if b.bytes > 512]
    assert len(weights) > 3
    assert all(b.offset_bytes % 64 == 0 for b in weights)
    assert all(b.offset_bytes + b.bytes <= tiny_graphs[name].stat().st_size for b in weights)


def test_lowering_leaves_the_recursion_limit_as_it_was(tmp_path: Path) -> None:
    """The converter's library wants 100,000, with which deeply nested JSON would crash the process."""
    script = """
        import pathlib, sys
        before = sys.getrecursionlimit()
        from converters.lowering import Component, Traced, lower
        assert sys.getrecursionlimit() == before, "by the import"
        import torch
        class Double(Component):
            def forward(self, a): return {"double": a + a}
        double = Traced("double", Double(torch.nn.Identity()), {"a": torch.rand(1, 3)})
        lower([double], pathlib.Path(sys.argv[1]))
        assert sys.getrecursionlimit() == before, "by lowering"
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), tmp_path / "double.tflite"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_one_tensor_cannot_stand_for_two_inputs(tmp_path: Path) -> None:
    """torch.export would merge them, and the graph would silently read one for the other."""

    class Difference(Component):
        def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
            return {"difference": a - b}

    same = torch.rand(1, 3)
    with pytest.raises(ValueError, match="'a' and 'b'"):
        lower(
            [Traced("difference", Difference(nn.Identity()), {"a": same, "b": same})], tmp_path / "d.tflite"
        )
