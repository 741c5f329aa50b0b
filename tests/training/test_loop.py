"""The training loop: exact resume, levels, rates, and what is left alone."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hypervl.training.feed import AHEAD
from hypervl.training.loop import Curriculum, Schedule, Step, Task, train
from hypervl.training.together import Modules

_STEPS = 24


@dataclass
class _Numbers:
    """Batches that hang on their number and level; notes which were made."""

    made: list[tuple[int, int]] = field(default_factory=list)

    def build(self, number: int, level: int) -> Tensor:
        self.made.append((number, level))
        generator = torch.Generator().manual_seed(1000 * level + number)
        return torch.randn(8, 4, generator=generator)


def _task(source: _Numbers, schedule: Schedule | None = None, **options: object) -> Task:
    """A line through noise; the metric "right" is high for some batches and low for the others."""
    torch.manual_seed(7)
    model, still = nn.Linear(4, 1), nn.Linear(4, 4)

    def loss(modules: Modules, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        right = torch.tensor(0.9 if batch.mean() > 0.1 else 0.1)
        error = modules["model"](modules["still"](batch)) - batch.sum(1, keepdim=True)
        return error.pow(2).mean(), {"right": right}

    modules = {"model": model, "still": still}
    schedule = schedule or Schedule(_STEPS, 1e-2, 1e-2, warmup=4)
    return Task("tiny", modules, source, loss, schedule, frozen=("still",), **options)  # type: ignore[arg-type]


def _weights(task: Task) -> list[Tensor]:
    return [tensor.clone() for module in task.modules.values() for tensor in module.state_dict().values()]


@pytest.mark.parametrize(("stops", "batches"), [((1,), 1), ((9, 10), 2), ((5, 17, 23), 1)])
def test_a_run_that_was_stopped_and_goes_on_gives_the_numbers_of_one_that_was_not(
    stops: tuple[int, ...], batches: int, tmp_path: Path
) -> None:
    rising = Curriculum("right", (0.05, 0.09), settle_steps=2)
    schedule = Schedule(_STEPS, 1e-2, 1e-2, warmup=4, batches=batches)
    whole_source, source = _Numbers(), _Numbers()
    whole = _task(whole_source, schedule, curriculum=rising)
    expected = train(whole, tmp_path / "whole")
    for until in (*stops, None):
        parts = _task(source, schedule, curriculum=rising)  # as a new process makes it
        outcome = train(parts, tmp_path / "parts", until=until)
    for one, other in zip(_weights(whole), _weights(parts), strict=True):
        assert torch.equal(one, other)
    assert source.made == whole_source.made
    assert outcome.history[-1] == expected.history[-1]
    assert {level for _, level in source.made} == {0, 1, 2}


def test_levels_rise_when_the_metric_passes_and_never_within_what_may_be_in_the_making(
    tmp_path: Path,
) -> None:
    source = _Numbers()
    outcome = train(_task(source, curriculum=Curriculum("right", (0.05,), settle_steps=3)), tmp_path)
    first = 3 + AHEAD
    assert source.made == [(number, 1 if number >= first else 0) for number in range(_STEPS)]
    assert outcome.history[-1]["level"] == 1


def test_without_thresholds_the_first_level_stays(tmp_path: Path) -> None:
    source = _Numbers()
    train(_task(source, first_level=2), tmp_path)
    assert source.made == [(number, 2) for number in range(_STEPS)]


def test_what_is_frozen_is_saved_and_not_trained(tmp_path: Path) -> None:
    task = _task(_Numbers())
    model, still = (
        [t.clone() for t in task.modules[name].state_dict().values()] for name in ("model", "still")
    )
    train(task, tmp_path)
    assert all(map(torch.equal, still, task.modules["still"].state_dict().values()))
    assert not any(map(torch.equal, model, task.modules["model"].state_dict().values()))
    loaded = {"model": nn.Linear(4, 1), "still": nn.Linear(4, 4)}
    saved = torch.load(tmp_path / "tiny.state.pt", weights_only=True)["modules"]
    for name, module in loaded.items():
        module.load_state_dict(saved[name])
        assert torch.equal(module.weight, task.modules[name].weight)


def test_a_run_that_is_done_does_nothing_more(tmp_path: Path) -> None:
    first = _task(_Numbers())
    done = train(first, tmp_path)
    source = _Numbers()
    again = _task(source)
    assert train(again, tmp_path).history == done.history
    assert source.made == []
    assert all(map(torch.equal, _weights(first), _weights(again)))


def test_listeners_hear_every_twentieth_step_and_the_last(tmp_path: Path) -> None:
    heard: list[Step] = []
    outcome = train(_task(_Numbers()), tmp_path, on_step=heard.append)
    assert [step.step for step in heard] == [20, _STEPS]
    assert [entry["step"] for entry in outcome.history] == [20, _STEPS]
    assert heard[-1].metrics.keys() == {"loss", "right"}
    assert json.loads((tmp_path / "tiny.history.json").read_text()) == list(outcome.history)


def test_the_rate_rises_to_its_highest_and_falls_to_its_floor() -> None:
    schedule = Schedule(steps=1000, rate=2.0, warmup=10, floor=0.05)
    shares = [schedule.share_at(step) for step in range(1001)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9] == max(shares) == pytest.approx(1.0, rel=1e-3)
    assert all(a > b for a, b in pairwise(shares[9:]))
    assert shares[500] == pytest.approx(0.05 + 0.95 / 2)
    assert shares[1000] == schedule.share_at(5000) == pytest.approx(0.05)


def test_both_rates_follow_the_schedule(tmp_path: Path) -> None:
    """At a rate of 0 nothing moves; the matrix moves at the other."""
    task = _task(_Numbers(), Schedule(_STEPS, rate=0.0, matrix_rate=0.01, weight_decay=0.0))
    before = {name: value.clone() for name, value in task.modules["model"].state_dict().items()}
    train(task, tmp_path)
    after = task.modules["model"].state_dict()
    assert torch.equal(before["bias"], after["bias"])
    # A matrix of one row is turned into one of length 1: its steps add up to the shares of the rate.
    path = sum(task.schedule.share_at(step) for step in range(_STEPS)) * 0.01 * 0.2 * 4**0.5
    assert 0 < float((after["weight"] - before["weight"]).norm()) < 1.2 * path


def test_a_run_that_goes_on_takes_its_rates_from_the_schedule_it_is_given(tmp_path: Path) -> None:
    train(_task(_Numbers()), tmp_path, until=8)
    resting = _task(_Numbers(), Schedule(_STEPS, rate=0.0, matrix_rate=0.0001, weight_decay=0.0))
    train(resting, tmp_path, until=8)  # nothing but what lies in the folder
    bias = resting.modules["model"].state_dict()["bias"].clone()
    train(resting, tmp_path)
    assert torch.equal(resting.modules["model"].state_dict()["bias"], bias)


def test_a_metric_of_nothing_leaves_its_mean_as_it_was(tmp_path: Path) -> None:
    task = _task(_Numbers())

    def sometimes(modules: Modules, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        value, _ = task.loss(modules, batch)
        return value, {"right": torch.tensor(1.0 if batch.mean() > 0 else float("nan"))}

    outcome = train(replace(task, loss=sometimes), tmp_path)
    assert outcome.history[-1]["right"] == 1.0


def test_norms_that_rest_keep_their_statistics(tmp_path: Path) -> None:
    norm = nn.BatchNorm2d(4)

    def loss(modules: Modules, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return modules["norm"](batch.reshape(8, 4, 1, 1)).pow(2).mean(), {}

    task = replace(_task(_Numbers()), modules={"norm": norm}, loss=loss, frozen=(), rest_norms=True)
    train(task, tmp_path)
    assert torch.equal(norm.running_mean, torch.zeros(4))
    assert not torch.equal(norm.bias, torch.zeros(4)) or not torch.equal(norm.weight, torch.ones(4))
