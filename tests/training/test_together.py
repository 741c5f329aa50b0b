"""Several batches at once: the gradient, the weights and the statistics are those of one model."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from hypervl.training.together import Modules, Together, threads

_CPU = torch.device("cpu")


def _network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 1))


def _loss(modules: Modules, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return modules["network"](batch).pow(2).mean(), {"mean": batch.mean()}


def _batches(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(6, 2, 4, 4, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_gradient_is_that_of_the_mean_loss(count: int) -> None:
    network, expected = _network(), _network()
    with threads(count, _CPU) as pool:
        together = Together({"network": network}, count, _CPU, pool)
        loss, metrics = together.gradient(_loss, _batches(count))
    mean = torch.stack([_loss({"network": expected}, batch)[0] for batch in _batches(count)]).mean()
    mean.backward()
    assert loss.item() == pytest.approx(mean.item())
    for own, other in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)
    assert [m["mean"].item() for m in metrics] == [batch.mean().item() for batch in _batches(count)]


def test_copies_follow_the_weights_and_gradients_do_not_pile_up() -> None:
    network = _network()
    with threads(2, _CPU) as pool:
        together = Together({"network": network}, 2, _CPU, pool)
        first, _ = together.gradient(_loss, _batches(2))
        gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
        again, _ = together.gradient(_loss, _batches(2))
        assert again.item() == pytest.approx(first.item())
        for own, gradient in zip(network.parameters(), gradients, strict=True):
            torch.testing.assert_close(own.grad, gradient)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
        nothing, _ = together.gradient(_loss, _batches(2))
    assert nothing.item() == 0.0


def test_statistics_are_the_mean_of_the_batches() -> None:
    network, alone = _network(), [_network(), _network()]
    batches = _batches(2)
    with threads(2, _CPU) as pool:
        Together({"network": network}, 2, _CPU, pool).gradient(_loss, batches)
    for one, batch in zip(alone, batches, strict=True):
        one(batch)
    for name in ("running_mean", "running_var"):
        expected = torch.stack([getattr(one[1], name) for one in alone]).mean(0)
        torch.testing.assert_close(getattr(network[1], name), expected)


def test_each_batch_has_a_thread_and_pytorch_gets_its_own_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with threads(2, _CPU) as pool:
            both = threading.Barrier(2)
            waits = [pool.submit(lambda: both.wait(10) >= 0 and torch.get_num_threads()) for _ in range(2)]
            assert [wait.result() for wait in waits] == [2, 2]
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_what_fails_in_a_thread_fails_here() -> None:
    def broken(modules: Modules, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        raise ValueError("no such thing")

    with threads(2, _CPU) as pool, pytest.raises(ValueError, match="no such thing"):
        Together({"network": _network()}, 2, _CPU, pool).gradient(broken, _batches(2))
