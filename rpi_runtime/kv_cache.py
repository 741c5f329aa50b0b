"""The decoder's keys and values: owned here, read by the graph where they lie, and known position by
position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rpi_runtime.backends.base import Array, Graph
from rpi_runtime.manifest import DecoderSpec
from rpi_runtime.prompt import Position


class KVCache:
    """Slots for `spec.context_tokens` positions, float32, layout [kv_heads, slots, head_dim] per layer.

    `held` names what is in the first slots. It grows only after every slice of a call is written, so that
    it is true even when a call was interrupted; what lies behind it is masked.
    """

    def __init__(self, graph: Graph, spec: DecoderSpec) -> None:
        self._names = [f"{part}_{layer}" for layer in range(spec.layers) for part in "kv"]
        shape = (spec.kv_heads, spec.context_tokens, spec.head_dim)
        self.shared = graph.shared({f"kv_{name}": shape for name in self._names})
        self.slots = spec.context_tokens
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
        for name in self._names:
            new = outputs[name][0, :, : len(positions)]
            self.shared.write(f"kv_{name}", (slice(None), slice(start, end)), new)
        self.held.extend(positions)

    def keep(self, count: int) -> None:
        """Forgets everything behind the first `count` positions."""
        del self.held[count:]

    def wipe(self) -> None:
        """Forgets everything and zeroes the slots: not even a mask hides a NaN (0 x NaN is NaN)."""
        self.held.clear()
        for name in self._names:
            self.shared.write(f"kv_{name}", ..., np.zeros((), np.float32))
