"""Recipes are data, and `--recipe` chooses one per component."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.recipes import DEFAULT, RECIPES, parse_recipes
from rpi_runtime.errors import ExitCode, UsageError
from rpi_runtime.manifest import COMPONENTS, DECODER, VISION_BASE, VISION_LARGE, VRC


def chosen(text: str) -> dict[str, str]:
    return {component: recipe.name for component, recipe in parse_recipes(text).items()}


def test_nothing_said_means_the_default_for_every_component() -> None:
    assert chosen("") == dict.fromkeys(COMPONENTS, DEFAULT)


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8", "int4", "int4-channel", "int4-block32"])
def test_one_name_is_for_all_components(name: str) -> None:
    assert chosen(name) == dict.fromkeys(COMPONENTS, name)


def test_vision_stands_for_both_branches_and_the_rest_keeps_the_default() -> None:
    assert chosen("vision=fp16,decoder=int4") == {
        VRC: DEFAULT,
        VISION_BASE: "fp16",
        VISION_LARGE: "fp16",
        DECODER: "int4",
    }


def test_a_later_entry_wins() -> None:
    assert chosen("fp16, vision=int8 ,vision_large=int4") == {
        VRC: "fp16",
        VISION_BASE: "int8",
        VISION_LARGE: "int4",
        DECODER: "fp16",
    }


@pytest.mark.parametrize(
    ("text", "wrong", "right"),
    [
        ("int5", "'int5'", "'int8'"),
        ("decoder=int4-chanel", "'int4-chanel'", "'int4-channel'"),
        ("vison=int8", "'vison'", "'vision'"),
        ("decoder=", "''", "int4-block32"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(text: str, wrong: str, right: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_recipes(text)
    assert wrong in raised.value.message
    assert right in raised.value.remedy
    assert raised.value.exit_code == ExitCode.WRONG_USAGE


def test_a_recipe_of_another_component_says_whose_it_is() -> None:
    with pytest.raises(UsageError, match="decoder has no recipe 'w8a8'") as raised:
        parse_recipes("w8a8")
    assert "vision_base" in raised.value.message
    assert chosen("vision=w8a8,vrc=w8a8")[VISION_BASE] == "w8a8"


@given(st.text(alphabet="vison=dec,int48-w 16", max_size=30))
def test_any_text_gives_recipes_or_a_usage_error(text: str) -> None:
    try:
        found = parse_recipes(text)
    except UsageError:
        return
    assert set(found) == set(COMPONENTS)


def test_every_component_can_be_kept_exact_halved_or_made_small() -> None:
    for component in COMPONENTS:
        assert {"fp32", "fp16", "int8", "int4"} <= set(RECIPES[component])
        assert RECIPES[component]["fp32"].rules == ()


def test_coarser_recipes_are_not_judged_more_strictly() -> None:
    for recipes in RECIPES.values():
        order = [recipes[n].limits.cosine for n in ("fp32", "fp16", "int8", "int4")]
        assert order == sorted(order, reverse=True)


def test_only_recipes_that_look_at_activations_need_calibration() -> None:
    assert RECIPES[VRC]["w8a8"].needs_calibration
    for component in COMPONENTS:
        assert not RECIPES[component]["int8"].needs_calibration


def test_scopes_are_regular_expressions() -> None:
    for recipes in RECIPES.values():
        for recipe in recipes.values():
            for rule in recipe.rules:
                re.compile(rule.scope)
