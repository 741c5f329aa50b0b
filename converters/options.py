"""What a convert was asked to do, and the plan that follows once the model's shape is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from converters.delegates import recipe_for, wanted, why_not
from converters.recipes import Recipe, named_recipes
from delegates.targets import CPU, Target
from hypervl.config import BRANCHES, HyperVLConfig
from rpi_runtime.errors import CheckpointError, UsageError, nearest
from rpi_runtime.manifest import COMPONENTS, DECODER, KV_BYTES, VISION_BASE, VISION_LARGE
from rpi_runtime.targets import parse_target

# Where the token table lies: "auto" is in the decoder's head, if it has the same numbers, else int8.
HEAD = "head"
EMBEDDINGS = ("auto", "int8", "fp16")
DEFAULT_CONTEXT_TOKENS = 1024
DEFAULT_PREFILL_TOKENS = (8, 32, 128)
# Beside the visual tokens of one tile, a question and a short answer must fit.
LEAST_TEXT_TOKENS = 32

_BRANCHES = (VISION_BASE, VISION_LARGE)


@dataclass(frozen=True)
class ConvertOptions:
    """The user's words; None is the default that fits the model."""

    checkpoint: Path
    bundle: Path
    components: tuple[str, ...] = COMPONENTS  # "vision" stands for both branches
    recipe: str = ""  # see `converters.recipes.parse_recipes`
    tile_sides: tuple[int, ...] | None = None  # px
    prefill_tokens: tuple[int, ...] | None = None
    contexts: tuple[int, ...] | None = None  # tokens; the largest is the context
    kv: str = ""  # what the KV cache holds: one of `KV_BYTES`
    embedding: str = "auto"  # one of `EMBEDDINGS`
    delegate: str = "cpu"  # see `parse_delegates`
    nnapi_level: int | None = None  # of a delegate `nnapi` without one
    calibration: Path | None = None  # folder of photographs; None: those that are shipped
    measure: bool = True  # what the graphs take in memory here


@dataclass(frozen=True)
class Variant:
    """One graph of a component."""

    component: str
    target: Target
    recipe: Recipe
    is_base: bool  # the component's own, which the CPU can run, too

    @property
    def name(self) -> str:
        """Of its file and its stages."""
        return self.component if self.is_base else f"{self.component}.{self.target.slug}"

    @property
    def writing(self) -> str:
        """How the component is written for it (`converters.delegates.Wanted`)."""
        fit = wanted(self.component, self.target)
        return fit.writing if fit else ""


@dataclass(frozen=True)
class Plan:
    """Everything decided."""

    variants: tuple[Variant, ...]  # by component, its base first
    tile_sides: tuple[int, ...]  # px, descending; () without a vision branch
    prefill_tokens: tuple[int, ...]  # ascending; () without a decoder
    contexts: tuple[int, ...]  # tokens, ascending; () without a decoder
    kv_dtype: str  # "" without a decoder
    embedding: str  # "int8", "fp16", or `HEAD`

    @property
    def components(self) -> tuple[str, ...]:
        return tuple(variant.component for variant in self.variants if variant.is_base)

    @property
    def recipes(self) -> dict[str, Recipe]:
        """Of the base of each component."""
        return {variant.component: variant.recipe for variant in self.variants if variant.is_base}

    def variant(self, name: str) -> Variant:
        return next(variant for variant in self.variants if variant.name == name)

    @property
    def has_vision(self) -> bool:
        return any(c in self.components for c in _BRANCHES)


