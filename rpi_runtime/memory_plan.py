"""How an answer fits a memory budget: how long a conversation may get, in which chunks a prompt is fed, which
graphs are open together, and how large a picture may be.

A phase holds what is resident while it runs: the process with its libraries, the open graphs, keys and
values, visual tokens, the picture. The peak of an answer is that of its fullest phase. The first choice that
fits is taken: the largest context first, with it the largest chunks, and with these the fastest of the ways.
All give the same answer. A picture that does not fit beside the open graphs is decoded when all are closed,
and its pixels wait in a file; what the budget leaves then bounds it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rpi_runtime.backends.select import INTERPRETER
from rpi_runtime.decoder import host_bytes, where_each_copies
from rpi_runtime.encoder import BRANCHES
from rpi_runtime.errors import ResourceError, UsageError
from rpi_runtime.footprint import Footprint
from rpi_runtime.graphs import ONE_BY_ONE, TOGETHER, Residency
from rpi_runtime.kernel import memory, memory_available
from rpi_runtime.manifest import DECODER, VISION_BASE, VISION_LARGE, VRC, DecoderSpec, Manifest
from rpi_runtime.picture_needs import PictureNeeds, any_picture

# What Python and the allocators take more than is accounted for, as a share of what is.
MARGIN = 0.015
# From start to start, a process holds some hundred kilobytes more or less of its libraries.
_BETWEEN_STARTS = 1_000_000

# By name, fastest first.
WAYS: dict[str, Residency] = {
    "together": TOGETHER,
    "vision, then decoder": (frozenset({VRC, VISION_BASE, VISION_LARGE}), frozenset({DECODER})),
    "one by one": ONE_BY_ONE,
}


_UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
AUTO_SHARE = 0.9  # of what is free, with "auto": others want to live, too


def parse_budget(text: str) -> int:
    """ "512MB" (a million bytes each), "1.5GB", "512MiB" in bytes; "auto" is what this process holds already
    and nine tenths of what the machine, or its container, has left. Raises `UsageError`."""
    if text.strip().lower() == "auto":
        free, _ = memory_available()
        return memory().resident_bytes + int(AUTO_SHARE * free)
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2].upper() not in _UNITS:
        raise UsageError(f"memory {text!r} is no size", 'Write it like "512MB", "1.5GB", "512MiB" or "auto".')
    return int(float(found[1]) * _UNITS[found[2].upper()])


Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Context:
    """Bytes that a context takes when it is full, with a choice of the decoder's signatures."""

    decoder: int  # its graph
    keys_and_values: int
    inputs: int  # and outputs
    visual_tokens: int  # as many as it holds, while they wait for the decoder


@dataclass(frozen=True)
class Needs:
    """Bytes that parts of an answer take."""

    process: int  # Python and its libraries, LiteRT's included
    graphs: Mapping[str, int]  # those that an answer may use, without the decoder
    weights: Mapping[str, int]  # what of them are mapped weights, which can be read again and again
    contexts: Mapping[tuple[int, Sizes], Context]  # by tokens and sizes of prefill chunks, the best first
    tile_tokens: int  # visual tokens of one tile
    picture: PictureNeeds | None  # any that is decoded at a scale; None without vision
    # Branch -> bytes that it takes less while one of its tile sides is used, two, ...
    spared: Mapping[str, Sizes] = field(default_factory=dict)


@dataclass(frozen=True)
class Phase:
    name: str
    holds: dict[str, int]  # who -> bytes

    @property
    def bytes(self) -> int:
        return sum(self.holds.values())


@dataclass(frozen=True)
class Choice:
    context_tokens: int
    prefill_tokens: Sizes  # sizes of chunks; none: token by token
    way: str  # one of `WAYS`
    peak: int  # bytes of its fullest phase, with a margin
    beside_picture: int  # bytes, while a picture is decoded and no graph is open


