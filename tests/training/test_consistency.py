"""The losses of Dual Consistency Learning."""

from __future__ import annotations

import pytest
import torch

from hypervl.training.answers import Read, answer_loss
from hypervl.training.consistency import TEMPERATURE, consistency_losses, feature_distance


def _read(seed: int) -> Read:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 11, generator=generator).requires_grad_()
    visual = torch.randn(7, 6, generator=generator).requires_grad_()
    return Read(logits, torch.arange(5), visual)


def test_a_base_branch_that_equals_the_large_one_has_only_the_loss_of_its_answers() -> None:
    read = _read(0)
    losses = consistency_losses(read, read.logits, read.visual)
    assert losses["kl"].item() == pytest.approx(0, abs=1e-6)
    assert losses["features"].item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(losses["answers"], answer_loss(read))


def test_the_divergence_is_from_the_large_branchs_distribution_times_the_squared_temperature() -> None:
    base, large = _read(0), _read(1)
    p, q = (torch.softmax(read.logits / TEMPERATURE, -1) for read in (large, base))
    expected = TEMPERATURE**2 * (p * (p.log() - q.log())).sum(-1).mean()
    torch.testing.assert_close(consistency_losses(base, large.logits)["kl"], expected)


def test_only_the_base_branch_learns() -> None:
    base, large = _read(0), _read(1)
    losses = consistency_losses(base, large.logits, large.visual)
    torch.stack(list(losses.values())).sum().backward()
    for tensor in (base.logits, base.visual):
        assert tensor.grad is not None
        assert float(tensor.grad.abs().max()) > 0
    assert large.logits.grad is None
    assert large.visual.grad is None


def test_only_what_is_given_of_the_large_branch_has_a_term() -> None:
    base, large = _read(0), _read(1)
    assert set(consistency_losses(base)) == {"answers"}
    assert set(consistency_losses(base, large.logits)) == {"answers", "kl"}
    assert set(consistency_losses(base, large_visual=large.visual)) == {"answers", "features"}


def test_distance_of_features_is_relative_to_the_large_branchs_length() -> None:
    large = torch.tensor([[3.0, 4.0]])
    assert float(feature_distance(2 * large, large)) == pytest.approx(1)  # as far as it is long
    assert float(feature_distance(-large, large)) == pytest.approx(4 + 2)  # and opposite
    assert float(feature_distance(20 * large, 10 * large)) == pytest.approx(1)
