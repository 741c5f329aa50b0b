"""Labels by the loss-ratio rule: the losses equal a slow direct computation, and all tiles together obey."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hypervl.checkpoint import Checkpoint
from hypervl.generate import Cache, embed_prompt
from hypervl.specs import image_tokens
from hypervl.training.answer_loss import AnswerLosses, FrozenModel, Losses, Sides
from hypervl.training.loss_file import LossFile, open_asked
from hypervl.training.vrc_labels import (
    Labelled,
    Rule,
    classes,
    label_picture,
    label_tiles,
    routed_sides,
    soft_targets,
)
from rpi_runtime.errors import EdgeError, ImageError, UsageError
from rpi_runtime.images import open_image
from rpi_runtime.manifest import VisionSpec
from rpi_runtime.prompt import ImagePlan, Message, layout, tokenise
from rpi_runtime.tiling import cut, plan_grid, tile_picture
from rpi_runtime.tokenizer import TextCodec
from tests.training.vrc_samples import write_data, write_tiny
from vqa.dataset import Dataset, Question

SIDES = (32, 64, 96)
SPEC = VisionSpec(96, (96, 64, 32), 4, True, 32, (0.25, 0.5, 0.75, 1.0), 32, 0.5)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> FrozenModel:
    folder = write_tiny(tmp_path_factory.mktemp("tiny") / "model")
    model = Checkpoint.open(folder).load_model().requires_grad_(False)
    return FrozenModel(model, TextCodec.from_checkpoint(folder), "base", torch.device("cpu"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset.read(write_data(tmp_path_factory.mktemp("data") / "panels", pictures=3))


@torch.no_grad()
def direct_loss(frozen: FrozenModel, question: Question, sides: Sides) -> float:
    """As `generate` would: one question, one prompt, every token of the answer fed by itself."""
    picture = open_image(question.image)
    grid = tile_picture(picture, frozen.spec)
    plan = ImagePlan(
        picture.digest, frozen.branch, grid.columns, grid.rows, sides, grid.tiles[-1].is_thumbnail
    )
    encoder, decoder = frozen.model.vision(frozen.branch), frozen.model.decoder
    tokens = [encoder(torch.from_numpy(cut(picture, t, s))) for t, s in zip(grid.tiles, sides, strict=True)]
    items = tokenise(frozen.codec, [Message("user", question.text, 1)])
    prompt = layout(items, [plan], frozen.codec, image_tokens(frozen.model.config), frozen.spec.tokens)
    cache = Cache(decoder)
    logits = cache.feed(embed_prompt(decoder, prompt, [tokens]))
    probabilities = []
    for token in frozen.codec.encode(question.answer, continues=True):
        probabilities.append(torch.softmax(logits[: frozen.codec.vocab_size], 0)[token])
        logits = cache.feed(decoder.embed_tokens(torch.tensor([[token]])))
    last = torch.softmax(logits[: frozen.codec.vocab_size], 0)
    probabilities.append(sum(last[i] for i in frozen.codec.eos_token_ids))
    return float(-torch.stack(probabilities).log().mean())


def answer_losses(frozen: FrozenModel, questions: list[Question]) -> AnswerLosses:
    return AnswerLosses(frozen, open_image(questions[0].image), questions)


@pytest.mark.parametrize("picture", [0, 1, 2])
def test_losses_equal_those_of_one_question_fed_token_by_token(
    frozen: FrozenModel, data: Dataset, picture: int
) -> None:
    questions = list(data.by_image().values())[picture]
    tiles = len(plan_grid(*open_image(questions[0].image).size, frozen.spec).tiles)
    losses = answer_losses(frozen, questions)
    for i in range(3):
        sides = tuple(itertools.islice(itertools.cycle(SIDES[i:] + SIDES[:i]), tiles))
        expected = [direct_loss(frozen, question, sides) for question in questions]
        assert losses.at(sides) == pytest.approx(expected, abs=2e-5)


def test_a_loss_does_not_depend_on_what_was_asked_before(frozen: FrozenModel, data: Dataset) -> None:
    questions = list(data.by_image().values())[2]
    asked = [(96, 96, 96, 96, 96), (96, 96, 32, 96, 96), (32, 64, 96, 64, 32)]
    before = answer_losses(frozen, questions)
    assert [before.at(sides) for sides in asked] == [
        answer_losses(frozen, questions).at(sides) for sides in asked
    ]


def test_many_questions_are_asked_in_several_calls(frozen: FrozenModel, data: Dataset) -> None:
    questions = list(data.by_image().values())[1]
    many = answer_losses(frozen, questions * 12).at((96, 64, 32))
    assert many == pytest.approx(answer_losses(frozen, questions).at((96, 64, 32)) * 12, abs=2e-5)


def test_labels_of_a_real_model_equal_a_direct_recomputation(frozen: FrozenModel, data: Dataset) -> None:
    questions = list(data.by_image().values())[2]
    grid = plan_grid(200, 200, frozen.spec)
    rule = Rule(eps=0.01, floor=0.1)

    def direct(sides: Sides) -> Losses:
        return tuple(direct_loss(frozen, question, sides) for question in questions)

    full = direct((96,) * 5)
    expected = []
    for tile in range(5):
        for side in SIDES:
            lowered = direct(tuple(side if i == tile else 96 for i in range(5)))
            ratios = [(a + 0.1) / (b + 0.1) for a, b in zip(lowered, full, strict=True)]
            if max(ratios) <= 1.01:
                expected.append(side)
                break
    labelled = label_tiles(answer_losses(frozen, questions).at, grid, SIDES, rule)
    assert [SIDES[len(row) - 1] for row in labelled.ratios] == expected
    assert len(set(expected)) > 1
    assert rule.holds(direct(labelled.sides), full)


def test_the_label_is_the_smallest_side_within_eps_for_every_question() -> None:
    grid = plan_grid(96, 96, SPEC)
    table: dict[Sides, Losses] = {(32,): (1.0, 1.2), (64,): (1.04, 1.04), (96,): (1.0, 1.0)}
    for eps, side in ((0.01, 96), (0.05, 64), (0.3, 32)):
        labelled = label_tiles(table.__getitem__, grid, SIDES, Rule(eps, floor=1e-9))
        assert labelled.sides == (side,)
        assert label_picture(table.__getitem__, grid, SIDES, Rule(eps, floor=1e-9)) == labelled


def test_losses_near_zero_are_compared_by_difference() -> None:
    assert Rule(0.05, floor=0.5).holds((0.02,), (1e-6,))  # 20,000 times as much
    assert not Rule(0.05, floor=0.5).holds((0.03,), (1e-6,))
    assert Rule(0.05, floor=0.5).ratio(300, 200) == pytest.approx(1.5, abs=0.002)


def test_what_two_tiles_say_twice_is_kept_in_the_grid_or_in_the_thumbnail_not_lost() -> None:
    """Either of tile 0 and the thumbnail answers; each alone seems needless."""
    grid = plan_grid(200, 200, SPEC)

    def measure(sides: Sides) -> Losses:
        return (0.1,) if 96 in (sides[0], sides[4]) else (3.0,)

    labelled = label_tiles(measure, grid, SIDES, Rule(0.05))
    assert [len(row) for row in labelled.ratios] == [1] * 5
    assert labelled.sides == (32, 32, 32, 32, 96)


def test_a_tile_that_matters_to_no_question_gets_the_smallest_side() -> None:
    grid = plan_grid(200, 200, SPEC)
    labelled = label_tiles(lambda sides: (0.1 if sides[2] == 96 else 2.0,), grid, SIDES, Rule(0.05))
    assert labelled.sides == (32, 32, 96, 32, 32)


@given(st.lists(st.floats(0, 4), min_size=243, max_size=243), st.sampled_from((0.0, 0.05, 0.5)))
def test_all_tiles_together_obey_the_rule_whatever_the_losses(values: list[float], eps: float) -> None:
    grid, rule = plan_grid(200, 200, SPEC), Rule(eps)
    table = {sides: (loss,) for sides, loss in zip(itertools.product(SIDES, repeat=5), values, strict=True)}
    labelled = label_tiles(table.__getitem__, grid, SIDES, rule)
    assert rule.holds(table[labelled.sides], table[96, 96, 96, 96, 96])


def test_scales_of_one_side_are_one_class_the_smallest() -> None:
    assert routed_sides(SPEC) == SIDES
    assert classes((32, 64, 96, 64), SPEC) == [0, 1, 2, 1]


def test_soft_labels_say_how_much_worse_the_other_scales_are() -> None:
    rule = Rule(0.05)
    close, far, spared = soft_targets(
        Labelled((96, 96, 32), ((3.0, 1.06, 1.0), (3.0, 3.0, 1.0), (1.0,))), SPEC, rule
    )
    for row in (close, far, spared):
        assert row.sum() == pytest.approx(1)
        assert row[3] == 0  # scale 1.0 leads to the side of 0.75
    assert list(map(np.argmax, (close, far, spared))) == [2, 2, 0]
    assert close[1] > 0.2 > far[1]
    assert spared[1] > spared[2] > 0


def test_losses_are_read_and_not_computed_again(frozen: FrozenModel, data: Dataset, tmp_path: Path) -> None:
    path, questions = list(data.by_image().items())[2]
    picture = open_asked(path, questions, frozen.spec)
    asked: list[Sides] = [(96,) * 5, (32, 64, 96, 64, 32), (64,) * 5]
    with LossFile(tmp_path / "losses.jsonl", frozen, "one") as file:
        whole = [file.losses(picture, sides) for sides in asked]
    content = (tmp_path / "losses.jsonl").read_bytes()
    (tmp_path / "losses.jsonl").write_bytes(content[:-9])  # killed while it wrote the last line
    with LossFile(tmp_path / "losses.jsonl", frozen, "one") as file:
        assert [file.losses(picture, sides) for sides in asked] == whole
        assert file.passes == 1
    assert (tmp_path / "losses.jsonl").read_bytes() == content
    with pytest.raises(UsageError, match="another checkpoint"):
        LossFile(tmp_path / "losses.jsonl", frozen, "two")
    (tmp_path / "losses.jsonl").write_bytes(content.replace(b"sides", b"tides"))
    with pytest.raises(EdgeError, match="damaged"):
        LossFile(tmp_path / "losses.jsonl", frozen, "one")


def test_a_picture_that_cannot_be_read_is_named(frozen: FrozenModel, data: Dataset, tmp_path: Path) -> None:
    content = data.questions[4].image.read_bytes()
    cut_off = tmp_path / "cut.png"
    cut_off.write_bytes(content[: len(content) // 2])
    picture = open_asked(cut_off, data.questions[4:5], frozen.spec)
    with (
        LossFile(tmp_path / "losses.jsonl", frozen, "one") as file,
        pytest.raises(ImageError, match=r"cut\.png"),
    ):
        file.losses(picture, (96,) * len(picture.grid.tiles))