@dataclass(frozen=True)
class MemoryPlan:
    budget: int
    chosen: Choice
    choices: tuple[Choice, ...]  # all that the bundle has, the best first
    contexts: tuple[int, ...]  # that a conversation may grow through, ascending
    phases: tuple[Phase, ...]
    spared: Mapping[str, Sizes]  # as in `Needs`
    # Component -> bytes of its weights that each of its runs reads from storage, since they do not fit.
    streamed: dict[str, int] = field(default_factory=dict)

    @property
    def residency(self) -> Residency:
        return WAYS[self.chosen.way]

    @property
    def picture_bytes(self) -> int:
        """What a picture may take while it is decoded and no graph is open."""
        return _without_margin(self.budget) - self.chosen.beside_picture

    def spools(self, decoding: int) -> bool:
        """Whether no graph is open beside a picture that takes so many bytes, and its pixels wait on disk."""
        if self.residency is not TOGETHER:
            return True
        beside = max((p.bytes - p.holds["picture"] for p in self.phases if "picture" in p.holds), default=0)
        return beside + decoding > _without_margin(self.budget)

    @property
    def fullest(self) -> Phase:
        return _fullest(self.phases)

    @property
    def peak(self) -> int:
        return self.chosen.peak

    def peak_with(self, picture: PictureNeeds) -> int:
        """The peak of answers about this picture alone, which may be less than that of any picture's. It is
        more than the budget for one that will be refused."""
        spooled = self.spools(picture.decoding)
        own = {"picture": 0 if spooled else picture.decoding, "tile": picture.tile}
        # No more sides than tiles can be used.
        spared = {name: less[min(picture.tiles, len(less)) - 1] for name, less in self.spared.items()}
        opening = self.chosen.beside_picture + picture.spooling if spooled else 0
        held = (
            sum(own.get(who, count) - spared.get(who, 0) for who, count in phase.holds.items())
            for phase in self.phases
        )
        return _with_margin(max(opening, *held))

    def budget_for(self, spooling: int) -> str:
        """The smallest budget, by name, under which a picture is decoded that takes so many bytes on its way
        into a file. A larger budget may be planned for in another way, which leaves a picture less."""
        budget = self.budget
        while True:
            for start in (budget, budget + _BETWEEN_STARTS):
                chosen = next((c for c in self.choices if c.peak <= start), self.chosen)
                least = _with_margin(chosen.beside_picture + spooling)
                if least > start:
                    budget = max(budget + 1, least)
                    break
            else:
                return name_budget(budget)

    def budget_to_hold(self, decoding: int) -> str:
        """The smallest, by name, under which such a picture stays in memory, beside all graphs."""
        together = next(c for c in self.choices if WAYS[c.way] is TOGETHER)
        return name_budget(together.peak + decoding)

    @property
    def head_room(self) -> int:
        return self.budget - self.peak


def needs(
    manifest: Manifest,
    footprint: Footprint,
    process: int,
    branches: Sequence[str] = tuple(BRANCHES),
    context_tokens: int | None = None,
) -> Needs:
    """What answers of a bundle take, when this process holds `process` bytes without any graph. With
    `context_tokens` a conversation of as many must fit, and none that is longer; without `branches` there are
    no pictures. Raises `UsageError` when the bundle has no such context."""
    components = {VRC, *(BRANCHES[branch] for branch in branches)} if branches else set()
    graphs = {name: cost for name, cost in footprint.graphs().items() if name in components}
    weights = footprint.weights()
    spec, decoder = manifest.vision, manifest.decoder
    token_bytes = np.dtype(np.float16).itemsize * decoder.hidden_size if spec and decoder else 0
    return Needs(
        process=process + footprint.libraries,
        graphs=graphs,
        weights={name: cost for name, cost in weights.items() if name in {*components, DECODER}},
        contexts=_contexts(decoder, footprint, context_tokens, token_bytes)
        if decoder
        else {(0, ()): Context(0, 0, 0, 0)},
        tile_tokens=token_bytes * spec.tokens(spec.tile_side) if spec else 0,
        picture=any_picture(spec) if spec and branches else None,
        spared={name: _spared(footprint, name) for name in graphs if name != VRC},
    )


def _spared(footprint: Footprint, branch: str) -> Sizes:
    sides = footprint.signatures(branch)
    costs = [footprint.graphs(unused=sides[:-used])[branch] for used in range(1, len(sides))]
    most = footprint.graphs()[branch]
    return (*(most - cost for cost in costs), 0)


def _contexts(
    decoder: DecoderSpec, footprint: Footprint, asked: int | None, token_bytes: int
) -> dict[tuple[int, Sizes], Context]:
    every = decoder.signatures(decoder.contexts, decoder.prefill_tokens)
    allowed = _allowed(decoder, asked)
    found = {}
    for slots in reversed(allowed):
        grown, sizes = tuple(n for n in allowed if n <= slots), decoder.chunk_sizes(slots)
        if footprint.backend == INTERPRETER:
            grown, sizes = where_each_copies(grown, sizes)
        for count in range(len(sizes), -1, -1):
            used = decoder.signatures(grown, sizes[:count])
            found[slots, sizes[:count]] = Context(
                decoder=footprint.graphs(unused={*every} - {*used})[DECODER],
                keys_and_values=decoder.kv_bytes_per_token * slots,
                inputs=host_bytes(decoder, slots, sizes[:count]),
                visual_tokens=token_bytes * slots,
            )
    return found


def _allowed(decoder: DecoderSpec, tokens: int | None) -> tuple[int, ...]:
    if tokens is None:
        return decoder.contexts
    if not 1 <= tokens <= decoder.context_tokens:
        raise UsageError(
            f"a context of {tokens} tokens is asked for, and the bundle has {decoder.context_tokens}",
            f"Ask for 1 to {decoder.context_tokens}, or convert with a larger --context.",
        )
    return (next(slots for slots in decoder.contexts if slots >= tokens),)


