"""The decoder's keys and values: owned here, read by the graph where they lie, and known position by
position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rpi_runtime.backends.base import Array, Graph
from rpi_runtime.manifest import DecoderSpec
from rpi_runtime.prompt import Position

_LARGEST = 127  # of int8, both ways
# New slices are quantised together up to this size: for one token the calls cost more than the numbers.
_TOGETHER_BYTES = 1 << 18


class KVCache:
    """`slots` positions of `spec.kv_dtype`, layout [kv_heads, slots, head_dim] per layer. int8 are multiples
    of a scale that each key and each value of a head has of its own.

    `held` names what is in the first slots. It grows only after every slice of a call is written, so that
    it is true even when a call was interrupted; what lies behind it is masked.
    """

    def __init__(self, graph: Graph, spec: DecoderSpec, slots: int) -> None:
        self._names = [f"{part}_{layer}" for layer in range(spec.layers) for part in "kv"]
        self._scaled = spec.kv_dtype == "int8"
        self._rows = (spec.kv_heads, spec.head_dim)
        self.shared = graph.shared(self._shapes(slots))
        self.slots = slots
        self.held: list[Position] = []

    @property
    def tokens(self) -> int:
        return len(self.held)

    def append(self, outputs: Mapping[str, Array], positions: Sequence[Position]) -> None:
        """Writes the first `len(positions)` new slices k_<i>, v_<i> [1, kv_heads, T, head_dim] of a call.

        Raises ValueError when they do not fit.
        """
        start, end = self.tokens, self.tokens + len(positions)
        if end > self.slots:
            raise ValueError(f"{end} positions do not fit the {self.slots} slots of the KV cache")
        where = (slice(None), slice(start, end))
        new = {name: outputs[name][0, :, : len(positions)] for name in self._names}
        if self._scaled:
            for name, values, scales in _quantized(new):
                self.shared.write(f"kv_{name}", where, values)
                self.shared.write(f"kv_{name}_scale", where, scales)
        else:
            for name, values in new.items():
                self.shared.write(f"kv_{name}", where, values)
        self.held.extend(positions)

    def resize(self, graph: Graph, slots: int) -> None:
        """Gets `slots`, no fewer than are held, and keeps what it holds. Runners of `graph` that read it must
        be asked for anew. Old and new arrays are there together one by one only."""
        old, self.slots = self.shared, slots
        graph.forget(old)
        self.shared = graph.shared(self._shapes(slots))
        held = (slice(None), slice(0, self.tokens))
        for name in self.shared.shapes:
            self.shared.write(name, held, old.take(name)[held])

    def keep(self, count: int) -> None:
        """Forgets everything behind the first `count` positions."""
        del self.held[count:]

    def wipe(self) -> None:
        """Forgets everything and zeroes the slots: not even a mask hides a NaN (0 x NaN is NaN)."""
        self.held.clear()
        for name in self.shared.shapes:
            self.shared.write(name, ..., np.zeros((), np.int8))

    def read(self, name: str) -> Array:
        """k_<i> or v_<i> as the graph takes them: [kv_heads, slots, head_dim] float32, a copy."""
        values = self.shared.read(f"kv_{name}").astype(np.float32)
        if self._scaled:
            values *= self.shared.read(f"kv_{name}_scale")[..., None]
        return values

    def _shapes(self, slots: int) -> dict[str, tuple[int, ...]]:
        heads, width = self._rows
        shapes: dict[str, tuple[int, ...]] = {f"kv_{name}": (heads, slots, width) for name in self._names}
        if self._scaled:
            shapes |= {f"kv_{name}_scale": (heads, slots) for name in self._names}
        return shapes


def _quantized(new: Mapping[str, Array]) -> Iterator[tuple[str, Array, Array]]:
    """Name, multiples [kv_heads, T, head_dim] int8 and scales [kv_heads, T] float32 of each of `new`."""
    names = list(new)
    count = max(1, _TOGETHER_BYTES // max(1, new[names[0]].nbytes))
    for first in range(0, len(names), count):
        group = names[first : first + count]
        values = np.stack([new[name] for name in group])
        scales = np.maximum(values.max(-1), -values.min(-1)) / np.float32(_LARGEST)
        # A row of zeros has the scale 0; anything times it is right.
        values /= np.where(scales == 0, np.float32(1), scales)[..., None]
        with np.errstate(invalid="ignore"):  # NaN: its scale is NaN, too, and tells
            rounded = np.rint(values, out=values).astype(np.int8)
        yield from zip(group, rounded, scales, strict=True)
