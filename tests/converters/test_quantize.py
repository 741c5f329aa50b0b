"""A recipe decides, operator by operator, what is stored; the weights stay what they were, to half a step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import qtyping
from ai_edge_quantizer.algorithms.uniform_quantize import dequantized_weight_recovery
from PIL import Image

from converters import recovery
from converters.calibration import calibration
from converters.metrics import Closeness
from converters.quantize import bits_per_weight, quantize_component
from converters.recipes import RECIPES, Limits, Recipe, Rule
from converters.samples import PARITY, photos_of, tiles
from hypervl.checkpoint import Checkpoint
from rpi_runtime import tflite_file
from rpi_runtime.backends.select import open_graph
from rpi_runtime.errors import EdgeError, ImageError, UsageError
from rpi_runtime.manifest import DECODER, VISION_BASE, VRC
from tests.converters import tiny

ANY = Limits(0.0)
DOWN = "layers.1.mlp.down_proj"


def quantised(source: Path, folder: Path, *rules: Rule) -> Path:
    out = folder / "quantised.tflite"
    quantize_component(source, Recipe("test", rules, ANY), out)
    return out


def weight_types(path: Path) -> dict[str, str]:
    """Layer -> dtype of its weights in the signature `decode`."""
    held = tflite_file.read(path)
    graph = held.subgraphs[[s.name for s in held.signatures].index("decode")]
    made = {op.outputs[0]: op for op in graph.operators}
    found = {}
    for op in graph.operators:
        if op.name == "FULLY_CONNECTED":
            source = made.get(op.inputs[1])  # float16 is expanded in front of the product
            tensor = graph.tensors[source.inputs[0] if source else op.inputs[1]]
            found[graph.tensors[op.outputs[0]].name.rstrip("0123456789")] = tensor.dtype
    return found


def test_fp32_is_the_graph_as_it_was(tiny_graphs: dict[str, Path], tmp_path: Path) -> None:
    out = quantised(tiny_graphs[VRC], tmp_path)
    assert out.read_bytes() == tiny_graphs[VRC].read_bytes()
    assert bits_per_weight(out) == 32


@pytest.mark.parametrize(
    ("name", "dtype", "least", "most"),
    [
        ("fp16", "float16", 16, 16.5),
        ("int8", "int8", 8, 9.5),
        ("int4-channel", "int4", 4, 5.5),
        ("int4-block32", "int4", 4.5, 5.5),
    ],
)
def test_a_recipe_stores_what_its_name_says(
    tiny_graphs: dict[str, Path], tmp_path: Path, name: str, dtype: str, least: float, most: float
) -> None:
    out = tmp_path / "out.tflite"
    quantize_component(tiny_graphs[DECODER], RECIPES[DECODER][name], out)
    assert set(weight_types(out).values()) == {dtype}
    assert least <= bits_per_weight(out) <= most
    before, after = (tflite_file.read(p).signatures for p in (tiny_graphs[DECODER], out))
    assert before == after, "a caller need not know how weights are stored"


def test_the_last_rule_that_matches_wins(tiny_graphs: dict[str, Path], tmp_path: Path) -> None:
    out = quantised(
        tiny_graphs[DECODER],
        tmp_path,
        Rule("int4"),
        Rule("int8", r"mlp\.|lm_head"),
        Rule("float16", r"layers\.0\.mlp\.up_proj"),
        Rule("float32", r"layers\.1\.mlp"),
        Rule("int8", DOWN.replace(".", r"\."), granularity="channel"),
    )
    types = weight_types(out)
    expected = dict.fromkeys(types, "int4")
    expected |= {n: "int8" for n in types if ".mlp." in n} | {"lm_head": "int8"}
    expected |= {"layers.0.mlp.up_proj": "float16"}
    expected |= {n: "float32" for n in types if n.startswith("layers.1.mlp.")} | {DOWN: "int8"}
    assert types == expected


def test_int8_weights_are_off_by_half_a_step_at_most(
    tiny_graphs: dict[str, Path], tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    out = quantised(tiny_graphs[DECODER], tmp_path, Rule("int8"))
    reader = Interpreter(str(out))
    held = tflite_file.read(out)
    graph = held.subgraphs[0]
    weights = tiny_checkpoint.tensor("decoder.layers.0.mlp.gate_proj.weight").numpy()
    index = next(i for i, t in enumerate(graph.tensors) if t.name == "layers.0.mlp.gate_proj.weight")
    details = next(d for d in reader.get_tensor_details() if d["index"] == index)
    scales = details["quantization_parameters"]["scales"]
    assert scales.shape == (weights.shape[0],)
    stored = np.frombuffer(
        out.read_bytes(), np.int8, weights.size, held.buffers[graph.tensors[index].buffer].offset_bytes
    ).reshape(weights.shape)
    assert (np.abs(stored * scales[:, None] - weights) <= scales[:, None] * 0.501).all()


def test_a_grid_is_found_again_rows_at_a_time_as_it_is_at_once() -> None:
    generator = np.random.default_rng(0)
    levels = generator.integers(-8, 8, (9000, 2, 32))
    levels[..., :2] = -8, 7
    steps = generator.uniform(1e-4, 1e-2, (9000, 2, 1)).astype(np.float32)
    grid = (levels * steps).reshape(9000, 64).astype(np.float32)
    config = qtyping.TensorQuantizationConfig(4, granularity=qtyping.QuantGranularity.BLOCKWISE_32)
    about = qtyping.OpInfo(None, qtyping.TFLOperationName.FULLY_CONNECTED, 0, qtyping.OpQuantizationConfig())
    at_once = dequantized_weight_recovery.get_tensor_quant_params(about, config, grid)
    by_rows = recovery.get_tensor_quant_params(about, config, grid)
    for name in ("scale", "zero_point", "quantized_data"):
        assert np.array_equal(getattr(by_rows, name), getattr(at_once, name)), name
    assert np.array_equal(by_rows.quantized_data, levels.reshape(9000, 64))
    assert (by_rows.block_size, by_rows.num_bits) == (at_once.block_size, at_once.num_bits) == (32, 4)


def test_the_same_recipe_gives_the_same_bytes(tiny_graphs: dict[str, Path], tmp_path: Path) -> None:
    recipe = RECIPES[DECODER]["int4-block32"]
    for name in ("a", "b"):
        quantize_component(tiny_graphs[DECODER], recipe, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_rule_that_matches_nothing_is_an_error(tiny_graphs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="no operator matches") as raised:
        quantised(tiny_graphs[DECODER], tmp_path, Rule("int8", "layers.7"))
    assert "layers.7" in raised.value.message


def test_a_rule_that_the_quantizer_cannot_follow_is_an_error(
    tiny_graphs: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(EdgeError, match="does not fit this graph"):
        quantised(tiny_graphs[VRC], tmp_path, Rule("int4", op="DEPTHWISE_CONV_2D"))


def test_blocks_that_do_not_divide_a_layer_are_an_error(tiny_graphs: dict[str, Path], tmp_path: Path) -> None:
    """down_proj has 96 inputs."""
    with pytest.raises(EdgeError, match=r"down_proj") as raised:
        quantised(tiny_graphs[DECODER], tmp_path, Rule("int4", granularity="block_64"))
    assert raised.value.remedy


def test_gptq_comes_closer_than_rounding(
    tiny_graphs: dict[str, Path], tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """On the inputs it was calibrated with: that is what it minimises."""
    samples = calibration(DECODER, tiny_checkpoint, tiny.OPTIONS)
    found = {}
    for method in ("min_max", "gptq"):
        out = tmp_path / f"{method}.tflite"
        rules = (Rule("int4", granularity="block_32", method=method),)
        quantize_component(tiny_graphs[DECODER], Recipe(method, rules, ANY), out, samples)
        runners = [open_graph(p, threads=1).runner("prefill_32") for p in (tiny_graphs[DECODER], out)]
        closeness = Closeness()
        for sample in samples["prefill_32"]:
            expected, result = (runner.run(sample) for runner in runners)
            for name, values in expected.items():
                closeness.add(values, result[name])
        found[method] = closeness.snr_db
    assert found["gptq"] > found["min_max"] + 1


# Static ranges


@pytest.fixture(scope="module")
def static_branch(
    tiny_graphs: dict[str, Path], tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("static") / "branch.tflite"
    samples = calibration(VISION_BASE, tiny_checkpoint, tiny.OPTIONS)
    quantize_component(tiny_graphs[VISION_BASE], RECIPES[VISION_BASE]["w8a8"], out, samples)
    return out


def test_a_static_graph_still_takes_and_gives_float32(static_branch: Path) -> None:
    held = tflite_file.read(static_branch)
    assert {t.dtype for s in held.signatures for t in (*s.inputs, *s.outputs)} == {"float32"}
    kinds = {
        graph.tensors[op.inputs[0]].dtype
        for graph in held.subgraphs
        for op in graph.operators
        if op.name in ("FULLY_CONNECTED", "CONV_2D")
    }
    assert kinds == {"int8"}


def test_a_static_layer_has_one_scale_and_a_convolution_one_per_channel(static_branch: Path) -> None:
    """NNAPI's specification allows a fully connected layer no other."""
    scales: dict[str, set[bool]] = {}
    for graph in tflite_file.read(static_branch, details=True).subgraphs:
        for node in graph.nodes():
            if node.name in ("FULLY_CONNECTED", "CONV_2D"):
                quantization = node.input(1).quantization
                assert quantization is not None
                scales.setdefault(node.name, set()).add(quantization.channels > 1)
    assert scales == {"FULLY_CONNECTED": {False}, "CONV_2D": {True}}


