"""Batches for the decoder alone: pictures that the branch, which rests, has looked at once.

Encoding costs as much as decoding. What a resting branch makes of a picture never changes, so it is kept in
files, and the decoder goes through them several times. At first most visual tokens are left out: to find one
thing among a few dozen is learned sooner than among hundreds, and takes less time.
"""

from __future__ import annotations

import dataclasses
import json
import random
import zipfile
import zlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hypervl.training.answer_data import AnswerBatch, AnswerSource
from hypervl.training.answers import visual_tokens
from hypervl.training.feed import AHEAD, Feed
from hypervl.training.targets import FIELDS, IGNORE, token_rows
from hypervl.training.together import threads
from hypervl.vision import VisionBranch
from rpi_runtime.errors import EdgeError
from vqa.panels.questions import Asked

# Until this share of the training, this share of the background's tokens is kept.
KEPT = ((0.6, 0.12), (0.85, 0.4), (1.0, 1.0))
_ELEMENT_RATE = 2.5  # tokens of elements are kept so much more often; the middle of one always is
_BACKGROUND, _ELEMENT, _MIDDLE = range(3)
_FIELD = {field: i for i, field in enumerate(FIELDS)}
_FILL = {"ids": 0, "visual": -1, "segment": -1, "position": 0, "target": IGNORE}  # of padding


@dataclass(frozen=True)
class LookedAt:
    batch: AnswerBatch  # without tiles and dense targets
    tokens: np.ndarray  # [visual tokens, hidden] float16
    kinds: np.ndarray  # [visual tokens] uint8: background, an element, the middle of one

    @classmethod
    def of(cls, branch: VisionBranch, batch: AnswerBatch, device: torch.device) -> LookedAt:
        with torch.no_grad():
            visual = visual_tokens(branch, batch, device).half().cpu().numpy()
        shown = token_rows(batch.dense)
        kinds = np.where(shown[:, _FIELD["kind"]] > 0, _ELEMENT, _BACKGROUND)
        kinds[shown[:, _FIELD["middle"]] == 1] = _MIDDLE
        return cls(replace(batch, tiles=(), dense=()), visual, kinds.astype(np.uint8))

    def save(self, file: Path) -> None:
        arrays = {name: getattr(self.batch, name) for name in (*_FILL, "points", "facts")}
        questions = [[dataclasses.asdict(asked) for asked in row] for row in self.batch.questions]
        partial = file.with_suffix(".partial")
        with partial.open("wb") as opened:
            text = np.array(json.dumps(questions))
            np.savez(opened, tokens=self.tokens, kinds=self.kinds, questions=text, **arrays)
        partial.replace(file)

    @classmethod
    def load(cls, file: Path) -> LookedAt:
        """Raises `EdgeError` for a file that is gone or damaged."""
        try:
            with np.load(file) as stored:
                arrays = {name: stored[name] for name in (*_FILL, "points", "facts")}
                questions = tuple(
                    tuple(Asked(**{**asked, "subjects": tuple(asked["subjects"])}) for asked in row)
                    for row in json.loads(str(stored["questions"]))
                )
                batch = AnswerBatch(tiles=(), dense=(), questions=questions, **arrays)
                return cls(batch, stored["tokens"], stored["kinds"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise EdgeError(
                f"{file} cannot be read: {error}", "Remove it and start again: it will be made anew."
            ) from None


@dataclass(frozen=True)
class LookedAtSource:
    """Batches from the files of `look_at_all`, again and again, thinned less and less."""

    folder: Path
    files: int
    batches: int  # of the whole training
    seed: int = 0

    def build(self, number: int, level: int) -> LookedAt:
        looked = LookedAt.load(_file(self.folder, number % self.files))
        share = next(kept for until, kept in KEPT if number < until * self.batches or until == 1)
        return thinned(looked, share, random.Random(f"thinned:{self.seed}:{number}"))


def look_at_all(
    source: AnswerSource,
    level: int,
    branch: VisionBranch,
    looked: LookedAtSource,
    device: torch.device,
    pool: ProcessPoolExecutor | None,
    on_file: Callable[[int], None],
) -> None:
    """Writes the files of `looked` that are not there: the first batches of `source`. `on_file` hears how
    many there are."""
    looked.folder.mkdir(parents=True, exist_ok=True)
    first = next((n for n in range(looked.files) if not _file(looked.folder, n).is_file()), looked.files)
    branch.to(device).eval()
    feed = Feed(source, pool, first, [(0, level)])

    def look(number: int, batch: AnswerBatch) -> None:
        LookedAt.of(branch, batch, device).save(_file(looked.folder, number))

    with threads(2, device) as crew:
        running: deque[Future[None]] = deque()
        for number in range(first, looked.files):
            running.append(crew.submit(look, number, feed.take()))
            if len(running) == AHEAD:
                running.popleft().result()
                on_file(number + 1 - len(running))
        for left in range(len(running), 0, -1):
            running.popleft().result()
            on_file(looked.files - left + 1)


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.npz"


def thinned(looked: LookedAt, kept: float, chance: random.Random) -> LookedAt:
    """Without most of the visual tokens of the background and many of elements; the others keep their
    positions."""
    if kept >= 1:
        return looked
    batch, odds = looked.batch, {_BACKGROUND: kept, _ELEMENT: _ELEMENT_RATE * kept, _MIDDLE: 1.0}
    stays = np.array([chance.random() < odds[kind] for kind in looked.kinds.tolist()])
    here = (batch.segment >= 0) & ((batch.visual < 0) | stays[batch.visual])
    length = int(here.sum(1).max())
    arrays: dict[str, Any] = {
        name: np.full((len(here), length), fill, np.int64) for name, fill in _FILL.items()
    }
    moved = np.full(here.shape, -1)
    for row, columns in enumerate(map(np.flatnonzero, here)):
        moved[row, columns] = np.arange(len(columns))
        for name, array in arrays.items():
            array[row, : len(columns)] = getattr(batch, name)[row, columns]
    points = batch.points.copy()
    points[:, 2] = moved[points[:, 0], points[:, 2]]
    left = points[:, 2] >= 0
    return replace(looked, batch=replace(batch, points=points[left], facts=batch.facts[left], **arrays))
