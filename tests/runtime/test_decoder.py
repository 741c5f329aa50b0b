"""Prompts fed in chunks and tokens fed one by one give PyTorch's logits, on every backend."""

from __future__ import annotations

import itertools
import os
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from hypervl.decoder import attention_mask
from hypervl.decoder import rope_table as torch_rope_table
from hypervl.model import HyperVL
from rpi_runtime.backends.base import Array
from rpi_runtime.backends.select import open_graph
from rpi_runtime.bundle import Bundle
from rpi_runtime.decoder import Chunk, Decoder, plan_chunks, rope_table
from rpi_runtime.embedding import EmbeddingTable, PromptRows
from rpi_runtime.errors import BundleError
from rpi_runtime.manifest import Embedding, File
from rpi_runtime.prompt import TokenRun, VisualKey, VisualRun

SIZES = (8, 32, 128)
KEY = VisualKey("digest", "base", 1, 1, 0, 64)


class TestChunks:
    def test_a_prompt_of_130_tokens_pads_only_its_last_chunk(self) -> None:
        assert plan_chunks(130, SIZES) == (Chunk(128, 128), Chunk(8, 2))

    def test_one_padded_call_is_cheaper_than_many_small_ones(self) -> None:
        assert plan_chunks(120, SIZES) == (Chunk(128, 120),)

    def test_two_small_ones_are_cheaper_than_a_large_one_mostly_of_padding(self) -> None:
        assert plan_chunks(40, SIZES) == (Chunk(32, 32), Chunk(8, 8))

    def test_a_single_token_goes_through_decode(self) -> None:
        assert plan_chunks(1, SIZES) == (Chunk(1, 1),)
        assert plan_chunks(3, ()) == (Chunk(1, 1),) * 3

    def test_nothing_needs_no_call(self) -> None:
        assert plan_chunks(0, SIZES) == ()

    @given(st.integers(0, 700), st.sets(st.integers(2, 256), max_size=4))
    def test_every_token_is_fed_once_and_only_the_last_chunk_is_padded(
        self, tokens: int, sizes: set[int]
    ) -> None:
        chunks = plan_chunks(tokens, tuple(sorted(sizes)))
        assert sum(chunk.tokens for chunk in chunks) == tokens
        assert all(chunk.size in {1, *sizes} for chunk in chunks)
        assert all(chunk.tokens == chunk.size for chunk in chunks[:-1])
        assert all(1 <= chunk.tokens <= chunk.size for chunk in chunks)

    @given(st.integers(1, 24), st.sets(st.integers(2, 12), min_size=1, max_size=2))
    def test_no_other_combination_is_cheaper(self, tokens: int, sizes: set[int]) -> None:
        choices = [1, *sizes]
        enough = (
            counts
            for counts in itertools.product(*(range(-(-tokens // size) + 1) for size in choices))
            if sum(count * size for count, size in zip(counts, choices, strict=True)) >= tokens
        )
        best = min(
            sum(count * (size + 20) for count, size in zip(counts, choices, strict=True)) for counts in enough
        )
        assert sum(chunk.size + 20 for chunk in plan_chunks(tokens, tuple(sorted(sizes)))) == best


@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_the_angles_are_those_of_transformers(theta: float) -> None:
    rope = {"rope_type": "default", "rope_theta": theta}
    theirs = Qwen3RotaryEmbedding(Qwen3Config(head_dim=128, rope_parameters=rope))
    cos, sin = theirs(torch.zeros(1), torch.arange(4096)[None])
    ours = rope_table(4096, 128, theta)
    # One unit in the last place of an angle of 4096 is 5e-4.
    for expected, found in zip((cos, sin), ours, strict=True):
        np.testing.assert_allclose(found, expected[0, :, :64].numpy(), atol=1e-3)
        assert found.dtype == np.float32


class Both:
    """The graph of a bundle, and PyTorch's decoder with the same weights."""

    def __init__(self, bundle: Path, model: HyperVL, backend: str) -> None:
        opened = Bundle.open(bundle)
        manifest = opened.manifest
        assert manifest.decoder is not None
        assert manifest.embedding is not None
        self.table = EmbeddingTable(opened.file(manifest.embedding.file), manifest.embedding)
        self.graph = open_graph(opened.path("decoder"), backend=backend)
        self.spec = manifest.decoder
        self.decoder = Decoder(self.graph, self.spec, self.table)
        self._torch = model.decoder

    def rows(self, ids: Sequence[int], visual: Array | None = None) -> PromptRows:
        if visual is None:
            return PromptRows([TokenRun(tuple(ids))], self.table, _none)
        runs = [
            TokenRun(tuple(ids[:3])),
            VisualRun(0, 0, 64, 0, len(visual), KEY),
            TokenRun(tuple(ids[3:])),
        ]
        return PromptRows(runs, self.table, lambda run: visual)

    @torch.no_grad()
    def expected(self, ids: Sequence[int], visual: Array | None = None) -> Array:
        """Logits of the last position from the whole sequence at once."""
        rows = [self.table.rows(ids)]
        if visual is not None:
            rows = [rows[0][:3], visual.astype(np.float32), rows[0][3:]]
        embeddings = torch.from_numpy(np.concatenate(rows))[None]
        count = embeddings.shape[1]
        logits, _ = self._torch(
            embeddings,
            *torch_rope_table(torch.arange(count), self.spec.head_dim, self.spec.rope_theta),
            attention_mask(count),
            self._torch.empty_kv(),
        )
        assert logits is not None
        return logits[0, -1].numpy()


def _none(run: VisualRun) -> Array:
    raise AssertionError("there are no visual tokens")


def ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, count).tolist()


def same(found: Array, expected: Array) -> None:
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max() + 1e-4)


@pytest.fixture(scope="module", params=["compiled", "interpreter"])
def both(nano_bundle: Path, routing_model: HyperVL, request: pytest.FixtureRequest) -> Iterator[Both]:
    pair = Both(nano_bundle, routing_model, request.param)
    yield pair
    pair.graph.close()


@pytest.fixture(autouse=True)
def _fresh(request: pytest.FixtureRequest) -> None:
    """Nothing is held at the start; what earlier tests left in the slots stays there, masked."""
    if "both" in request.fixturenames:
        request.getfixturevalue("both").decoder.kv.keep(0)


class TestPrefill:
    @pytest.mark.parametrize("count", [1, 2, 3, 8, 9, 10, 33, 41, 100])
    def test_any_length_gives_the_logits_of_the_whole_sequence(self, both: Both, count: int) -> None:
        prompt = ids(count)
        same(both.decoder.prefill(both.rows(prompt)), both.expected(prompt))
        assert both.decoder.kv.held == prompt

    def test_visual_tokens_stand_among_the_text(self, both: Both) -> None:
        visual = np.random.default_rng(1).standard_normal((36, both.spec.hidden_size)).astype(np.float16)
        prompt = ids(10)
        logits = both.decoder.prefill(both.rows(prompt, visual))
        same(logits, both.expected(prompt, visual))
        held = both.decoder.kv.held
        assert held == [*prompt[:3], *((KEY, i) for i in range(36)), *prompt[3:]]

    def test_chunks_are_told_as_they_are_fed(self, both: Both) -> None:
        fed: list[int] = []
        both.decoder.prefill(both.rows(ids(43)), fed.append)
        assert fed == {"compiled": [32, 42, 43], "interpreter": [32, 42, 43]}[both.graph.choice.name]

    def test_what_was_kept_need_not_be_fed_again(self, both: Both) -> None:
        first, second = ids(50), ids(20, seed=1)
        both.decoder.prefill(both.rows(first))
        both.decoder.kv.keep(30)
        same(both.decoder.prefill(both.rows(second)), both.expected(first[:30] + second))

    def test_an_interruption_leaves_a_cache_that_knows_what_it_holds(self, both: Both) -> None:
        prompt = ids(60)

        class Stop(Exception):
            pass

        def stop(fed: int) -> None:
            raise Stop

        with pytest.raises(Stop):
            both.decoder.prefill(both.rows(prompt), stop)
        held = both.decoder.kv.held
        assert 0 < len(held) < 60
        assert held == prompt[: len(held)]
        same(both.decoder.prefill(both.rows(prompt[len(held) :])), both.expected(prompt))

    def test_a_prompt_that_fills_the_context_to_the_last_slot_is_right(self, both: Both) -> None:
        prompt = ids(both.spec.context_tokens)
        same(both.decoder.prefill(both.rows(prompt)), both.expected(prompt))
        with pytest.raises(ValueError, match="513 tokens do not fit the 512 slots"):
            both.decoder.step(1)


class TestSteps:
    def test_token_by_token_gives_the_logits_of_the_whole_sequence(self, both: Both) -> None:
        sequence = ids(24)
        found = both.decoder.prefill(both.rows(sequence[:12]))
        for count in range(12, 24):
            same(found, both.expected(sequence[:count]))
            found = both.decoder.step(sequence[count])
        same(found, both.expected(sequence))

    def test_a_step_allocates_no_mask_and_no_cache(self, both: Both) -> None:
        both.decoder.prefill(both.rows(ids(40)))
        both.decoder.step(1)
        tracemalloc.start()
        for token in range(20):
            both.decoder.step(token)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # Logits and new slices are 3 kB; one mask of this context would be 66 kB, a cache 1 MB.
        assert peak < 32 << 10


class TestEmbeddings:
    def table(self, folder: Path, dtype: str, rows: Array) -> tuple[EmbeddingTable, Array]:
        path = folder / "embedding"
        if dtype == "int8":
            scales = np.abs(rows).max(axis=1) / 127
            stored = np.rint(rows / scales[:, None]).astype(np.int8)
            columns = np.float32(2) ** np.arange(rows.shape[1])
            np.concatenate([scales, columns]).astype("<f4").tofile(folder / "scales")
            expected = stored * scales.astype(np.float32)[:, None] * columns
        else:
            stored = rows.astype(f"<{np.dtype(dtype).str[1:]}")
            expected = stored.astype(np.float32)
        path.write_bytes(b"before it" + stored.tobytes() + b"behind it")
        spec = Embedding(File("embedding", "", path.stat().st_size), dtype, *rows.shape, len("before it"))
        return EmbeddingTable(path, spec, folder / "scales" if dtype == "int8" else None), expected

    @pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
    def test_rows_are_read_from_the_file_as_float32(self, tmp_path: Path, dtype: str) -> None:
        rows = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
        table, expected = self.table(tmp_path, dtype, rows)
        found = table.rows([6, 0, 3, 3])
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected[[6, 0, 3, 3]])
        assert table.rows([]).shape == (0, 5)

    @pytest.mark.parametrize("token", [-1, 7])
    def test_an_id_without_a_row_is_refused(self, tmp_path: Path, token: int) -> None:
        table, _ = self.table(tmp_path, "float16", np.ones((7, 5), np.float32))
        with pytest.raises(BundleError, match="do not fit the 7 embeddings"):
            table.rows([0, token])

    def test_a_file_that_was_cut_while_it_is_open_is_told(self, tmp_path: Path) -> None:
        table, expected = self.table(tmp_path, "float16", np.ones((7, 5), np.float32))
        os.truncate(tmp_path / "embedding", len("before it") + 6 * 10)
        np.testing.assert_array_equal(table.rows([5]), expected[[5]])
        with pytest.raises(BundleError, match="was cut since it was opened"):
            table.rows([5, 6])

    def test_a_file_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        spec = Embedding(File("embedding", "", 70), "float16", 7, 5)
        with pytest.raises(BundleError, match="absent cannot be read: No such file"):
            EmbeddingTable(tmp_path / "absent", spec)

    @given(st.integers(0, 19), st.integers(1, 20))
    def test_a_stretch_of_a_prompt_is_the_same_wherever_it_is_cut(self, start: int, count: int) -> None:
        rows = _prompt_rows()
        whole = np.empty((20, 4), np.float32)
        rows.write(0, whole)
        part = np.empty((min(count, 20 - start), 4), np.float32)
        rows.write(start, part)
        np.testing.assert_array_equal(part, whole[start : start + count])
        assert len(rows.positions) == 20


class _Table(EmbeddingTable):
    """Row i is filled with i."""

    def __init__(self) -> None:
        self.columns = 4

    def rows(self, ids: Sequence[int]) -> Array:
        return np.repeat(np.asarray(ids, np.float32)[:, None], 4, axis=1)


def _prompt_rows() -> PromptRows:
    visual = np.full((9, 4), 0.5) + np.arange(9)[:, None]
    runs = [TokenRun(tuple(range(6))), VisualRun(0, 0, 64, 2, 7, KEY), TokenRun((9,)), TokenRun((3,) * 6)]
    return PromptRows(runs, _Table(), lambda run: visual)
