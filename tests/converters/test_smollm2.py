"""A real language model through the real pipeline: SmolLM2-135M-Instruct at 8 and 4 bits, on the device's
runtime.

The perplexities are measured with `benchmarks.perplexity`; docs/quantization.md has the table of all recipes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.perplexity import Quality, Reference
from converters.convert import ConvertReport, convert
from converters.options import ConvertOptions
from hypervl.checkpoint import Checkpoint
from rpi_runtime.manifest import DECODER
from rpi_runtime.session import Session

pytestmark = [pytest.mark.weights, pytest.mark.slow]

RECIPES = ("int8", "int4")


@dataclass(frozen=True)
class Measured:
    reports: dict[str, ConvertReport]
    sessions: dict[str, Session]
    quality: dict[str, Quality]
    pytorch: Quality

    def above_pytorch(self, recipe: str) -> float:
        """How much higher the recipe's perplexity is, as a share."""
        return self.quality[recipe].perplexity / self.pytorch.perplexity - 1


@pytest.fixture(scope="module")
def measured(smollm2_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    folder = tmp_path_factory.mktemp("smollm2")
    reports = {
        recipe: convert(
            ConvertOptions(
                smollm2_checkpoint,
                folder / recipe,
                components=(DECODER,),
                recipe=recipe,
                prefill_tokens=(8,),
                contexts=(512,),
                measure=False,
            )
        )
        for recipe in RECIPES
    }
    sessions = {recipe: Session.open(folder / recipe, weight_cache=folder / "cache") for recipe in RECIPES}
    try:
        reference = Reference(Checkpoint.open(smollm2_checkpoint))
        quality = {recipe: reference.quality_of(session.decoder) for recipe, session in sessions.items()}
        yield Measured(reports, sessions, quality, reference.quality)
    finally:
        for session in sessions.values():
            session.close()


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_capital_of_france_is_paris(measured: Measured, recipe: str) -> None:
    pieces = measured.sessions[recipe].generate("The capital of France is", max_new_tokens=3, raw=True)
    assert "".join(pieces).startswith(" Paris")


def test_at_least_2000_tokens_are_asked_for(measured: Measured) -> None:
    assert {q.tokens for q in (measured.pytorch, *measured.quality.values())} == {2048}


def test_int8_keeps_the_perplexity_within_2_percent(measured: Measured) -> None:
    assert abs(measured.above_pytorch("int8")) <= 0.02


def test_int4_costs_at_most_15_percent_of_perplexity(measured: Measured) -> None:
    assert measured.above_pytorch("int4") <= 0.15


def test_int4_takes_at_most_6_bits_per_weight(measured: Measured) -> None:
    (decoder,) = measured.reports["int4"].components
    assert decoder.bits_per_weight <= 6.0
    assert decoder.bytes * 8 / 134_515_008 <= 6.0  # the whole file, by the parameters of SmolLM2-135M


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_bundle_passes_its_own_parity(measured: Measured, recipe: str) -> None:
    assert measured.reports[recipe].misses == ()
