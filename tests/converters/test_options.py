"""Every wrong wish is answered with the value and with what would be right."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from converters.options import ConvertOptions, plan
from hypervl.config import preset
from rpi_runtime.errors import CheckpointError, ExitCode, UsageError

NANO = preset("nano")


def asked(**values: Any) -> ConvertOptions:
    return ConvertOptions(Path("checkpoint"), Path("bundle"), **values)


def refusal(**values: Any) -> str:
    with pytest.raises(UsageError) as caught:
        plan(asked(**values), NANO)
    assert caught.value.exit_code == ExitCode.WRONG_USAGE
    assert caught.value.remedy
    return str(caught.value)


def test_defaults_convert_everything_at_int8() -> None:
    found = plan(asked(), NANO)
    assert found.components == ("vrc", "vision_base", "vision_large", "decoder")
    assert {r.name for r in found.recipes.values()} == {"int8"}
    assert found.tile_sides == (384, 256, 128)
    assert found.contexts == (1024,)
    assert found.prefill_tokens == (8, 32, 128)


def test_defaults_follow_a_model_with_few_positions() -> None:
    short = dataclasses.replace(NANO, decoder=dataclasses.replace(NANO.decoder, max_position_embeddings=100))
    found = plan(asked(), short)
    assert found.contexts == (100,)
    assert found.prefill_tokens == (8, 32)


def test_the_decoder_alone_is_a_text_model() -> None:
    found = plan(asked(components=("decoder",)), NANO)
    assert found.components == ("decoder",)
    assert found.tile_sides == ()


def test_vision_stands_for_both_branches_and_order_does_not_matter() -> None:
    found = plan(asked(components=("vision", "vrc")), NANO)
    assert found.components == ("vrc", "vision_base", "vision_large")
    assert (found.contexts, found.prefill_tokens, found.kv_dtype) == ((), (), "")


def test_the_token_table_lies_in_a_tied_head_that_has_its_numbers() -> None:
    found = {
        r: plan(asked(recipe=r), NANO).embedding
        for r in ("fp32", "fp16", "int8", "int4", "int4-channel,vrc=int8")
    }
    assert found == {
        "fp32": "head",
        "fp16": "head",
        "int8": "head",
        "int4": "head",
        "int4-channel,vrc=int8": "int8",
    }
    untied = dataclasses.replace(NANO, decoder=dataclasses.replace(NANO.decoder, tie_word_embeddings=False))
    assert plan(asked(), untied).embedding == "int8"
    assert plan(asked(embedding="fp16"), NANO).embedding == "fp16"


def test_the_kv_cache_has_8_bits_where_the_decoder_is_quantised() -> None:
    types = {recipe: plan(asked(recipe=recipe), NANO).kv_dtype for recipe in ("fp32", "fp16", "int8", "int4")}
    assert types == {"fp32": "float32", "fp16": "float32", "int8": "int8", "int4": "int8"}
    assert plan(asked(kv="float16"), NANO).kv_dtype == "float16"


def test_lists_are_put_in_order_and_repeats_dropped() -> None:
    found = plan(
        asked(tile_sides=(128, 384, 128), prefill_tokens=(128, 16, 128), contexts=(512, 64, 512)), NANO
    )
    assert found.tile_sides == (384, 128)
    assert found.prefill_tokens == (16, 128)
    assert found.contexts == (64, 512)


def test_recipes_may_differ_per_component() -> None:
    found = plan(asked(recipe="vision=fp16,decoder=int4"), NANO)
    names = {component: recipe.name for component, recipe in found.recipes.items()}
    assert names["vision_base"] == names["vision_large"] == "fp16"
    assert names["decoder"] == "int4"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"components": ("decodr",)}, ["unknown component 'decodr'", "Did you mean 'decoder'?"]),
        ({"components": ()}, ["no component is named"]),
        ({"recipe": "int7"}, ["unknown recipe 'int7'", "Did you mean 'int"]),
        ({"recipe": "decodr=int8"}, ["'decodr'", "'decoder'"]),
        ({"delegate": "gpus"}, ["unknown delegate 'gpus'", "Did you mean 'gpu'?"]),
        ({"embedding": "int4"}, ["unknown embedding type 'int4'", "auto, fp16, int8"]),
        ({"tile_sides": (180,)}, ["tile side 180 px is not a multiple of 32 px", "160 or 192"]),
        ({"tile_sides": (16,)}, ["16 px is not a multiple of 32", "Nearest that fit: 32 px"]),
        ({"tile_sides": (448, 384)}, ["tile side 448 px", "the full tile's 384 px", "384, 256, 128"]),
        ({"tile_sides": (0,)}, ["tile side 0 px"]),
        ({"tile_sides": ()}, ["no tile side is given"]),
        ({"kv": "int4"}, ["unknown type of the KV cache 'int4'", "float16, float32, int8"]),
        ({"components": ("vision",), "kv": "int8"}, ["decoder is not converted", "Leave --kv out"]),
        ({"contexts": ()}, ["no context is given"]),
        ({"contexts": (16, 1024)}, ["a context of 16 tokens is too small", "text needs at least 32"]),
        ({"contexts": (30,)}, ["a context of 30 tokens is too small", "takes 16 tokens", "48 to 4096"]),
        ({"contexts": (512, 5000)}, ["5000 tokens is more than the model has positions for (4096)"]),
        ({"prefill_tokens": (128, 2000)}, ["prefill of 2000 tokens does not fit a context of 1024"]),
        ({"prefill_tokens": (1,)}, ["prefill of 1 tokens", "from 2 to 1024"]),
        ({"prefill_tokens": ()}, ["no prefill length"]),
        ({"components": ("decoder",), "tile_sides": (384,)}, ["no vision branch", "Leave --tile-sides out"]),
        ({"components": ("vision",), "prefill_tokens": (8,)}, ["decoder is not converted"]),
        ({"components": ("vision",), "contexts": (64,)}, ["decoder is not converted"]),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(values: dict[str, Any], words: list[str]) -> None:
    message = refusal(**values)
    for word in words:
        assert word in message


def test_branches_with_tokens_of_different_size_cannot_share_a_bundle() -> None:
    coarse = dataclasses.replace(NANO, vision_large=dataclasses.replace(NANO.vision_large, patch_size=32))
    with pytest.raises(CheckpointError, match="base 32 px, large 64 px"):
        plan(asked(), coarse)
    assert plan(asked(components=("decoder",)), coarse).tile_sides == ()
