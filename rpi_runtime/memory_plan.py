"""How an answer fits a memory budget: how long a conversation may get, which graphs are open together, and
how large a picture may be.

A phase holds what is resident while it runs: the process with its libraries, the open graphs, keys and
values, visual tokens, the picture. The peak of an answer is that of its fullest phase. The first choice that
fits is taken: the largest context first, and with it the fastest of the ways, all of which give the same
answer. What is left then bounds the pixels of a picture that cannot be decoded at a smaller scale.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rpi_runtime.decoder import host_bytes
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


@dataclass(frozen=True)
class Context:
    """Bytes that a context takes when it is full."""

    keys_and_values: int
    host: int  # inputs and outputs of the decoder
    visual_tokens: int  # as many as it holds, while they wait for the decoder


@dataclass(frozen=True)
class Needs:
    """Bytes that parts of an answer take."""

    process: int  # Python and its libraries, LiteRT's included
    graphs: Mapping[str, int]  # those that an answer may use
    weights: Mapping[str, int]  # what of them are mapped weights, which can be read again and again
    contexts: Mapping[int, Context]  # by tokens; (0: nothing) without a decoder
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
class MemoryPlan:
    budget: int
    contexts: tuple[int, ...]  # those that fit, ascending
    way: str  # one of `WAYS`
    phases: tuple[Phase, ...]
    peaks: dict[int, dict[str, int]]  # of every context of the bundle, in every way
    picture_pixels: int  # that may be held while a picture is decoded
    # Component -> bytes of its weights that each of its runs reads from storage, since they do not fit.
    streamed: dict[str, int] = field(default_factory=dict)

    @property
    def residency(self) -> Residency:
        return WAYS[self.way]

    @property
    def fullest(self) -> Phase:
        return _fullest(self.phases)

    @property
    def peak(self) -> int:
        return self.peaks[self.contexts[-1]][self.way]

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
    components = {VRC, DECODER, *(BRANCHES[branch] for branch in branches)}
    graphs = {name: cost for name, cost in footprint.graphs().items() if name in components}
    spec, decoder = manifest.vision, manifest.decoder
    token_bytes = np.dtype(np.float16).itemsize * decoder.hidden_size if spec and decoder else 0
    return Needs(
        process=process + footprint.libraries,
        graphs=graphs,
        weights={name: cost for name, cost in footprint.weights().items() if name in components},
        contexts={
            slots: Context(
                decoder.kv_bytes_per_token * slots, host_bytes(decoder, slots), token_bytes * slots
            )
            for slots in _contexts(decoder, context_tokens)
        }
        if decoder
        else {0: Context(0, 0, 0)},
        tile_tokens=token_bytes * spec.tokens(spec.tile_side) if spec else 0,
        picture=_scaled_picture(spec) if spec else 0,
    )


def _contexts(decoder: DecoderSpec, tokens: int | None) -> tuple[int, ...]:
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
    without = replace(need, graphs={n: cost - need.weights[n] for n, cost in need.graphs.items()})
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
    choices = {
        (context, way): _phases(need, context, WAYS[way])
        for context in sorted(need.contexts, reverse=True)
        for way in WAYS
    }
    peaks = {choice: math.ceil((1 + _MARGIN) * _fullest(found).bytes) for choice, found in choices.items()}
    chosen = next((choice for choice, peak in peaks.items() if peak <= budget), None)
    if chosen is None:
        least = min(peaks, key=lambda choice: peaks[choice])
        fullest = _fullest(choices[least])
        most = max(fullest.holds, key=lambda who: fullest.holds[who])
        raise ResourceError(
            f"a memory budget of {budget // 10**6:,} MB is too small: the least that this bundle can do "
            f"with is {_mb(peaks[least])} ({fullest.name}, where {most} takes {_mb(fullest.holds[most])})",
            f"Give {_mb(peaks[least])} or more, or convert for less: a smaller --context, fewer or smaller "
            "--tile-sides, a recipe with fewer bits.",
        )
    context, way = chosen
    room = budget - peaks[chosen]
    pixels = (need.picture + int(room / (1 + _MARGIN))) // _BYTES_PER_PIXEL
    return MemoryPlan(
        budget=budget,
        contexts=tuple(slots for slots in sorted(need.contexts) if slots <= context),
        way=way,
        phases=choices[chosen],
        peaks={slots: {name: peaks[slots, name] for name in WAYS} for slots in sorted(need.contexts)},
        picture_pixels=min(pixels, MAX_DECODED_PIXELS),
    )


def _fullest(phases: Sequence[Phase]) -> Phase:
    return max(phases, key=lambda phase: phase.bytes)


def _phases(need: Needs, context: int, residency: Residency) -> tuple[Phase, ...]:
    """Of an answer that is not the first: a graph is closed when one of another group is needed."""
    always = {"process": need.process}
    held = need.contexts[context]
    told = {"keys and values": held.keys_and_values, "inputs": held.host}

    def graphs(*components: str) -> dict[str, int]:
        """Those that are open while the fullest group with one of `components` is."""
        groups = [group for group in residency if group & {*components}]
        found = [{name: need.graphs[name] for name in sorted(group & need.graphs.keys())} for group in groups]
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
