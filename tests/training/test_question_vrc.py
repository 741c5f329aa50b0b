"""The experimental router that sees the question uses both what it sees and what is asked."""

from __future__ import annotations

import torch

from hypervl.training.question_vrc import AskedViews, train_router


def asked(count: int, seed: int) -> AskedViews:
    """A tile needs the full side when it shows something (feature 0) and the second question is asked."""
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.randn(count, 16, generator=generator)
    which = torch.randint(2, (count,), generator=generator)
    questions = torch.randn(2, 24, generator=torch.Generator().manual_seed(9))[which]
    return AskedViews(pooled, questions, ((pooled[:, 0] > 0) & (which == 1)).long() * 2)


def test_it_learns_what_neither_the_view_nor_the_question_says_alone() -> None:
    router = train_router(asked(3000, 0), asked(200, 1), scales=4, seed=0)
    unseen = asked(500, 2)
    predicted = router(unseen.pooled, unseen.question).argmax(dim=1)
    assert (predicted == unseen.labels).double().mean() > 0.93


def test_the_same_seed_gives_the_same_router_and_leaves_other_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, other = (train_router(asked(64, 0), asked(16, 1), scales=4, seed=3) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one.mlp[2].weight, other.mlp[2].weight)
