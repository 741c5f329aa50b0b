"""How an answer fits a memory budget: which graphs are open together, and how large a picture may be.

A phase holds what is resident while it runs: the process with its libraries, the open graphs, keys and
values, visual tokens, the picture. The peak of an answer is that of its fullest phase. Ways are tried in the
order of preference (fastest first), all of which give the same answer; the first that fits is taken. What is
left then bounds the pixels of a picture that cannot be decoded at a smaller scale.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rpi_runtime.decoder import host_bytes
from rpi_runtime.encoder import BRANCHES
from rpi_runtime.errors import ResourceError, UsageError
from rpi_runtime.footprint import Footprint
from rpi_runtime.graphs import ONE_BY_ONE, TOGETHER, Residency
from rpi_runtime.images import MAX_DECODED_PIXELS
from rpi_runtime.kernel import memory, memory_available
from rpi_runtime.manifest import DECODER, VISION_BASE, VISION_LARGE, VRC, Manifest, VisionSpec

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
_AUTO_SHARE = 0.9  # of what is free, with "auto": others want to live, too


def parse_budget(text: str) -> int:
    """ "512MB" (a million bytes each), "1.5GB", "512MiB" in bytes; "auto" is what this process holds already
    and nine tenths of what the machine, or its container, has left. Raises `UsageError`."""
    if text.strip().lower() == "auto":
        free, _ = memory_available()
        return memory().resident_bytes + int(_AUTO_SHARE * free)
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2].upper() not in _UNITS:
        raise UsageError(f"memory {text!r} is no size", 'Write it like "512MB", "1.5GB", "512MiB" or "auto".')
    return int(float(found[1]) * _UNITS[found[2].upper()])


@dataclass(frozen=True)
class Needs:
    """Bytes that parts of an answer take."""

    process: int  # Python and its libraries, LiteRT's included
    graphs: Mapping[str, int]  # those that an answer may use
    keys_and_values: int  # of a full context
    visual_tokens: int  # of one picture
    picture: int  # the largest that is decoded at a scale, as it is decoded; 0 without vision
    host: int  # inputs and outputs of the decoder


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
    way: str  # one of `WAYS`
    phases: tuple[Phase, ...]
    peaks: dict[str, int]  # of every way
    picture_pixels: int  # that may be held while a picture is decoded

    @property
    def residency(self) -> Residency:
        return WAYS[self.way]

    @property
    def fullest(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.bytes)

    @property
    def peak(self) -> int:
        return self.peaks[self.way]

    @property
    def head_room(self) -> int:
        return self.budget - self.peak


def needs(
    manifest: Manifest, footprint: Footprint, process: int, branches: Sequence[str] = tuple(BRANCHES)
) -> Needs:
    """What answers of a bundle take, when this process holds `process` bytes without any graph."""
    components = {VRC, DECODER, *(BRANCHES[branch] for branch in branches)}
    graphs = {name: cost for name, cost in footprint.graphs().items() if name in components}
    spec, decoder = manifest.vision, manifest.decoder
    tokens = spec.tokens(spec.tile_side) * (spec.max_tiles + spec.thumbnail) if spec else 0
    return Needs(
        process=process + footprint.libraries,
        graphs=graphs,
        keys_and_values=decoder.kv_bytes_per_token * decoder.context_tokens if decoder else 0,
        visual_tokens=tokens * decoder.hidden_size * 2 if decoder else 0,
        picture=_scaled_picture(spec) if spec else 0,
        host=host_bytes(decoder) if decoder else 0,
    )


def _scaled_picture(spec: VisionSpec) -> int:
    return _WASTE * spec.max_tiles * spec.tile_side**2 * _BYTES_PER_PIXEL


def make_plan(budget: int, need: Needs) -> MemoryPlan:
    """The first of `WAYS` that fits; raises `ResourceError` with the smallest budget that would do."""
    phases = {way: _phases(need, residency) for way, residency in WAYS.items()}
    peaks = {
        way: math.ceil((1 + _MARGIN) * max(phase.bytes for phase in found)) for way, found in phases.items()
    }
    fits = [way for way in WAYS if peaks[way] <= budget]
    if not fits:
        least = min(peaks, key=lambda way: peaks[way])
        fullest = max(phases[least], key=lambda phase: phase.bytes)
        most = max(fullest.holds, key=lambda who: fullest.holds[who])
        raise ResourceError(
            f"a memory budget of {budget // 10**6:,} MB is too small: the least that this bundle can do "
            f"with is {_mb(peaks[least])} ({fullest.name}, where {most} takes {_mb(fullest.holds[most])})",
            f"Give {_mb(peaks[least])} or more, or convert for less: a smaller --context, fewer or smaller "
            "--tile-sides, a recipe with fewer bits.",
        )
    way = fits[0]
    room = budget - peaks[way]
    pixels = (need.picture + int(room / (1 + _MARGIN))) // _BYTES_PER_PIXEL
    return MemoryPlan(budget, way, phases[way], peaks, min(pixels, MAX_DECODED_PIXELS))


def _phases(need: Needs, residency: Residency) -> tuple[Phase, ...]:
    """Of an answer that is not the first: a graph is closed when one of another group is needed."""
    always = {"process": need.process}
    told = {"keys and values": need.keys_and_values, "inputs": need.host}

    def graphs(*components: str) -> dict[str, int]:
        """Those that are open while the fullest group with one of `components` is."""
        groups = [group for group in residency if group & {*components}]
        held = [{name: need.graphs[name] for name in sorted(group & need.graphs.keys())} for group in groups]
        return max(held, key=lambda one: sum(one.values()), default={})

    found = []
    if need.picture:
        picture, tokens = {"picture": need.picture}, {"visual tokens": need.visual_tokens}
        branches = [name for name in (VISION_BASE, VISION_LARGE) if name in need.graphs]
        found += [
            Phase("open picture", {**always, **graphs(DECODER), **told, **picture}),
            Phase("route", {**always, **graphs(VRC), **told, **picture}),
            Phase("encode", {**always, **graphs(*branches), **told, **picture, **tokens}),
            Phase("prefill", {**always, **graphs(DECODER), **told, **tokens}),
        ]
    else:
        found.append(Phase("prefill", {**always, **graphs(DECODER), **told}))
    return (*found, Phase("decode", {**always, **graphs(DECODER), **told}))


def _mb(count: int) -> str:
    return f"{math.ceil(count / 1e6):,} MB"
