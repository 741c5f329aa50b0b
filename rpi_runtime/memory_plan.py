"""How an answer fits a memory budget: how long a conversation may get, in which chunks a prompt is fed, which
graphs are open together, and how large a picture may be.

A phase holds what is resident while it runs: the process with its libraries, the open graphs, keys and
values, visual tokens, the picture. The peak of an answer is that of its fullest phase. The first choice that
fits is taken: the largest context first, with it the largest chunks, and with these the fastest of the ways.
All give the same answer. What is left then bounds the pixels of a picture that cannot be decoded at a smaller
scale.
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
from rpi_runtime.images import MAX_DECODED_PIXELS
from rpi_runtime.kernel import memory, memory_available
from rpi_runtime.manifest import DECODER, VISION_BASE, VISION_LARGE, VRC, DecoderSpec, Manifest, VisionSpec

_BYTES_PER_PIXEL = 4  # as Pillow keeps RGB
# A JPEG is decoded at the smallest of its scales that has the pixels of the grid, each half of the last.
_WASTE = 4
# What Python and the allocators take more than is accounted for, as a share of what is.
_MARGIN = 0.03

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
    picture: int  # the largest that is decoded at a scale, as it is decoded; 0 without vision


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


@dataclass(frozen=True)
class MemoryPlan:
    budget: int
    chosen: Choice
    choices: tuple[Choice, ...]  # all that the bundle has, the best first
    contexts: tuple[int, ...]  # that a conversation may grow through, ascending
    phases: tuple[Phase, ...]
    picture_pixels: int  # that may be held while a picture is decoded
    # Component -> bytes of its weights that each of its runs reads from storage, since they do not fit.
    streamed: dict[str, int] = field(default_factory=dict)

    @property
    def residency(self) -> Residency:
        return WAYS[self.chosen.way]

    @property
    def fullest(self) -> Phase:
        return _fullest(self.phases)

    @property
    def peak(self) -> int:
        return self.chosen.peak

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
    `context_tokens` a conversation of as many must fit, and none that is longer. Raises `UsageError` when the
    bundle has no such context."""
    components = {VRC, *(BRANCHES[branch] for branch in branches)}
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
        picture=_scaled_picture(spec) if spec else 0,
    )


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


def _scaled_picture(spec: VisionSpec) -> int:
    return _WASTE * spec.max_tiles * spec.tile_side**2 * _BYTES_PER_PIXEL


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
    most = _mb(max(streamed.values(), default=0))
    hint = f" With --stream-weights this budget does, and up to {most} are read again for each token."
    raise ResourceError(too_small.message, too_small.remedy + hint)


def _first_that_fits(budget: int, need: Needs) -> MemoryPlan:
    phases: dict[Choice, tuple[Phase, ...]] = {}
    for (tokens, sizes), context in need.contexts.items():
        for way, residency in WAYS.items():
            found = _phases(need, context, residency)
            peak = math.ceil((1 + _MARGIN) * _fullest(found).bytes)
            phases[Choice(tokens, sizes, way, peak)] = found
    chosen = next((choice for choice in phases if choice.peak <= budget), None)
    if chosen is None:
        least = min(phases, key=lambda choice: choice.peak)
        fullest = _fullest(phases[least])
        most = max(fullest.holds, key=lambda who: fullest.holds[who])
        raise ResourceError(
            f"a memory budget of {budget // 10**6:,} MB is too small: the least that this bundle can do "
            f"with is {_mb(least.peak)} ({fullest.name}, where {most} takes {_mb(fullest.holds[most])})",
            f"Give {_mb(least.peak)} or more, or convert for less: a smaller --context, fewer or smaller "
            "--tile-sides, a recipe with fewer bits.",
        )
    room = budget - chosen.peak
    pixels = (need.picture + int(room / (1 + _MARGIN))) // _BYTES_PER_PIXEL
    return MemoryPlan(
        budget=budget,
        chosen=chosen,
        choices=tuple(phases),
        contexts=tuple(sorted({tokens for tokens, _ in need.contexts if tokens <= chosen.context_tokens})),
        phases=phases[chosen],
        picture_pixels=min(pixels, MAX_DECODED_PIXELS),
    )


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

    if not need.picture:
        found = [Phase("prefill", {**always, **graphs(DECODER), **told})]
    else:
        picture = {"picture": need.picture}
        branches = [name for name in (VISION_BASE, VISION_LARGE) if name in need.graphs]
        # The picture is opened once the decoder is closed, where the two are not open together.
        found = [Phase("route", {**always, **graphs(VRC), **told, **picture})]
        if any({DECODER, *branches} <= group for group in residency):  # tile by tile
            tokens = {"visual tokens": need.tile_tokens}
            found.append(Phase("read", {**always, **graphs(DECODER), **told, **picture, **tokens}))
        else:
            tokens = {"visual tokens": held.visual_tokens}
            found += [
                Phase("encode", {**always, **graphs(*branches), **told, **picture, **tokens}),
                Phase("prefill", {**always, **graphs(DECODER), **told, **tokens}),
            ]
    return (*found, Phase("decode", {**always, **graphs(DECODER), **told}))


def _mb(count: int) -> str:
    return f"{math.ceil(count / 1e6):,} MB"
