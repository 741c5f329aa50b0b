"""Several questions in one sequence: each is what it would be alone, in tokens, attention and loss."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hypervl.byte_tokenizer import byte_tokenizer
from hypervl.generate import Cache, embed_prompt
from hypervl.model import HyperVL, build
from hypervl.specs import image_tokens, vision_spec
from hypervl.training.answer_data import AnswerBatch, AnswerSource, _Sample, _stack
from hypervl.training.answers import answer_loss, exact_shares, read_answers, sees, visual_tokens
from hypervl.training.targets import IGNORE, Cells
from rpi_runtime.images import open_image
from rpi_runtime.prompt import ImagePlan, Message, Prompt, VisualRun, layout, tokenise
from rpi_runtime.tiling import plan_grid
from rpi_runtime.tokenizer import TextCodec
from tests.converters.tiny import CONFIG
from vqa.panels.panel import Difficulty, Panel, make_panel
from vqa.panels.questions import ask

_SPEC = vision_spec(CONFIG)
_CPU = torch.device("cpu")
_EASY = Difficulty(most_elements=3, camera=0.3, longest_px=300)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> AnswerSource:
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().write(folder)
    return AnswerSource(
        _SPEC, folder, image_tokens(CONFIG), Cells.of(CONFIG.vision_large), tiles=4, questions=3
    )


@pytest.fixture(scope="module")
def codec(source: AnswerSource) -> TextCodec:
    return TextCodec.from_checkpoint(source.tokenizer)


@pytest.fixture(scope="module")
def model() -> HyperVL:
    built = build(CONFIG, seed=1).eval()
    with torch.no_grad():
        built.vision_base.projector.linear_2.weight *= 6  # the answers hang on the picture
    return built


@pytest.fixture(scope="module")
def pictures() -> list[Panel]:
    return [make_panel("train", number, _EASY) for number in (0, 1)]


@pytest.fixture(scope="module")
def samples(source: AnswerSource, pictures: list[Panel]) -> list[_Sample]:
    """Two pictures, three questions each, their tiles at mixed sides."""
    counts = [len(plan_grid(*panel.image.size, _SPEC).tiles) for panel in pictures]
    seed = next(
        seed
        for seed in range(1000)
        if len({side for n in counts for side in source._sides(random.Random(seed), n)}) == 2
    )
    return [source._sample(random.Random(seed), panel, ask(panel, 3)) for panel in pictures]


@pytest.fixture(scope="module")
def batch(samples: list[_Sample]) -> AnswerBatch:
    return _stack(samples, _SPEC)


def _prompt(codec: TextCodec, panel: Panel, sample: _Sample, number: int) -> Prompt:
    """Question `number` alone, as the runtime lays it out."""
    grid = plan_grid(*open_image(panel.image).size, _SPEC)
    sides = tuple(tile.shape[0] for tile in sample.tiles)
    plan = ImagePlan("", "", grid.columns, grid.rows, sides, grid.tiles[-1].is_thumbnail)
    items = tokenise(codec, [Message("user", sample.asked[number].text, images=1)])
    return layout(items, (plan,), codec, image_tokens(CONFIG), _SPEC.tokens)


def _places(batch: AnswerBatch, row: int, number: int) -> np.ndarray:
    """Where the picture and question `number` stand in a row."""
    return np.flatnonzero((batch.segment[row] == 0) | (batch.segment[row] == number + 1))


def _encoded(model: HyperVL, sample: _Sample) -> list[Tensor]:
    branch = model.vision_base
    return [branch(torch.from_numpy(tile)[None].float() / 255) for tile in sample.tiles]


def test_the_pictures_are_routed_to_different_sides(samples: list[_Sample]) -> None:
    assert len({tile.shape[0] for sample in samples for tile in sample.tiles}) == 2


def test_each_question_is_laid_out_as_the_runtime_lays_it_out_alone(
    codec: TextCodec, pictures: list[Panel], samples: list[_Sample], batch: AnswerBatch
) -> None:
    for row, (panel, sample) in enumerate(zip(pictures, samples, strict=True)):
        for number, asked in enumerate(sample.asked):
            prompt = _prompt(codec, panel, sample, number)
            wanted: list[int] = []  # -1 for a visual token
            for run in prompt.runs:
                wanted += [-1] * run.tokens if isinstance(run, VisualRun) else list(run.ids)
            answer = [*codec.encode(asked.answer, continues=True), codec.eos_token_ids[0]]
            places = _places(batch, row, number)
            ids = np.where(batch.visual[row] >= 0, -1, batch.ids[row])[places]
            assert ids.tolist() == wanted + answer[:-1]
            np.testing.assert_array_equal(batch.position[row, places], np.arange(len(places)))
            target = batch.target[row, places]
            assert target[len(wanted) - 1 :].tolist() == answer
            assert (target[: len(wanted) - 1] == IGNORE).all()


def test_visual_tokens_stand_in_the_order_of_their_tiles(
    model: HyperVL, samples: list[_Sample], batch: AnswerBatch
) -> None:
    with torch.no_grad():
        visual = visual_tokens(model.vision_base, batch, _CPU)
        for row, sample in enumerate(samples):
            shown = visual[batch.visual[row][batch.visual[row] >= 0]]
            expected = torch.cat([tokens[0] for tokens in _encoded(model, sample)])
            torch.testing.assert_close(shown, expected, rtol=1e-4, atol=1e-5)
    assert sorted(batch.visual[batch.visual >= 0]) == list(range(len(visual)))


def test_padding_is_neither_seen_nor_asked(batch: AnswerBatch) -> None:
    padding = batch.segment == -1
    assert padding.any()
    assert (batch.target[padding] == IGNORE).all()
    seen = sees(torch.from_numpy(batch.segment)).numpy()
    assert not (seen & padding[:, None, :] & ~padding[:, :, None]).any()


def test_a_token_sees_the_picture_and_its_own_question_up_to_itself() -> None:
    segment = [0, 0, 1, 1, 2, 2, 3, -1]
    seen = sees(torch.tensor([segment]))[0]
    for row, own in enumerate(segment):
        for column, other in enumerate(segment):
            assert seen[row, column] == (column <= row and other in (0, own))


def test_a_question_never_sees_its_neighbour(model: HyperVL, batch: AnswerBatch) -> None:
    changed = AnswerBatch(**{**vars(batch), "ids": np.where(batch.segment == 1, 65, batch.ids)})
    rows, columns = (batch.target != IGNORE).nonzero()
    with torch.no_grad():
        visual = visual_tokens(model.vision_base, batch, _CPU)
        before, after = (read_answers(model.decoder, visual, b).logits for b in (batch, changed))
    own = torch.from_numpy(batch.segment[rows, columns] == 1)
    torch.testing.assert_close(after[~own], before[~own])
    assert (after[own] - before[own]).abs().max() > 1e-3


def test_the_loss_of_a_question_in_a_batch_is_its_loss_alone(
    codec: TextCodec, model: HyperVL, pictures: list[Panel], samples: list[_Sample], batch: AnswerBatch
) -> None:
    """Alone: the reference's decoder with its cache, one answer token after the other."""
    with torch.no_grad():
        read = read_answers(model.decoder, visual_tokens(model.vision_base, batch, _CPU), batch)
        each = F.cross_entropy(read.logits, read.targets, reduction="none")
        rows, columns = (batch.target != IGNORE).nonzero()
        alone: list[Tensor] = []
        for row, (panel, sample) in enumerate(zip(pictures, samples, strict=True)):
            for number in range(len(sample.asked)):
                prompt = _prompt(codec, panel, sample, number)
                answer = sample.blocks[number][1]
                cache = Cache(model.decoder)
                logits = [cache.feed(embed_prompt(model.decoder, prompt, [_encoded(model, sample)]))]
                for token in answer[:-1]:
                    logits.append(cache.feed(model.decoder.embed_tokens(torch.tensor([[token]]))))
                losses = F.cross_entropy(torch.stack(logits), torch.tensor(answer), reduction="none")
                here = (rows == row) & (batch.segment[rows, columns] == number + 1)
                torch.testing.assert_close(each[torch.from_numpy(here)], losses, rtol=1e-4, atol=1e-4)
                alone.append(losses)
    torch.testing.assert_close(answer_loss(read), torch.cat(alone).mean(), rtol=1e-4, atol=1e-4)


