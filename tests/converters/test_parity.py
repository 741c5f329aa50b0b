"""Parity is measured on real inputs, and tells a graph that is right from one that is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from converters.calibration import calibration
from converters.parity import check_component
from converters.quantize import quantize_component
from converters.recipes import RECIPES
from converters.samples import CALIBRATION, PARITY, passages, tiles
from hypervl.checkpoint import Checkpoint
from rpi_runtime import tflite_file
from rpi_runtime.manifest import DECODER, VISION_BASE, VRC, Parity
from tests.converters import tiny

SIGNATURES = {
    VRC: ["route"],
    VISION_BASE: ["tile_96", "tile_64"],
    DECODER: ["prefill_8", "prefill_32", "decode"],
}
KINDS = tuple(SIGNATURES)


def checked(name: str, checkpoint: Checkpoint, graph: Path, recipe: str) -> tuple[Parity, ...]:
    return check_component(name, checkpoint, graph, RECIPES[name][recipe], tiny.OPTIONS)


@pytest.mark.parametrize("name", KINDS)
def test_a_float32_graph_equals_pytorch(
    tiny_graphs: dict[str, Path], tiny_checkpoint: Checkpoint, name: str
) -> None:
    rows = checked(name, tiny_checkpoint, tiny_graphs[name], "fp32")
    assert [r.signature for r in rows] == SIGNATURES[name]
    for row in rows:
        assert row.passed, row
        assert row.samples > 0
        assert row.snr_db > 100
        assert row.max_abs_error < 1e-4
        if name == DECODER:
            assert row.kl_divergence is not None
            assert row.kl_divergence < 1e-9
            assert row.top1_agreement == 1
        else:
            assert row.kl_divergence is None


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("recipe", ["fp16", "int8", "int4-block32"])
def test_a_smaller_graph_stays_within_its_recipes_limits(
    tiny_graphs: dict[str, Path], tiny_checkpoint: Checkpoint, tmp_path: Path, name: str, recipe: str
) -> None:
    out = tmp_path / "out.tflite"
    quantize_component(tiny_graphs[name], RECIPES[name][recipe], out)
    rows = checked(name, tiny_checkpoint, out, recipe)
    assert all(row.passed for row in rows), rows
    assert max(row.snr_db for row in rows) < 90, "nothing was quantised"
    if recipe == "int8":
        assert rows == checked(name, tiny_checkpoint, out, recipe), "figures must be the same each time"


@pytest.mark.parametrize("name", KINDS)
def test_other_weights_fail_even_the_coarsest_recipe(
    tiny_graphs: dict[str, Path], tmp_path: Path, name: str
) -> None:
    other = tiny.write_checkpoint(tmp_path / "other", seed=1)
    coarsest = min(RECIPES[name].values(), key=lambda recipe: recipe.limits.cosine)
    assert not any(row.passed for row in checked(name, other, tiny_graphs[name], coarsest.name))


def test_the_decoder_is_judged_by_what_its_own_cache_leads_to(
    tiny_graphs: dict[str, Path], tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """One layer's keys in `prefill_8` alone are wrong: the tokens decoded behind it show it, the others do
    not."""
    damaged = damaged_weight(tiny_graphs[DECODER], tmp_path, "layers.0.self_attn.k_proj.weight", "prefill_8")
    rows = {r.signature: r for r in checked(DECODER, tiny_checkpoint, damaged, "int8")}
    assert not rows["prefill_8"].passed
    assert rows["prefill_32"].passed
    assert (rows["prefill_8"].kl_divergence or 0) > 100 * (rows["prefill_32"].kl_divergence or 0)


def damaged_weight(graph: Path, folder: Path, tensor: str, signature: str) -> Path:
    """A copy of `graph` in which `signature` reads the value matrix where it should read the key matrix."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(graph))
    assert isinstance(model, schema.ModelT)
    held = tflite_file.read(graph)
    index = held.signature_subgraphs[[s.name for s in held.signatures].index(signature)]
    by_name = {t.name.decode().rstrip("0123456789"): t for t in model.subgraphs[index].tensors}
    by_name[tensor].buffer = by_name[tensor.replace("k_proj", "v_proj")].buffer
    out = folder / "damaged.tflite"
    flatbuffer_utils.write_model(model, str(out))
    return out


def test_a_row_says_which_rule_was_applied(tiny_graphs: dict[str, Path], tiny_checkpoint: Checkpoint) -> None:
    (row,) = checked(VRC, tiny_checkpoint, tiny_graphs[VRC], "int8")
    limits = RECIPES[VRC]["int8"].limits
    assert row.threshold == f"cosine >= {limits.cosine:g}, SNR >= {limits.snr_db:g}"


# Samples


def test_tiles_are_real_pictures_cut_as_on_the_device(tiny_checkpoint: Checkpoint) -> None:
    for source in (PARITY, CALIBRATION):
        cut = list(tiles(source, tiny_checkpoint, 64, 3))
        assert len(cut) == 3 * len(source.photos)
        assert {t.shape for t in cut} == {(1, 64, 64, 3)}
        assert {t.dtype for t in cut} == {np.dtype(np.float32)}
        assert all(t.min() >= 0 and t.max() <= 1 and t.std() > 0.05 for t in cut)


def test_parity_and_calibration_share_no_sample() -> None:
    assert not set(PARITY.photos) & set(CALIBRATION.photos)
    assert PARITY.text != CALIBRATION.text


def test_passages_spread_over_the_text(tiny_checkpoint: Checkpoint) -> None:
    first, middle, last = passages(PARITY, tiny_checkpoint, 3, 50)
    assert len(first) == len(middle) == len(last) == 50
    assert first != middle != last
    (whole,) = passages(PARITY, tiny_checkpoint, 1, 10**6)
    assert whole[:50] == first
    assert whole[-50:] == last


@pytest.mark.parametrize("name", KINDS)
def test_calibration_feeds_every_signature(
    tiny_graphs: dict[str, Path], tiny_checkpoint: Checkpoint, name: str
) -> None:
    found = calibration(name, tiny_checkpoint, tiny.OPTIONS)
    for signature in tflite_file.read(tiny_graphs[name]).signatures:
        assert found[signature.name], signature.name
        for sample in found[signature.name]:
            assert {n: (v.shape, str(v.dtype)) for n, v in sample.items()} == {
                t.name: (t.shape, t.dtype) for t in signature.inputs
            }
