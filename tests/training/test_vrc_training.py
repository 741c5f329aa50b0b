"""Training a VRC: what is learned, and how a stopped training goes on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from hypervl.model import build
from hypervl.training.vrc_training import Epoch, Samples, TrainSettings, augmented, predict, train
from hypervl.vrc import VRC
from rpi_runtime.errors import UsageError
from tests.training.vrc_samples import CONFIG, blank_or_textured

CPU = torch.device("cpu")
SHORT = TrainSettings(epochs=2, batch_views=8)


def fresh() -> VRC:
    vrc = build(CONFIG, seed=1).vrc
    assert isinstance(vrc, VRC)
    return vrc


def same(one: VRC, other: VRC) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_it_learns_to_tell_blank_tiles_from_textured_ones() -> None:
    vrc = fresh()
    settings = TrainSettings(epochs=10, batch_views=32)
    history = train(vrc, blank_or_textured(256, 0), blank_or_textured(64, 1), settings, device=CPU)
    unseen = blank_or_textured(200, 2)
    assert (predict(vrc, unseen.views) == unseen.labels).mean() >= 0.97
    assert history.steps == 8 * len(history.epochs)
    assert history.epochs[history.best].validation_loss == min(e.validation_loss for e in history.epochs)


def test_a_resumed_training_ends_with_the_bits_of_an_uninterrupted_one(tmp_path: Path) -> None:
    data, validation = blank_or_textured(64, 0), blank_or_textured(16, 1)
    settings = TrainSettings(epochs=4, batch_views=16)
    whole = fresh()
    history = train(whole, data, validation, settings, device=CPU)

    class Stopped(Exception):
        pass

    def stop(done: int, total: int, epoch: Epoch) -> None:
        if done == 2:
            raise Stopped

    state = tmp_path / "state.pt"
    with pytest.raises(Stopped):
        train(fresh(), data, validation, settings, device=CPU, state=state, on_epoch=stop)
    resumed, shown = fresh(), []
    again = train(
        resumed,
        data,
        validation,
        settings,
        device=CPU,
        state=state,
        on_epoch=lambda done, total, epoch: shown.append(done),
    )
    assert shown == [3, 4]
    assert again == history
    assert same(resumed, whole)


def test_the_same_seed_gives_the_same_weights_and_another_one_others() -> None:
    data, validation = blank_or_textured(32, 0), blank_or_textured(8, 1)
    trained = []
    for seed in (1, 1, 2):
        trained.append(fresh())
        train(trained[-1], data, validation, dataclasses.replace(SHORT, seed=seed), device=CPU)
    assert same(trained[0], trained[1])
    assert not same(trained[0], trained[2])


def test_it_stops_when_validation_no_longer_improves_and_keeps_the_best() -> None:
    data = blank_or_textured(32, 0)
    contrary = blank_or_textured(16, 1)
    contrary = Samples(contrary.views, 2 - contrary.labels, contrary.soft[:, [2, 1, 0, 3]])
    settings = TrainSettings(epochs=40, batch_views=8, patience_epochs=2)
    vrc = fresh()
    history = train(vrc, data, contrary, settings, device=CPU)
    assert len(history.epochs) == history.best + 1 + 2 < 40


@pytest.mark.parametrize(("caution", "chosen"), [(4.0, 2), (0.25, 0)])
def test_caution_decides_what_becomes_of_doubtful_tiles(caution: float, chosen: int) -> None:
    """Views that say nothing of their label, half of them small and half of them full."""
    views = np.full((64, 32, 32, 3), 90, np.uint8)
    labels = np.tile(np.array([0, 2], np.int64), 32)
    doubtful = Samples(views, labels, np.eye(4, dtype=np.float32)[labels])
    vrc = fresh()
    settings = TrainSettings(epochs=10, batch_views=16, caution=caution)
    train(vrc, doubtful, doubtful, settings, device=CPU)
    assert set(predict(vrc, views[:4])) == {chosen}


def test_evaluation_uses_statistics_of_the_weights_as_they_are() -> None:
    """After a few steps EfficientNet's moving averages would still be those of the start."""
    vrc, data = fresh(), blank_or_textured(64, 0)
    train(vrc, data, blank_or_textured(16, 1), TrainSettings(epochs=1, batch_views=64), device=CPU)
    pictures = torch.from_numpy(data.views).float() / 255
    with torch.no_grad():
        evaluated = vrc(pictures)
        trained = vrc.train()(pictures)
    assert torch.allclose(evaluated, trained, atol=0.05)
    assert vrc.stem.norm.momentum == 0.01


def test_augmented_views_stay_pictures_and_keep_their_place() -> None:
    views = torch.rand(16, 32, 32, 3)
    views[:, :, 16:] = 1
    changed = augmented(views, torch.Generator().manual_seed(0))
    assert changed.shape == views.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert (changed[:, :, 20:].mean((1, 2, 3)) > changed[:, :, :12].mean((1, 2, 3))).all()


def test_too_few_views_are_refused() -> None:
    with pytest.raises(UsageError, match="4 views to train on"):
        train(fresh(), blank_or_textured(4, 0), blank_or_textured(4, 1), SHORT, device=CPU)
