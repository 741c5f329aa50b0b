"""Which graphs a delegate gets: components, recipes that suit it, and how a component is written for it."""

from __future__ import annotations

from dataclasses import dataclass

from converters.recipes import BRANCHES, DEFAULT, RECIPES, Recipe
from delegates.targets import Target
from rpi_runtime.errors import UsageError
from rpi_runtime.manifest import DECODER

# NNAPI's own int8, with a zero point, came with feature level 30. Before, graphs of static int8 would lie in
# pieces between casts; float32 activations over int8 weights are whole.
_STATIC_SINCE_LEVEL = 30


@dataclass(frozen=True)
class Wanted:
    """What a delegate takes of one component."""

    recipes: tuple[str, ...]  # names; the first is what it gets unless another is asked for
    writing: str = ""  # "nnapi": `converters.nnapi`; "": as for the CPU


def wanted(component: str, target: Target) -> Wanted | None:
    """None: it has no use for that component."""
    if target.delegate == "cpu":
        return Wanted((DEFAULT, *(name for name in RECIPES[component] if name != DEFAULT)))
    if target.delegate == "gpu":
        return Wanted(("fp16", "fp32", "int8"))
    if component == DECODER:
        return None
    if target.delegate == "nnapi":
        static = target.nnapi_level >= _STATIC_SINCE_LEVEL
        writing = "nnapi" if component in BRANCHES else ""
        return Wanted(("w8a8", "int8", "fp32") if static else ("int8", "fp32"), writing)
    return Wanted(("w8a8", "fp32"))


def recipe_for(component: str, target: Target, asked: Recipe | None) -> Recipe:
    """`asked`, or what suits. Raises `UsageError` for a recipe that the delegate does not run."""
    fit = wanted(component, target)
    assert fit is not None
    if asked is None:
        return RECIPES[component][fit.recipes[0]]
    if asked.name not in fit.recipes:
        raise UsageError(
            f"{component} for {target.title} cannot have the recipe {asked.name!r}",
            f"It may have: {', '.join(fit.recipes)}.",
        )
    return asked


def why_not(component: str, target: Target) -> str:
    """In words, of a component that `wanted` has nothing for."""
    assert component == DECODER
    return f"a decoder's weights need int4 or dynamic int8, and {target.title} takes static int8"
