"""What tells the decoder where to look: measured against attention that is computed apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from hypervl.model import HyperVL, build
from hypervl.training.answer_data import AnswerBatch
from hypervl.training.answers import read_answers, sees
from hypervl.training.guides import FACTS_WEIGHT, POINTING_WEIGHT, Guide, Overheard
from hypervl.training.looked_at import LookedAt
from hypervl.training.targets import FIELDS, IGNORE
from tests.converters.tiny import CONFIG
from tests.training.test_looked_at import batch, looked, model, source

__all__ = ["batch", "looked", "model", "source"]  # fixtures


@pytest.fixture
def guide() -> Guide:
    torch.manual_seed(0)
    return Guide(CONFIG.decoder)


def overhear(model: HyperVL, guide: Guide, looked: LookedAt) -> Overheard:
    overheard = Overheard(guide, looked.batch)
    read_answers(model.decoder, torch.from_numpy(looked.tokens).float(), looked.batch, overheard.hear)
    return overheard


def test_pointing_is_the_attention_on_what_must_be_found(
    model: HyperVL, guide: Guide, looked: LookedAt
) -> None:
    heard: list[tuple[Tensor, Tensor]] = []

    def hear(layer: int, queries: Tensor, keys: Tensor, after: Tensor) -> None:
        if layer == guide.layer:
            heard.append((queries, keys))

    batch = looked.batch
    with torch.no_grad():
        read_answers(model.decoder, torch.from_numpy(looked.tokens).float(), batch, hear)
        ((queries, keys),) = heard
        group = CONFIG.decoder.num_attention_heads // CONFIG.decoder.num_key_value_heads
        seen = sees(torch.from_numpy(batch.segment))
        terms = []
        for head in range(group):
            scores = queries[:, head] @ keys[:, 0].transpose(1, 2) * CONFIG.decoder.head_dim**-0.5
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
            for row, column in np.argwhere(batch.target != IGNORE):
                mine = (batch.points[:, 0] == row) & (batch.points[:, 1] == batch.segment[row, column])
                if mine.any():
                    terms.append(-weights[row, column, batch.points[mine, 2]].sum().log())
        found = overhear(model, guide, looked).losses()["pointing"]
    torch.testing.assert_close(found, POINTING_WEIGHT * torch.stack(terms).mean(), rtol=1e-4, atol=1e-5)


def test_facts_are_learned_from_what_the_points_show(guide: Guide, looked: LookedAt) -> None:
    """A decoder and its guide that see one batch again and again come to tell all of it."""
    learner = build(CONFIG, seed=2)
    before = float(overhear(learner, guide, looked).losses()["facts"])
    optimizer = torch.optim.Adam([*learner.decoder.parameters(), *guide.parameters()], lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        losses = overhear(learner, guide, looked).losses()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    assert float(overhear(learner, guide, looked).losses()["facts"]) < 0.2 * before


def test_only_questions_about_one_element_have_facts(model: HyperVL, guide: Guide, looked: LookedAt) -> None:
    """With every question about two, nothing is asked for, and attention still is."""
    doubled = tuple(
        tuple(replace(asked, subjects=asked.subjects * 2) for asked in row) for row in looked.batch.questions
    )
    changed = replace(looked, batch=replace(looked.batch, questions=doubled))
    with torch.no_grad():
        losses, before = (overhear(model, guide, one).losses() for one in (changed, looked))
    assert float(losses["facts"]) == 0
    assert float(before["facts"]) > 0
    assert float(losses["pointing"]) == float(before["pointing"]) > 0


def test_a_batch_without_points_costs_nothing(model: HyperVL, guide: Guide, looked: LookedAt) -> None:
    none: AnswerBatch = replace(
        looked.batch, points=np.zeros((0, 3), np.int64), facts=np.zeros((0, len(FIELDS)), np.int16)
    )
    losses = overhear(model, guide, replace(looked, batch=none)).losses()
    assert {name: float(value.detach()) for name, value in losses.items()} == {"pointing": 0.0, "facts": 0.0}
    assert FACTS_WEIGHT > 0