def test_a_question_is_exact_when_each_of_its_tokens_is(model: HyperVL, batch: AnswerBatch) -> None:
    with torch.no_grad():
        read = read_answers(model.decoder, visual_tokens(model.vision_base, batch, _CPU), batch)
    perfect = read._replace(logits=F.one_hot(read.targets, read.logits.shape[1]).float())
    asked = [one for questions in batch.questions for one in questions]
    displays = sum(one.type == "display" for one in asked)
    assert displays
    shares = {name: float(share) for name, share in exact_shares(perfect, batch).items()}
    assert shares == {"exact": 1.0, "exact_display": 1.0, "token": 1.0}
    perfect.logits[0] = -perfect.logits[0]  # of the first question
    shares = {name: float(share) for name, share in exact_shares(perfect, batch).items()}
    assert shares["exact"] == pytest.approx(1 - 1 / len(asked))
    assert shares["exact_display"] == pytest.approx(1 - (asked[0].type == "display") / displays)
    assert shares["token"] == pytest.approx(1 - 1 / len(read.targets))


def test_a_batch_is_a_function_of_its_number_and_level(source: AnswerSource) -> None:
    first, again, other = (source.build(number, 0) for number in (3, 3, 4))
    for name in ("ids", "visual", "segment", "position", "target"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert all(np.array_equal(a, b) for a, b in zip(first.tiles, again.tiles, strict=True))
    assert first.questions == again.questions != other.questions
    assert sum(tiles.size for tiles in first.tiles) >= source.tiles * 3 * _SPEC.tile_side**2


def test_every_tile_of_a_batch_comes_with_what_lies_under_its_patches(source: AnswerSource) -> None:
    batch = source.build(3, 0)
    assert len(batch.dense) == len(batch.tiles)
    for targets, tiles in zip(batch.dense, batch.tiles, strict=True):
        grid = tiles.shape[1] // CONFIG.vision_large.patch_size
        assert targets.patches.shape[:3] == (len(tiles), grid, grid)
        assert targets.tokens.shape[:3] == (len(tiles), grid // 2, grid // 2)
    assert any(targets.patches[..., 0].any() for targets in batch.dense)
