"""Feeds the decoder graph: a prompt in chunks, then token by token.

The host makes everything that depends on positions: RoPE's cosines and sines, and the mask. Each signature
has its input arrays once; a step changes one column of a mask and never allocates one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rpi_runtime.backends.base import Array, Graph, Runner
from rpi_runtime.embedding import EmbeddingTable, PromptRows
from rpi_runtime.kv_cache import KVCache
from rpi_runtime.manifest import DecoderSpec
from rpi_runtime.prompt import Position

MASKED = -3e4  # added to a score that must not count: softmax makes it 0, and it fits float16

# What a call costs beside its tokens, in tokens: reading all weights. Measured with 0.6 B int8: 22 to 30 ms
# for one token, 130 to 250 ms for 128.
_CALL_COST_TOKENS = 20


@dataclass(frozen=True)
class Chunk:
    """One call of a prefill: `tokens` real ones in a signature of `size`, padding behind them."""

    size: int  # 1 is the signature `decode`
    tokens: int


@lru_cache(maxsize=64)
def plan_chunks(tokens: int, sizes: tuple[int, ...]) -> tuple[Chunk, ...]:
    """The cheapest way to feed `tokens` with prefill signatures of `sizes` and `decode`, largest chunk first.

    Only the last chunk is padded: 130 tokens in sizes 128, 32 and 8 become 128 and 2 of 8.
    """
    choices = sorted({1, *sizes})
    cost = [0.0] * (tokens + 1)
    last = [0] * (tokens + 1)
    for n in range(1, tokens + 1):
        cost[n], last[n] = min((cost[max(0, n - s)] + s + _CALL_COST_TOKENS, s) for s in choices)
    taken = []
    left = tokens
    while left > 0:
        taken.append(last[left])
        left -= last[left]
    chunks, left = [], tokens
    for size in sorted(taken, reverse=True):
        chunks.append(Chunk(size, min(size, left)))
        left -= size
    return tuple(chunks)


class Decoder:
    """The decoder graph with its KV cache, which is as small as what it holds lets it be. Not safe for two
    threads at a time.

    `contexts` and `sizes` restrict it to some of the slots and of the prefill sizes that `spec` lists;
    without any size a prompt is fed token by token.
    """

    def __init__(
        self,
        graph: Graph,
        spec: DecoderSpec,
        table: EmbeddingTable,
        *,
        contexts: Sequence[int] | None = None,
        sizes: Sequence[int] | None = None,
    ) -> None:
        self._contexts = tuple(spec.contexts if contexts is None else contexts)
        self._sizes = tuple(spec.prefill_tokens if sizes is None else sizes)
        if graph.copies_shared_inputs:
            self._contexts, self._sizes = where_each_copies(self._contexts, self._sizes)
        self.kv = KVCache(graph, spec, self._contexts[0])
        self._graph = graph
        self._spec = spec
        self.table = table
        self._cos, self._sin = rope_table(spec.context_tokens + 1, spec.head_dim, spec.rope_theta)
        self._inputs: dict[int, _ChunkInputs] = {}

    def let_go(self) -> None:
        """Before its graph is closed: the KV cache stays."""
        self.kv.shared.detach()
        self._inputs.clear()

    def use(self, graph: Graph) -> None:
        """Goes on with `graph`, the same file opened again."""
        self._graph = graph

    def prefill(self, rows: PromptRows, on_chunk: Callable[[int], None] = lambda tokens: None) -> Array:
        """Feeds all `rows` behind what the cache holds; logits [vocab] float32 of the last.

        `on_chunk` hears how many were fed after each chunk; what it raises ends the prefill, and the cache
        knows what it holds.
        """
        fed = 0
        self._fit(self.kv.tokens + len(rows.positions))
        fitting = self._spec.chunk_sizes(self.kv.slots)
        sizes = tuple(size for size in self._sizes if size in fitting)
        for chunk in plan_chunks(len(rows.positions) - 1, sizes):
            inputs = self._for_size(chunk.size)
            rows.write(fed, inputs.embeddings[0, : chunk.tokens])
            inputs.embeddings[0, chunk.tokens :] = 0
            self._call(inputs, rows.positions[fed : fed + chunk.tokens])
            fed += chunk.tokens
            on_chunk(fed)
        inputs = self._for_size(1)
        rows.write(fed, inputs.embeddings[0])
        logits = self._call(inputs, rows.positions[fed:])
        on_chunk(fed + 1)
        return logits

    def step(self, token_id: int) -> Array:
        """Feeds one token; logits [vocab] float32 of what follows it."""
        if self.kv.tokens == self.kv.slots:
            self._fit(self.kv.tokens + 1)
        inputs = self._for_size(1)
        inputs.embeddings[0] = self.table.rows((token_id,))
        return self._call(inputs, [token_id])

    def _call(self, inputs: _ChunkInputs, positions: list[Position]) -> Array:
        start = self.kv.tokens
        # A padded chunk may reach behind the context: its last angles are repeated, nobody reads the results.
        at = np.minimum(np.arange(start, start + inputs.size), self.kv.slots)
        inputs.cos[0, 0], inputs.sin[0, 0] = self._cos[at], self._sin[at]
        inputs.show_cache(start)
        outputs = inputs.runner.run(inputs.named)
        self.kv.append(outputs, positions)
        return outputs["logits"][0] if inputs.size == 1 else _NOTHING

    def _fit(self, tokens: int) -> None:
        """Gives the cache the fewest slots that `tokens` positions fit into."""
        slots = next((n for n in self._contexts if n >= tokens), None)
        if slots is None:
            raise ValueError(f"{tokens} tokens do not fit the {self._contexts[-1]} slots of the KV cache")
        if slots != self.kv.slots:
            self._inputs.clear()
            self.kv.resize(self._graph, slots)

    def _for_size(self, size: int) -> _ChunkInputs:
        """Made when a size is first used: on the Interpreter each signature costs memory of its own."""
        if size not in self._inputs:
            runner = self._graph.runner(self._spec.signature(size, self.kv.slots), self.kv.shared)
            self._inputs[size] = _ChunkInputs(runner, size, self.kv.slots, self._spec)
        return self._inputs[size]


def where_each_copies(
    contexts: Sequence[int], sizes: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """One context and one size of prefill of these: where each signature that was used holds a cache of its
    own for good."""
    return tuple(contexts[-1:]), tuple(sizes[len(sizes) // 2 :][:1])


def host_bytes(spec: DecoderSpec, slots: int, sizes: Sequence[int]) -> int:
    """What the inputs of `decode` and of prefills of `sizes` take here for a cache of `slots`: embeddings,
    angles, masks; and one row of logits."""
    per_row = spec.hidden_size + spec.head_dim + slots
    rows = sum((per_row + size) * size for size in (1, *sizes))
    angles = (spec.context_tokens + 1) * spec.head_dim
    return 4 * (rows + angles + spec.vocab_size)


_NOTHING = np.empty(0, np.float32)


class _ChunkInputs:
    """The input arrays of one signature, filled anew for each call."""

    def __init__(self, runner: Runner, size: int, slots: int, spec: DecoderSpec) -> None:
        self.runner = runner
        self.size = size
        self._slots = slots
        self._visible = 0
        self.embeddings = np.zeros((1, size, spec.hidden_size), np.float32)
        self.cos = np.empty((1, 1, size, spec.head_dim // 2), np.float32)
        self.sin = np.empty_like(self.cos)
        self.mask = np.full((1, 1, size, self._slots + size), MASKED, np.float32)
        # The new tokens see themselves and what is before them. Padding follows the real ones, so these never
        # see it; what it sees is of no consequence.
        self.mask[0, 0, :, self._slots :][np.tri(size, dtype=bool)] = 0
        self.named = {
            "embeddings": self.embeddings,
            "rope_cos": self.cos,
            "rope_sin": self.sin,
            "mask": self.mask,
        }

    def show_cache(self, tokens: int) -> None:
        """Unmasks the first `tokens` slots of the cache; touches only the columns that change."""
        self.mask[0, 0, :, self._visible : tokens] = 0
        self.mask[0, 0, :, tokens : self._visible] = MASKED
        self._visible = tokens


def rope_table(positions: int, head_dim: int, theta: float) -> tuple[Array, Array]:
    """Cosines and sines [positions, head_dim / 2] float32 of positions 0 to `positions` - 1.

    In float32 as in transformers' rotary embeddings: far into a context float64 would differ from it.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.float32(1) / np.float32(theta) ** exponents
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies
    return np.cos(angles), np.sin(angles)
