"""What each delegate gets: its components, recipes that suit it, and branches written for it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from converters.nnapi import FlatTile
from converters.options import ConvertOptions, Plan, parse_delegates, plan
from converters.pipeline import stages_of
from converters.vision import Tile
from delegates.graph import Subgraph
from delegates.nnapi import verdicts
from delegates.targets import CPU, Target
from hypervl.config import VisionConfig, preset
from hypervl.vision import VisionBranch
from rpi_runtime import samples
from rpi_runtime.backends.select import open_graph
from rpi_runtime.bundle import Bundle
from rpi_runtime.errors import BundleError, UsageError
from rpi_runtime.manifest import COMPONENTS, DECODER, VISION_BASE, VISION_LARGE, VRC
from rpi_runtime.tflite_file import read

NANO = preset("nano")
GPU, NNAPI = Target("gpu"), Target("nnapi", 30)


def decided(delegate: str, **values: object) -> Plan:
    asked = ConvertOptions(Path("c"), Path("b"), delegate=delegate, **values)  # type: ignore[arg-type]
    return plan(asked, NANO)


def recipes(found: Plan) -> dict[str, str]:
    return {variant.name: variant.recipe.name for variant in found.variants}


# Which


def test_nothing_said_means_the_cpu() -> None:
    assert parse_delegates("cpu") == dict.fromkeys(COMPONENTS, (CPU,))


def test_one_delegate_is_for_all_that_it_has_a_use_for() -> None:
    assert parse_delegates("gpu") == dict.fromkeys(COMPONENTS, (GPU,))
    with_nnapi = parse_delegates("nnapi")
    assert with_nnapi == {**dict.fromkeys(COMPONENTS, (NNAPI,)), DECODER: (CPU,)}


def test_components_may_have_their_own_and_several() -> None:
    assert parse_delegates("vision=cpu+gpu+nnapi,decoder=gpu", nnapi_level=31) == {
        VRC: (CPU,),
        VISION_BASE: (CPU, GPU, Target("nnapi", 31)),
        VISION_LARGE: (CPU, GPU, Target("nnapi", 31)),
        DECODER: (GPU,),
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpus", ["unknown delegate 'gpus'", "Did you mean 'gpu'?"]),
        ("vison=gpu", ["unknown component in --delegate 'vison'", "Did you mean 'vision'?"]),
        ("gpu:29", ["gpu takes no value"]),
        ("nnapi:26", ["NNAPI has no feature level 26", "27 (Android 8.1, NNAPI 1.0)"]),
        ("vision=gpu,vision=cpu", ["names vision twice", "Join them: cpu+gpu."]),
        (" ", ["names no delegate"]),
        ("external:lib.so", ["nothing is converted for an external delegate"]),
        ("decoder=nnapi", ["decoder cannot be converted for NNAPI", "static int8", "Use decoder=cpu."]),
    ],
)
def test_a_wrong_wish_is_named_with_what_would_be_right(text: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_delegates(text)
    for word in words:
        assert word in str(caught.value)


def test_each_gets_the_recipe_that_suits_it() -> None:
    assert recipes(decided("vision=cpu+gpu+nnapi,decoder=cpu+gpu")) == {
        "vrc": "int8",
        "vision_base": "int8",
        "vision_base.gpu": "fp16",
        "vision_base.nnapi-30": "w8a8",
        "vision_large": "int8",
        "vision_large.gpu": "fp16",
        "vision_large.nnapi-30": "w8a8",
        "decoder": "int8",
        "decoder.gpu": "fp16",
    }


def test_without_the_cpu_the_first_delegate_has_the_component_s_own_graph() -> None:
    assert recipes(decided("gpu", components=("vision_base",))) == {"vision_base": "fp16"}


def test_before_level_30_nnapi_has_no_int8_of_tflite_s() -> None:
    assert recipes(decided("nnapi", components=("vision_base",), nnapi_level=29)) == {"vision_base": "int8"}


def test_a_recipe_that_the_delegate_does_not_run_is_refused() -> None:
    with pytest.raises(UsageError, match="vision_base for the GPU cannot have the recipe 'w8a8'"):
        decided("vision=gpu", recipe="vision=w8a8")


def test_variants_share_an_export_unless_they_are_written_otherwise() -> None:
    found = decided("cpu+gpu+nnapi", components=("vision_base",), recipe="fp32")
    stages = stages_of(found, Path("c"), {"fingerprint": "0", "has_chat_template": False})
    assert [stage.name for stage in stages] == [
        "export vision_base",
        "quantize vision_base",
        "check vision_base",
        "quantize vision_base.gpu",
        "check vision_base.gpu",
        "export vision_base.nnapi-30",
        "quantize vision_base.nnapi-30",
        "check vision_base.nnapi-30",
        "text files",
    ]


# How


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("stem", [(), (8, 12, 16)])
def test_a_branch_written_for_nnapi_computes_the_same(rotary: bool, stem: tuple[int, ...]) -> None:
    config = VisionConfig(64, 128, 2, 2, image_size=96, stem_channels=stem, rotary=rotary)
    torch.manual_seed(0)
    branch = VisionBranch(config, 48).eval()
    images = torch.rand(1, 96, 96, 3)
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        constants = branch.constants(96)
        expected = Tile(branch, constants)(images)["visual_tokens"]
        found = FlatTile(branch, constants)(images)["visual_tokens"]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def refused(subgraph: Subgraph, level: int) -> set[str]:
    judged = verdicts(subgraph, level)
    return {node.name for node in subgraph.nodes() if judged[node.number]}


def test_what_is_converted_for_nnapi_is_taken_whole(variants_bundle: Path) -> None:
    bundle = Bundle.open(variants_bundle)
    before, after = (read(bundle.path(VISION_BASE, of), details=True) for of in ("cpu", "nnapi:30"))
    assert {"BATCH_MATMUL", "GELU"} <= refused(before.subgraphs[0], 30)
    assert [refused(subgraph, 30) for subgraph in after.subgraphs] == [set()] * 2
    vrc = read(bundle.path(VRC, "nnapi:30"), details=True)
    assert refused(vrc.subgraphs[0], 30) == set()


def test_its_products_have_8_bits(variants_bundle: Path) -> None:
    graph = read(Bundle.open(variants_bundle).path(VISION_BASE, "nnapi:30"), details=True)
    for node in graph.subgraphs[0].nodes():
        if node.name in ("FULLY_CONNECTED", "CONV_2D"):
            assert {node.input(0).dtype, node.input(1).dtype, node.outputs[0].dtype} == {"int8"}


# What a bundle says of them


def test_every_graph_passes_the_sample_on_the_cpu(variants_bundle: Path) -> None:
    bundle = Bundle.open(variants_bundle)
    checked = []
    for component in bundle.manifest.components:
        for graph in component.graphs:
            opened = open_graph(bundle.path(component.name, graph.delegate), weight_cache=None)
            sample = samples.load(bundle.file(component.sample))
            found = samples.closeness(opened, sample, bundle.manifest.decoder)
            assert found >= graph.least_cosine
            worst = min(parity.cosine for parity in graph.parity)
            assert found > worst - 0.01, "the sample is one of what parity was measured on"
            opened.close()
            checked.append((component.name, graph.delegate))
    assert len(checked) == 6


def test_a_graph_that_computes_something_else_does_not_pass(variants_bundle: Path) -> None:
    bundle = Bundle.open(variants_bundle)
    for name, delegate in ((VISION_BASE, "nnapi:30"), (DECODER, "gpu")):
        component = bundle.manifest.component(name)
        assert component is not None
        least = next(graph.least_cosine for graph in component.graphs if graph.delegate == delegate)
        sample = samples.load(bundle.file(component.sample))
        wrong = dataclasses.replace(sample, expected=np.roll(sample.expected, 1, axis=-1))
        graph = open_graph(bundle.path(name, delegate), weight_cache=None)
        assert samples.closeness(graph, wrong, bundle.manifest.decoder) < least
        nothing = dataclasses.replace(sample, expected=np.full_like(sample.expected, np.nan))
        assert samples.closeness(graph, nothing, bundle.manifest.decoder) == 0
        graph.close()


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip", None])
def test_what_is_no_sample_is_told(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.npz"
    if content is None:
        np.savez(path, other=np.zeros(3))
    else:
        path.write_bytes(content)
    with pytest.raises(BundleError, match=r"broken\.npz: holds no sample"):
        samples.load(path)


def test_a_bundle_names_the_delegates_it_has(variants_bundle: Path) -> None:
    with pytest.raises(BundleError) as caught:
        Bundle.open(variants_bundle).path(VISION_BASE, "npu:qualcomm")
    assert "has no vision_base for npu:qualcomm (it holds: cpu, gpu, nnapi:30)" in caught.value.message


def test_two_graphs_for_one_delegate_are_a_contradiction(variants_bundle: Path, tmp_path: Path) -> None:
    from rpi_runtime.manifest import MANIFEST_FILE, to_json

    manifest = Bundle.open(variants_bundle).manifest
    base = manifest.component(VISION_BASE)
    assert base is not None
    twice = dataclasses.replace(base.variants[0], delegate="cpu")
    changed = dataclasses.replace(base, variants=(twice,))
    (tmp_path / MANIFEST_FILE).write_text(to_json(dataclasses.replace(manifest, components=(changed,))))
    with pytest.raises(BundleError, match="two graphs for one delegate: cpu, cpu"):
        Bundle.open(tmp_path, verify=False)
    assert json.loads((variants_bundle / MANIFEST_FILE).read_text())["components"][0]["variants"] == []