def make_plan(budget: int, need: Needs, stream_weights: bool = False) -> MemoryPlan:
    """The first choice that fits; raises `ResourceError` with the smallest budget that would do.

    With `stream_weights`, when none fits, weights need not stay: the kernel drops their pages under pressure,
    and each run of a graph reads them from storage.
    """
    try:
        return _first_that_fits(budget, need)
    except ResourceError as error:
        too_small = error
    without = replace(
        need,
        graphs={name: cost - need.weights[name] for name, cost in need.graphs.items()},
        contexts={
            key: replace(held, decoder=max(0, held.decoder - need.weights.get(DECODER, 0)))
            for key, held in need.contexts.items()
        },
    )
    try:
        found = _first_that_fits(budget, without)
    except ResourceError as still_too_small:
        raise (still_too_small if stream_weights else too_small) from None
    room = found.head_room
    streamed = {n: held - room for n, held in need.weights.items() if held > room}
    if stream_weights:
        return replace(found, streamed=streamed)
    most = megabytes(max(streamed.values(), default=0))
    hint = f" With --stream-weights this budget does, and up to {most} are read again for each token."
    raise ResourceError(too_small.message, too_small.remedy + hint)


def _first_that_fits(budget: int, need: Needs) -> MemoryPlan:
    phases: dict[Choice, tuple[Phase, ...]] = {}
    for (tokens, sizes), context in need.contexts.items():
        for way, residency in WAYS.items():
            found = _phases(need, context, residency)
            peak = _with_margin(_fullest(found).bytes)
            waiting = 0 if residency is TOGETHER else context.visual_tokens
            beside = need.process + context.keys_and_values + context.inputs + waiting
            phases[Choice(tokens, sizes, way, peak, beside)] = found
    chosen = next((choice for choice in phases if choice.peak <= budget), None)
    if chosen is None:
        least = min(phases, key=lambda choice: choice.peak)
        fullest = _fullest(phases[least])
        most = max(fullest.holds, key=lambda who: fullest.holds[who])
        raise ResourceError(
            f"a memory budget of {_told(budget)} is too small: the least that this bundle can do "
            f"with is {name_budget(least.peak)} ({fullest.name}, where {most} takes "
            f"{megabytes(fullest.holds[most])})",
            f"Give {name_budget(least.peak)} or more, or convert for less: a smaller --context, fewer or "
            "smaller --tile-sides, a recipe with fewer bits.",
        )
    return MemoryPlan(
        budget=budget,
        chosen=chosen,
        choices=tuple(phases),
        contexts=tuple(sorted({tokens for tokens, _ in need.contexts if tokens <= chosen.context_tokens})),
        phases=phases[chosen],
        spared=need.spared,
    )


def _with_margin(count: int) -> int:
    return math.ceil((1 + MARGIN) * count)


def _without_margin(budget: int) -> int:
    return int(budget / (1 + MARGIN))


def _fullest(phases: Sequence[Phase]) -> Phase:
    return max(phases, key=lambda phase: phase.bytes)


def _phases(need: Needs, held: Context, residency: Residency) -> tuple[Phase, ...]:
    """Of an answer that is not the first: a graph is closed when one of another group is needed."""
    always = {"process": need.process}
    told = {"keys and values": held.keys_and_values, "inputs": held.inputs}
    costs = {**need.graphs, **({DECODER: held.decoder} if held.decoder else {})}

    def graphs(*components: str) -> dict[str, int]:
        """Those that are open while the fullest group with one of `components` is."""
        groups = [group for group in residency if group & {*components}]
        found = [{name: costs[name] for name in sorted(group & costs.keys())} for group in groups]
        return max(found, key=lambda one: sum(one.values()), default={})

    if need.picture is None:
        found = [Phase("prefill", {**always, **graphs(DECODER), **told})]
    else:
        picture, tile = {"picture": need.picture.decoding}, {"tile": need.picture.tile}
        spooled = {"picture": need.picture.spooling}
        branches = [name for name in (VISION_BASE, VISION_LARGE) if name in need.graphs]
        if residency is TOGETHER:  # tile by tile
            all_open, tokens = {**always, **graphs(DECODER), **told}, {"visual tokens": need.tile_tokens}
            found = [
                Phase("route", {**all_open, **picture, **tile}),
                Phase("read", {**all_open, **picture, **tile, **tokens}),
            ]
        else:
            # The picture is decoded before a graph is opened, and waits on disk.
            tokens = {"visual tokens": held.visual_tokens}
            found = [
                Phase("open", {**always, **told, **spooled, **tokens}),
                Phase("route", {**always, **graphs(VRC), **told, **tile, **tokens}),
                Phase("encode", {**always, **graphs(*branches), **told, **tile, **tokens}),
                Phase("prefill", {**always, **graphs(DECODER), **told, **tokens}),
            ]
    return (*found, Phase("decode", {**always, **graphs(DECODER), **told}))


def megabytes(count: int) -> str:
    """Rounded up."""
    return f"{math.ceil(count / 1e6):,} MB"


def name_budget(peak: int) -> str:
    """A budget for an answer that takes `peak` bytes, as another process will accept it."""
    return megabytes(peak + _BETWEEN_STARTS)


def _told(budget: int) -> str:
    return f"{budget // 10**6:,} MB" if budget >= 10**6 else f"{budget:,} bytes"