def test_signatures_that_share_weights_share_ranges(
    static_branch: Path, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """The weight cache finds packed static weights by the weights alone: with a range of its own, every
    signature but the first would compute with another's zero point."""
    plain = open_graph(static_branch, threads=1)
    cached = open_graph(static_branch, threads=1, weight_cache=tmp_path)
    for side in tiny.OPTIONS.tile_sides:
        for tile in tiles(PARITY, tiny_checkpoint, side, 1):
            results = [
                g.runner(f"tile_{side}").run({"images": tile})["visual_tokens"] for g in (plain, cached)
            ]
            np.testing.assert_array_equal(*results)


def test_static_needs_calibration(tiny_graphs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs calibration"):
        quantize_component(tiny_graphs[VRC], RECIPES[VRC]["w8a8"], tmp_path / "out.tflite")


# Photographs of a user's own


def photographs(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 255, (80, 120, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number:02}.jpg")
    return folder


def test_ranges_may_be_found_on_photographs_of_one_s_own(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    photos = photos_of(photographs(tmp_path / "many", 40))
    assert [Path(path).name for path in photos][:3] == ["00.jpg", "02.jpg", "05.jpg"]
    assert len(photos) == 16
    found = calibration(VISION_BASE, tiny_checkpoint, tiny.OPTIONS, photos)
    assert [len(samples) for samples in found.values()] == [16, 16]
    shipped = calibration(VISION_BASE, tiny_checkpoint, tiny.OPTIONS)
    assert not np.array_equal(found["tile_96"][0]["images"], shipped["tile_96"][0]["images"])


def test_too_few_photographs_and_broken_ones_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds 3 pictures, and calibration needs 4"):
        photos_of(photographs(tmp_path / "few", 3))
    with pytest.raises(UsageError, match="no such folder"):
        photos_of(tmp_path / "absent")
    broken = photographs(tmp_path / "broken", 4)
    (broken / "01.jpg").write_bytes((broken / "01.jpg").read_bytes()[:300])
    with pytest.raises(ImageError, match=r"01\.jpg"):
        photos_of(broken)
    (broken / "01.jpg").write_text("no picture")
    with pytest.raises(ImageError, match=r"01\.jpg"):
        photos_of(broken)
