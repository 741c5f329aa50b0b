"""A convert says what it needs, knows what the host has, and does not start what cannot end."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from converters import estimate, host
from converters.estimate import StageNeed
from converters.host import Resources
from converters.options import ConvertOptions, Plan, plan
from converters.pipeline import stages_of
from converters.stages import Stage
from hypervl.config import preset
from rpi_runtime.errors import ResourceError

GB = 10**9
PLENTY = Resources(64 * GB, "memory of this machine", 1000 * GB)
KNOWN = {"fingerprint": "0", "has_chat_template": True}
# Parameters of the 0.6b preset's graphs.
SMALL = {"vrc": 4 * 10**6, "vision_base": 93 * 10**6, "vision_large": 305 * 10**6, "decoder": 596 * 10**6}
SMALL["embedding"] = 151936 * 1024
LARGE = {**SMALL, "decoder": 1721 * 10**6, "embedding": 151936 * 2048}


def a_plan(recipe: str = "int8", embedding: str = "auto") -> Plan:
    return plan(ConvertOptions(Path("c"), Path("b"), recipe=recipe, embedding=embedding), preset("0.6b"))


def all_stages(decided: Plan) -> list[Stage]:
    return stages_of(decided, Path("c"), KNOWN)


def needs(recipe: str = "int8", available: Resources = PLENTY, embedding: str = "auto") -> estimate.Needs:
    decided = a_plan(recipe, embedding)
    return estimate.needs(all_stages(decided), decided, SMALL, available)


def need(found: estimate.Needs, stage: str) -> StageNeed:
    return next(s for s in found.stages if s.stage == stage)


def test_every_stage_has_its_need() -> None:
    assert [s.stage for s in needs().stages] == [s.name for s in all_stages(a_plan())]
    assert all(s.memory_bytes > 0 for s in needs().stages)


@pytest.mark.parametrize(
    ("model", "decoder", "measured"),
    [
        ("0.6b", "int8", 2_335_600_000),
        ("0.6b", "int4", 2_165_600_000),
        ("0.6b", "int4-small", 2_232_800_000),
        ("1.7b", "int4-small", 4_468_200_000),
    ],
)
def test_the_need_is_what_converting_took(model: str, decoder: str, measured: int) -> None:
    """The peak of the largest stage of one convert of each, as its report says."""
    parameters = {"0.6b": SMALL, "1.7b": LARGE}[model]
    decided = a_plan(f"vision=int8,vrc=int8,decoder={decoder}")
    found = estimate.needs(all_stages(decided), decided, parameters, PLENTY)
    assert found.memory_bytes == pytest.approx(measured, rel=0.15)
    assert found.largest.stage.endswith(" decoder")


def test_float_graphs_and_small_graphs_both_take_disk() -> None:
    found = needs()
    assert need(found, "export decoder").disk_bytes > 2.38 * GB
    assert 0.59 * GB < need(found, "quantize decoder").disk_bytes < 0.8 * GB
    assert need(needs("int4"), "quantize decoder").disk_bytes < need(found, "quantize decoder").disk_bytes
    assert need(needs("fp32"), "quantize decoder").disk_bytes > 2.38 * GB
    assert need(found, "embedding").disk_bytes < 10_000_000, "it lies in the decoder"
    assert need(needs(embedding="int8"), "embedding").disk_bytes > 155_000_000


def test_float32_weights_wait_on_disk_one_component_at_a_time() -> None:
    found = needs()
    assert need(found, "export decoder").temporary_bytes == 4 * SMALL["decoder"]
    assert need(found, "check vrc").temporary_bytes == 4 * SMALL["vrc"]
    assert need(found, "quantize decoder").temporary_bytes == 0
    assert found.disk_bytes == sum(s.disk_bytes for s in found.stages) + 4 * SMALL["decoder"]


def test_what_is_finished_needs_nothing_more() -> None:
    decided = a_plan()
    rest = all_stages(decided)[-2:]
    found = estimate.needs(rest, decided, SMALL, PLENTY)
    assert found.disk_bytes < 0.3 * GB
    nothing = estimate.needs([], decided, SMALL, Resources(0, "memory of this machine", 0))
    assert (nothing.memory_bytes, nothing.disk_bytes) == (0, 0)
    estimate.require(nothing)


def test_too_little_memory_is_refused_with_both_numbers() -> None:
    with pytest.raises(ResourceError) as caught:
        estimate.require(needs(available=dataclasses.replace(PLENTY, memory_bytes=GB)))
    message = caught.value.message
    assert "not enough memory: stage '" in message
    assert "1,000 MB are free (memory of this machine)" in message
    assert f"needs about {needs().memory_bytes / 1e6:,.0f} MB" in message
    assert "--components" in caught.value.remedy


def test_too_little_disk_is_refused_with_both_numbers() -> None:
    with pytest.raises(ResourceError) as caught:
        estimate.require(needs(available=dataclasses.replace(PLENTY, disk_bytes=GB)))
    assert (
        f"not enough disk: converting needs about {needs().disk_bytes / 1e6:,.0f} MB" in caught.value.message
    )
    assert "1,000 MB are free" in caught.value.message


def test_enough_is_enough() -> None:
    found = needs()
    exact = dataclasses.replace(
        found, host=Resources(found.memory_bytes, "memory of this machine", found.disk_bytes)
    )
    estimate.require(exact)


# What the host has.


def test_this_machine_has_some_memory_and_disk(tmp_path: Path) -> None:
    found = host.resources(tmp_path)
    assert found.memory_bytes > 10**8
    assert found.disk_bytes > 0
