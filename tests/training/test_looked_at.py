"""Pictures that are encoded once: what is kept, what is left out, and that nothing else changes."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hypervl.byte_tokenizer import byte_tokenizer
from hypervl.model import HyperVL, build
from hypervl.specs import image_tokens, vision_spec
from hypervl.training.answer_data import AnswerBatch, AnswerSource
from hypervl.training.answers import read_answers, sees, visual_tokens
from hypervl.training.batched_decoder import hidden_states
from hypervl.training.looked_at import KEPT, LookedAt, LookedAtSource, look_at_all, thinned
from hypervl.training.targets import FIELDS, IGNORE, Cells, showing
from rpi_runtime.errors import EdgeError
from tests.converters.tiny import CONFIG
from vqa.panels.questions import VALUE_TYPES

CPU = torch.device("cpu")
ARRAYS = ("ids", "visual", "segment", "position", "target", "points", "facts")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> AnswerSource:
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().write(folder)
    spec = vision_spec(CONFIG)
    return AnswerSource(
        spec, folder, image_tokens(CONFIG), Cells.of(CONFIG.vision_large), tiles=30, questions=6
    )


@pytest.fixture(scope="module")
def model() -> HyperVL:
    return build(CONFIG, seed=1).eval()


@pytest.fixture(scope="module")
def batch(source: AnswerSource) -> AnswerBatch:
    return source.build(2, 1)


@pytest.fixture(scope="module")
def looked(model: HyperVL, batch: AnswerBatch) -> LookedAt:
    return LookedAt.of(model.vision_large, batch, CPU)


def facts(batch: AnswerBatch) -> np.ndarray:
    return np.concatenate([d.tokens.reshape(-1, len(FIELDS)) for d in batch.dense])


def test_a_question_points_at_every_visual_token_that_shows_its_subject(batch: AnswerBatch) -> None:
    shown, expected = facts(batch), set()
    for row, questions in enumerate(batch.questions):
        columns = np.flatnonzero(batch.visual[row] >= 0)
        for number, asked in enumerate(questions, 1):
            for subject in asked.subjects:
                found = showing(shown[batch.visual[row, columns]], subject, asked.type in VALUE_TYPES)
                expected |= {(row, number, column) for column in columns[found].tolist()}
    assert {tuple(point) for point in batch.points.tolist()} == expected
    assert len(expected) > 20
    np.testing.assert_array_equal(batch.facts, shown[batch.visual[batch.points[:, 0], batch.points[:, 2]]])


def test_who_reads_a_value_looks_where_the_value_is_written(batch: AnswerBatch) -> None:
    shown = facts(batch)
    field = list(FIELDS).index("value_0")
    for row, number, column in batch.points:
        asked = batch.questions[row][number - 1]
        if asked.type == "display" and (shown[batch.visual[row][batch.visual[row] >= 0]][:, field] > 0).any():
            assert shown[batch.visual[row, column], field] > 0 or not any(
                shown[batch.visual[row, c], field] > 0 for r, n, c in batch.points if (r, n) == (row, number)
            )


def test_what_is_kept_is_what_the_branch_sees(model: HyperVL, batch: AnswerBatch, looked: LookedAt) -> None:
    with torch.no_grad():
        expected = visual_tokens(model.vision_large, batch, CPU)
    np.testing.assert_array_equal(looked.tokens, expected.half().numpy())
    assert not looked.batch.tiles
    shown = facts(batch)
    np.testing.assert_array_equal(looked.kinds > 0, (shown[:, 0] > 0) | (shown[:, -1] == 1))


def test_a_file_gives_back_what_was_saved(looked: LookedAt, tmp_path: Path) -> None:
    looked.save(tmp_path / "0.npz")
    again = LookedAt.load(tmp_path / "0.npz")
    np.testing.assert_array_equal(again.tokens, looked.tokens)
    np.testing.assert_array_equal(again.kinds, looked.kinds)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(again.batch, name), getattr(looked.batch, name))
    assert again.batch.questions == looked.batch.questions
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("length", [None, 0, 30, 3000])
def test_a_file_that_is_gone_or_cut_is_named(looked: LookedAt, tmp_path: Path, length: int | None) -> None:
    file = tmp_path / "0.npz"
    looked.save(file)
    if length is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(EdgeError, match=r"0\.npz cannot be read") as caught:
        LookedAt.load(file)
    assert "made anew" in caught.value.remedy


@pytest.mark.parametrize("kept", [0.05, 0.3])
def test_thinning_leaves_the_text_and_the_middle_of_every_element(looked: LookedAt, kept: float) -> None:
    before, after = looked.batch, thinned(looked, kept, random.Random(0)).batch
    for row in range(len(before.segment)):
        old, new = ((b.segment[row] >= 0) & (b.visual[row] < 0) for b in (before, after))  # text
        for name in ("ids", "segment", "position", "target"):
            np.testing.assert_array_equal(getattr(after, name)[row, new], getattr(before, name)[row, old])
    stays = set(after.visual[after.visual >= 0].tolist())
    assert set(np.flatnonzero(looked.kinds == 2).tolist()) <= stays
    background = np.flatnonzero(looked.kinds == 0)
    share = np.isin(background, list(stays)).mean()
    assert abs(share - kept) < 4 * (kept * (1 - kept) / len(background)) ** 0.5


def test_points_follow_what_they_point_at(looked: LookedAt) -> None:
    small = thinned(looked, 0.2, random.Random(1))
    pointed = {
        (row, number, int(looked.batch.visual[row, column])): fact.tolist()
        for (row, number, column), fact in zip(looked.batch.points.tolist(), looked.batch.facts, strict=True)
    }
    stays = set(small.batch.visual[small.batch.visual >= 0].tolist())
    left = {
        (row, number, int(small.batch.visual[row, column])): fact.tolist()
        for (row, number, column), fact in zip(small.batch.points.tolist(), small.batch.facts, strict=True)
    }
    assert left == {key: fact for key, fact in pointed.items() if key[2] in stays}
    assert 0 < len(left) < len(pointed)


def test_leaving_tokens_out_is_not_seeing_them(model: HyperVL, looked: LookedAt) -> None:
    """The oracle: the whole sequence, with the left-out columns masked."""
    small = thinned(looked, 0.3, random.Random(2))
    whole, stays = looked.batch, np.unique(small.batch.visual[small.batch.visual >= 0])
    gone = torch.from_numpy((whole.visual >= 0) & ~np.isin(whole.visual, stays))
    visual = torch.from_numpy(looked.tokens).float()
    with torch.no_grad():
        found = read_answers(model.decoder, visual, small.batch).logits
        where = torch.from_numpy(whole.visual)
        embeddings = torch.where(
            (where >= 0)[..., None],
            visual[where.clamp(min=0)],
            model.decoder.embed_tokens(torch.from_numpy(whole.ids)),
        )
        seen = sees(torch.from_numpy(whole.segment)) & ~gone[:, None, :]
        seen |= torch.eye(gone.shape[1], dtype=torch.bool)
        states = hidden_states(model.decoder, embeddings, torch.from_numpy(whole.position), seen)
        rows = torch.from_numpy(whole.target != IGNORE)
        expected = model.decoder.lm_head(states[rows], model.decoder.embed_tokens.weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_files_are_made_once_and_gone_through_again_and_again(
    model: HyperVL, source: AnswerSource, tmp_path: Path
) -> None:
    few = replace(source, tiles=2)
    looked = LookedAtSource(tmp_path / "looked_at", files=3, batches=10)
    heard: list[int] = []
    look_at_all(few, 0, model.vision_large, looked, CPU, None, heard.append)
    assert heard == [1, 2, 3]
    contents = {file.name: file.read_bytes() for file in sorted(looked.folder.iterdir())}
    assert len(contents) == 3

    (looked.folder / "00001.npz").unlink()
    look_at_all(few, 0, model.vision_large, looked, CPU, None, heard.append)
    assert heard == [1, 2, 3, 2, 3]
    assert {file.name: file.read_bytes() for file in sorted(looked.folder.iterdir())} == contents

    first, again, other = (looked.build(number, 0) for number in (1, 1, 4))
    assert np.array_equal(first.batch.visual, again.batch.visual)
    assert first.batch.questions == other.batch.questions  # the same file
    assert not np.array_equal(first.batch.visual, other.batch.visual)  # thinned anew
    assert np.array_equal(
        looked.build(9, 0).batch.visual, LookedAt.load(looked.folder / "00000.npz").batch.visual
    )


def test_nothing_is_left_out_at_the_end() -> None:
    shares = [share for _, share in KEPT]
    assert shares == sorted(shares)
    assert KEPT[-1] == (1.0, 1.0)