def plan(options: ConvertOptions, config: HyperVLConfig) -> Plan:
    """Fills in defaults; raises `UsageError`, naming the value, for what the model cannot become."""
    components = _components(options.components)
    if options.embedding not in EMBEDDINGS:
        raise nearest(options.embedding, EMBEDDINGS, "embedding type")
    targets = parse_delegates(options.delegate, options.nnapi_level)
    asked = named_recipes(options.recipe)
    variants = tuple(v for c in components for v in _variants(c, targets[c], asked.get(c)))
    recipes = {variant.component: variant.recipe for variant in variants if variant.is_base}
    token_px = _token_px(components, config)
    sides = _tile_sides(options.tile_sides, token_px, config)
    contexts = _contexts(options.contexts, (min(sides) // token_px) ** 2 if sides else 0, components, config)
    return Plan(
        variants=variants,
        tile_sides=sides,
        prefill_tokens=_prefill(options.prefill_tokens, max(contexts, default=0)),
        contexts=contexts,
        kv_dtype=_kv_dtype(options.kv, recipes.get(DECODER)),
        embedding=_embedding(options.embedding, config, recipes.get(DECODER)),
    )


def parse_delegates(text: str, nnapi_level: int | None = None) -> dict[str, tuple[Target, ...]]:
    """Reads `--delegate`: `gpu` for all components, `cpu+gpu` for a graph each, or per component:
    `vision=cpu+gpu,decoder=cpu`. Components not named get the CPU; so does one that a delegate named for all
    has no use for. Raises `UsageError`."""
    chosen: dict[str, tuple[Target, ...]] = dict.fromkeys(COMPONENTS, (CPU,))
    named: set[str] = set()
    if not text.strip():
        raise UsageError("--delegate names no delegate", "Name cpu, gpu, nnapi or npu:<vendor>.")
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, given, names = (part.strip() for part in entry.rpartition("="))
        if given and name not in (*COMPONENTS, "vision"):
            raise nearest(name, (*COMPONENTS, "vision"), "component in --delegate")
        if name in named:
            raise UsageError(
                f"--delegate {text!r} names {name or 'all components'} twice", "Join them: cpu+gpu."
            )
        named.add(name)
        found = tuple(dict.fromkeys(_target(one, nnapi_level) for one in names.split("+")))
        for component in (_BRANCHES if name == "vision" else (name,)) if given else COMPONENTS:
            fitting = tuple(target for target in found if wanted(component, target))
            if given and fitting != found:
                unfit = next(target for target in found if target not in fitting)
                raise UsageError(
                    f"{component} cannot be converted for {unfit.title}: {why_not(component, unfit)}",
                    f"Use {component}=cpu.",
                )
            chosen[component] = fitting or (CPU,)
    return chosen


def _target(text: str, nnapi_level: int | None) -> Target:
    is_nnapi = text.strip() == "nnapi"
    if text.strip().startswith("external"):
        raise UsageError(
            "nothing is converted for an external delegate: it takes what its own library says",
            "Convert for cpu, and name the library when running: toolkit run --delegate external:PATH.",
        )
    target = parse_target(text, nnapi_level if is_nnapi else None)
    return target


def _variants(component: str, targets: tuple[Target, ...], asked: Recipe | None) -> Iterator[Variant]:
    """The base first: of those that the CPU can run, its own or the first; one is added where there is
    none."""
    on_cpu = sorted((t for t in targets if t.runs_on_cpu), key=lambda target: target != CPU)
    base = on_cpu[0] if on_cpu else CPU
    for target in (base, *(target for target in targets if target != base)):
        is_extra = target not in targets
        yield Variant(
            component, target, recipe_for(component, target, None if is_extra else asked), target == base
        )


def _components(asked: tuple[str, ...]) -> tuple[str, ...]:
    wanted: set[str] = set()
    for name in asked:
        if name not in (*COMPONENTS, "vision"):
            raise nearest(name, (*COMPONENTS, "vision"), "component")
        wanted |= set(_BRANCHES) if name == "vision" else {name}
    if not wanted:
        raise UsageError("no component is named", f"Known: {', '.join(COMPONENTS)}.")
    return tuple(c for c in COMPONENTS if c in wanted)


def _token_px(components: tuple[str, ...], config: HyperVLConfig) -> int:
    """Side of the square of pixels that becomes one visual token; 0 without a vision branch.

    One for both branches, since either may encode any tile.
    """
    if not any(c in components for c in _BRANCHES):
        return 0
    sizes = {branch: config.vision(branch) for branch in BRANCHES}
    pixels = {branch: v.patch_size * v.pixel_shuffle for branch, v in sizes.items()}
    if len(set(pixels.values())) > 1:
        found = ", ".join(f"{branch} {px} px" for branch, px in pixels.items())
        raise CheckpointError(
            f"the branches make visual tokens of different size: {found}",
            "Give both the same product of patch_size and pixel_shuffle.",
        )
    return pixels["base"]


def _tile_sides(asked: tuple[int, ...] | None, token_px: int, config: HyperVLConfig) -> tuple[int, ...]:
    full, own = config.tiling.tile_side, config.tiling.tile_sides
    if not token_px:
        if asked is not None:
            raise UsageError(
                "tile sides are given, but no vision branch is converted", "Leave --tile-sides out."
            )
        return ()
    asked = own if asked is None else asked
    known = f"The checkpoint's own are {', '.join(map(str, own))} px."
    if not asked:
        raise UsageError("no tile side is given", known)
    for side in asked:
        if not 0 < side <= full:
            raise UsageError(f"tile side {side} px is not between 1 and the full tile's {full} px", known)
        if side % token_px:
            below, above = side // token_px * token_px, -(-side // token_px) * token_px
            fits = " or ".join(str(s) for s in (below, above) if 0 < s <= full)
            raise UsageError(
                f"tile side {side} px is not a multiple of {token_px} px, the side of one visual token",
                f"Nearest that fit: {fits} px. {known}",
            )
    return tuple(sorted(set(asked), reverse=True))


def _contexts(
    asked: tuple[int, ...] | None, tile_tokens: int, components: tuple[str, ...], config: HyperVLConfig
) -> tuple[int, ...]:
    if DECODER not in components:
        if asked is not None:
            raise UsageError("a context is given, but the decoder is not converted", "Leave --context out.")
        return ()
    if asked == ():
        raise UsageError("no context is given", "Ask for one or several numbers of tokens.")
    most = config.decoder.max_position_embeddings
    least = tile_tokens + LEAST_TEXT_TOKENS
    remedy = f"Ask for {least} to {most} tokens."
    context = min(DEFAULT_CONTEXT_TOKENS, most) if asked is None else max(asked)
    if context < least:
        raise UsageError(
            f"a context of {context} tokens is too small: the smallest tile takes {tile_tokens} tokens, "
            f"and text needs at least {LEAST_TEXT_TOKENS}",
            remedy,
        )
    if context > most:
        raise UsageError(
            f"a context of {context} tokens is more than the model has positions for ({most})", remedy
        )
    if asked is None:
        return (context,)
    if min(asked) < LEAST_TEXT_TOKENS:
        raise UsageError(
            f"a context of {min(asked)} tokens is too small: text needs at least {LEAST_TEXT_TOKENS}", remedy
        )
    return tuple(sorted(set(asked)))


def _kv_dtype(asked: str, recipe: Recipe | None) -> str:
    if recipe is None:
        if asked:
            raise UsageError(
                "a type of the KV cache is given, but the decoder is not converted", "Leave --kv out."
            )
        return ""
    if asked and asked not in KV_BYTES:
        raise nearest(asked, KV_BYTES, "type of the KV cache")
    return asked or recipe.kv_dtype


def _embedding(asked: str, config: HyperVLConfig, recipe: Recipe | None) -> str:
    if asked != "auto":
        return asked
    in_head = recipe is not None and config.decoder.tie_word_embeddings and recipe.head_dtype
    return HEAD if in_head else "int8"


def _prefill(asked: tuple[int, ...] | None, context: int) -> tuple[int, ...]:
    if not context:
        if asked is not None:
            raise UsageError("prefill is given, but the decoder is not converted", "Leave --prefill out.")
        return ()
    if asked is None:
        return tuple(n for n in DEFAULT_PREFILL_TOKENS if n <= context)
    if not asked:
        raise UsageError("no prefill length is given", f"Ask for lengths from 2 to {context} tokens.")
    for tokens in asked:
        if not 2 <= tokens <= context:
            raise UsageError(
                f"prefill of {tokens} tokens does not fit a context of {context}",
                f"Ask for lengths from 2 to {context} tokens, or for a larger --context.",
            )
    return tuple(sorted(set(asked)))
