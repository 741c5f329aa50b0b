"""Batches of pictures with several questions each, laid out as the runtime lays out a prompt.

All questions of a picture stand in one sequence behind its visual tokens: [picture][question, answer]
[question, answer]... Each sees the picture and itself, at the positions that it would have alone, so one
encoding of a picture teaches as often as it has questions.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from hypervl.training.panel_data import LEVELS
from hypervl.training.targets import FIELDS, IGNORE, Cells, DenseTargets, showing, token_rows
from hypervl.training.tile_bytes import cut_bytes
from rpi_runtime.images import open_image
from rpi_runtime.manifest import ImageTokens, VisionSpec
from rpi_runtime.prompt import ImagePlan, Message, Run, TokenRun, layout, tokenise
from rpi_runtime.tiling import plan_grid, tile_picture, whole_picture
from rpi_runtime.tokenizer import TextCodec
from vqa.panels.panel import Panel, make_panel, panel_size
from vqa.panels.questions import VALUE_TYPES, Asked, ask

_PANELS_PER_BATCH = 1000
# Grids of one batch have about the same number of tiles, so that little is padding: fewest, most, how often.
_CLASSES = ((1, 1, 0.3), (2, 4, 0.35), (5, 20, 0.35))
_EASIER_SHARE = 0.4
FULL, FIXED, MIXED = "full", "fixed", "mixed"
_ROUTED = ((FULL, 0.4), (FIXED, 0.2), (MIXED, 0.4))


@dataclass(frozen=True)
class AnswerBatch:
    """Arrays [B, T]; T is the longest sequence, and what lies behind a shorter one is padding."""

    tiles: tuple[np.ndarray, ...]  # uint8 [n, side, side, 3], one array per side
    dense: tuple[DenseTargets, ...]  # of each of `tiles`
    ids: np.ndarray  # int64 token ids, 0 where a visual token or padding stands
    visual: np.ndarray  # int64 row of the visual tokens of all `tiles`, in their order; -1 elsewhere
    segment: np.ndarray  # int64: 0 the picture, 1... its questions, -1 padding
    position: np.ndarray  # int64
    target: np.ndarray  # int64: the next token where it belongs to an answer, else IGNORE
    questions: tuple[tuple[Asked, ...], ...]  # of each picture; question i is segment i + 1
    points: np.ndarray  # int64 [n, 3]: row, segment of a question, and where a token shows what it asks for
    facts: np.ndarray  # int16 [n, fields] what is seen there (`DenseTargets.tokens`)


@dataclass(frozen=True)
class AnswerSource:
    spec: VisionSpec
    tokenizer: Path  # folder of a checkpoint, whose tokenizer and template are used
    image_tokens: ImageTokens
    cells: Cells
    tiles: int = 5  # per batch, about, in pixels of full ones
    questions: int = 24  # per picture, at most
    split: str = "train"
    seed: int = 0

    def build(self, number: int, level: int) -> AnswerBatch:
        chance = random.Random(f"answers:{self.split}:{self.seed}:{number}")
        fewest, most, _ = chance.choices(_CLASSES, [share for *_, share in _CLASSES])[0]
        samples: list[_Sample] = []
        pixels, panel_number = 0, number * _PANELS_PER_BATCH
        while pixels < self.tiles * self.spec.tile_side**2:
            # Some easier ones at every level: an answer is copied from little before it is from much.
            easier = chance.random() < _EASIER_SHARE
            difficulty, where = LEVELS[chance.randint(0, level) if easier else level], panel_number
            panel_number += 1
            size = panel_size(self.split, where, difficulty, self.seed)
            count = len(plan_grid(*size, self.spec).tiles)
            # Every hundredth is taken as it is: a level may have no picture of this class.
            if not fewest <= count <= most and panel_number % 100:
                continue
            panel = make_panel(self.split, where, difficulty, self.seed)
            asked = ask(panel, self.questions)
            if asked:
                samples.append(self._sample(chance, panel, asked))
                pixels += sum(tile.shape[0] ** 2 for tile in samples[-1].tiles)
        return _stack(samples, self.spec)

    def _sample(self, chance: random.Random, panel: Panel, asked: Sequence[Asked]) -> _Sample:
        codec = _codec(self.tokenizer)
        picture = open_image(panel.image)
        grid = tile_picture(picture, self.spec)
        sides = self._sides(chance, len(grid.tiles))
        plan = ImagePlan("", "", grid.columns, grid.rows, sides, grid.tiles[-1].is_thumbnail)
        pixels = [cut_bytes(picture, tile, side) for tile, side in zip(grid.tiles, sides, strict=True)]
        shown = grid.tiles if len(grid.tiles) > 1 else (whole_picture(*picture.size),)
        dense = [
            DenseTargets.of_tile(panel.elements, tile, side, self.cells)
            for tile, side in zip(shown, sides, strict=True)
        ]
        prefix: list[int] = []  # token ids; -1 - n for visual token n of the picture
        blocks: list[tuple[list[int], list[int]]] = []
        for one in asked:
            items = tokenise(codec, [Message("user", one.text, images=1)])
            flat = _flat(
                layout(items, (plan,), codec, self.image_tokens, self.spec.tokens).runs, sides, self.spec
            )
            last_visual = max(i for i, item in enumerate(flat) if item < 0)
            end = last_visual + 1 + bool(self.image_tokens.image_end)
            prefix = flat[:end]
            blocks.append((flat[end:], [*codec.encode(one.answer, continues=True), codec.eos_token_ids[0]]))
        return _Sample(prefix, blocks, pixels, dense, tuple(asked))

    def _sides(self, chance: random.Random, tiles: int) -> tuple[int, ...]:
        """How the picture is routed: the model must answer whatever the VRC decides."""
        sides = self.spec.tile_sides
        kind = chance.choices([k for k, _ in _ROUTED], [w for _, w in _ROUTED])[0]
        if kind == FULL:
            return (sides[0],) * tiles
        if kind == FIXED:
            return (chance.choice(sides),) * tiles
        return tuple(chance.choice(sides) for _ in range(tiles))


@dataclass(frozen=True)
class _Sample:
    prefix: list[int]
    blocks: list[tuple[list[int], list[int]]]  # question, answer
    tiles: list[np.ndarray]
    dense: list[DenseTargets]  # of each of `tiles`
    asked: tuple[Asked, ...]

    @property
    def tokens(self) -> int:
        return len(self.prefix) + sum(len(q) + len(a) - 1 for q, a in self.blocks)


def _flat(runs: Sequence[Run], sides: Sequence[int], spec: VisionSpec) -> list[int]:
    """Token ids in order; visual token n of the picture is -1 - n."""
    starts = np.cumsum([0, *(spec.tokens(side) for side in sides)])
    flat: list[int] = []
    for run in runs:
        if isinstance(run, TokenRun):
            flat += run.ids
        else:
            first = int(starts[run.tile]) + run.start
            flat += [-1 - n for n in range(first, first + run.tokens)]
    return flat


@lru_cache(maxsize=2)
def _codec(folder: Path) -> TextCodec:
    return TextCodec.from_checkpoint(folder)


def _stack(samples: Sequence[_Sample], spec: VisionSpec) -> AnswerBatch:
    length = max(sample.tokens for sample in samples)
    shape = (len(samples), length)
    ids, position = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    visual, segment = np.full(shape, -1, np.int64), np.full(shape, -1, np.int64)
    target = np.full(shape, IGNORE, np.int64)
    by_side: dict[int, list[np.ndarray]] = {}
    dense: dict[int, list[DenseTargets]] = {}
    owners: dict[int, list[tuple[int, int]]] = {}  # side -> (sample, first visual token of the tile)
    for row, sample in enumerate(samples):
        first = 0
        for tile, targets in zip(sample.tiles, sample.dense, strict=True):
            side = tile.shape[0]
            by_side.setdefault(side, []).append(tile)
            dense.setdefault(side, []).append(targets)
            owners.setdefault(side, []).append((row, first))
            first += spec.tokens(side)
    rows: dict[tuple[int, int], int] = {}
    total = 0
    for side in by_side:
        for row, first in owners[side]:
            for n in range(spec.tokens(side)):
                rows[row, first + n] = total
                total += 1
    for row, sample in enumerate(samples):
        at = len(sample.prefix)
        for i, item in enumerate(sample.prefix):
            if item < 0:
                visual[row, i] = rows[row, -1 - item]
            else:
                ids[row, i] = item
        segment[row, :at], position[row, :at] = 0, np.arange(at)
        for number, (question, answer) in enumerate(sample.blocks, 1):
            block = question + answer[:-1]
            end = at + len(block)
            ids[row, at:end], segment[row, at:end] = block, number
            position[row, at:end] = len(sample.prefix) + np.arange(len(block))
            target[row, at + len(question) - 1 : end] = answer
            at = end
    pointed = [point for row, sample in enumerate(samples) for point in _points(row, sample)]
    return AnswerBatch(
        tuple(np.stack(tiles) for tiles in by_side.values()),
        tuple(DenseTargets.stack(parts) for parts in dense.values()),
        ids,
        visual,
        segment,
        position,
        target,
        tuple(sample.asked for sample in samples),
        np.array([at for at, _ in pointed], np.int64).reshape(-1, 3),
        np.array([fact for _, fact in pointed], np.int16).reshape(-1, len(FIELDS)),
    )


def _points(row: int, sample: _Sample) -> Iterator[tuple[tuple[int, int, int], np.ndarray]]:
    """(row, segment, position) of each visual token that shows what a question asks for, and its facts."""
    shown = token_rows(sample.dense)
    position = {-1 - item: i for i, item in enumerate(sample.prefix) if item < 0}
    for number, asked in enumerate(sample.asked, 1):
        for subject in asked.subjects:
            for token in showing(shown, subject, asked.type in VALUE_TYPES):
                yield (row, number, position[token]), shown[token]
