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


def test_the_0_6b_model_is_expected_to_stay_under_4_gb() -> None:
    assert 3 * GB < needs().memory_bytes < 4 * GB


def test_a_head_of_4_bits_takes_more_to_make() -> None:
    """Measured: 5.79 GB. The quantizer searches the grid of the whole head at once."""
    measured = 5_791_700_000
    found = need(needs("vision=int8,vrc=int8,decoder=int4-small"), "quantize decoder")
    assert found.memory_bytes == pytest.approx(measured, rel=0.15)
    assert need(needs("int4"), "quantize decoder").memory_bytes < 4 * GB


def test_float_graphs_and_small_graphs_both_take_disk() -> None:
    found = needs()
    assert need(found, "export decoder").disk_bytes > 2.38 * GB
    assert 0.59 * GB < need(found, "quantize decoder").disk_bytes < 0.8 * GB
    assert need(needs("int4"), "quantize decoder").disk_bytes < need(found, "quantize decoder").disk_bytes
    assert need(needs("fp32"), "quantize decoder").disk_bytes > 2.38 * GB
    assert need(found, "embedding").disk_bytes < 10_000_000, "it lies in the decoder"
    assert need(needs(embedding="int8"), "embedding").disk_bytes > 155_000_000


def test_what_is_finished_needs_nothing_more() -> None:
    decided = a_plan()
    rest = all_stages(decided)[-3:]
    found = estimate.needs(rest, decided, SMALL, PLENTY)
    assert found.disk_bytes < 0.3 * GB
    nothing = estimate.needs([], decided, SMALL, Resources(0, "memory of this machine", 0))
    assert (nothing.memory_bytes, nothing.disk_bytes) == (0, 0)
    estimate.require(nothing)


def test_too_little_memory_is_refused_with_both_numbers() -> None:
    with pytest.raises(ResourceError) as caught:
        estimate.require(needs(available=dataclasses.replace(PLENTY, memory_bytes=2 * GB)))
    message = caught.value.message
    assert "not enough memory: stage '" in message
    assert "2,000 MB are free (memory of this machine)" in message
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
