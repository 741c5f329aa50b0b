"""An experiment: a router that also sees the question. It is measured and not exported.

A tile must be read for one question and may be blurred for another; a router that does not know the question
has to serve all of them. How much that costs is the difference between the two, on the same pictures. Here a
trained VRC's pooled features and the mean of the question's token embeddings go through a small MLP, which
learns the labels of each question by itself. The VRC and the embeddings stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hypervl.training.answer_loss import FrozenModel, Losses, Sides
from hypervl.training.loss_file import AskedPicture
from hypervl.training.vrc_evaluation import Measured, routed_by
from hypervl.training.vrc_labels import Rule, classes, label_tiles, routed_sides
from hypervl.training.vrc_report import QuestionTrial
from hypervl.training.vrc_trial import Trials
from hypervl.vrc import VRC
from rpi_runtime.routing import side_for

_WIDTH, _BATCH, _EPOCHS, _PATIENCE, _LEARNING_RATE = 64, 512, 60, 10, 1e-3


class QuestionVRC(nn.Module):
    """`pooled` [N, head channels] and `question` [N, decoder hidden] -> logits [N, scales]."""

    def __init__(self, channels: int, hidden: int, scales: int) -> None:
        super().__init__()
        self.view = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, _WIDTH))
        self.question = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, _WIDTH))
        self.mlp = nn.Sequential(nn.Linear(2 * _WIDTH, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, scales))

    def forward(self, pooled: Tensor, question: Tensor) -> Tensor:
        both = F.relu(torch.cat([self.view(pooled), self.question(question)], dim=1))
        logits: Tensor = self.mlp(both)
        return logits


@dataclass(frozen=True)
class AskedViews:
    """Every view of some pictures with every question about them."""

    pooled: Tensor  # [N, head channels]
    question: Tensor  # [N, decoder hidden]
    labels: Tensor  # [N] int64, class of the scale


def try_question_vrc(trials: Trials, frozen: FrozenModel, vrc: VRC, rule: Rule) -> QuestionTrial:
    """Trains on the training pictures of `trials` and measures on its validation pictures."""
    labels = {p.key: _question_labels(trials, p, rule) for p in (*trials.training, *trials.validation)}
    training = _asked(trials, frozen, vrc, trials.training, labels)
    validation = _asked(trials, frozen, vrc, trials.validation, labels)
    router = train_router(training, validation, len(trials.spec.scales), trials.settings.seed)
    with torch.no_grad():
        predicted = router(validation.pooled, validation.question).argmax(dim=1)
        plain = vrc.linear_2(F.relu6(vrc.linear_1(validation.pooled))).argmax(dim=1)
    rows = iter(predicted.tolist())
    routed = {
        (picture.key, question): tuple(
            side_for(trials.spec.scales[next(rows)], trials.spec) for _ in picture.grid.tiles
        )
        for picture in trials.validation
        for question in range(len(picture.questions))
    }
    route = routed_by(vrc, trials.spec, "tile")
    routed_plain = {picture.key: route(picture) for picture in trials.validation}
    return QuestionTrial(
        accuracy=(predicted == validation.labels).double().mean().item(),
        accuracy_plain=(plain == validation.labels).double().mean().item(),
        with_question=_measure(trials, lambda picture, i: routed[picture.key, i]),
        plain=_measure(trials, lambda picture, i: routed_plain[picture.key]),
        ideal=_measure(trials, lambda picture, i: labels[picture.key][i]),
    )


def _question_labels(trials: Trials, picture: AskedPicture, rule: Rule) -> list[Sides]:
    """The sides that each question needs, as if it were the only one."""

    def sides_for(question: int) -> Sides:
        def measure(sides: Sides) -> Losses:
            return (trials.losses.losses(picture, sides)[question],)

        return label_tiles(measure, picture.grid, routed_sides(trials.spec), rule).sides

    return [sides_for(question) for question in range(len(picture.questions))]


@torch.no_grad()
def _asked(
    trials: Trials,
    frozen: FrozenModel,
    vrc: VRC,
    pictures: Sequence[AskedPicture],
    labels: dict[str, list[Sides]],
) -> AskedViews:
    """Picture by picture, question by question, tile by tile."""
    views = torch.from_numpy(np.array(trials.views(pictures)))
    pooled = torch.cat([vrc.features(part.float() / 255).mean((2, 3)) for part in views.split(256)])
    embed = frozen.model.decoder.embed_tokens.weight
    rows: list[int] = []
    questions: list[Tensor] = []
    wanted: list[int] = []
    first = 0
    for picture in pictures:
        tiles = len(picture.grid.tiles)
        for question, sides in zip(picture.questions, labels[picture.key], strict=True):
            ids = torch.tensor(frozen.codec.encode(question.text, continues=True), device=embed.device)
            questions.append(embed[ids].mean(dim=0).float().cpu().expand(tiles, -1))
            rows += range(first, first + tiles)
            wanted += classes(sides, trials.spec)
        first += tiles
    return AskedViews(pooled[rows], torch.cat(questions), torch.tensor(wanted))


def train_router(training: AskedViews, validation: AskedViews, scales: int, seed: int) -> QuestionVRC:
    """On the CPU: features are all there is to compute with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        router = QuestionVRC(training.pooled.shape[1], training.question.shape[1], scales)
        optimizer = torch.optim.AdamW(router.parameters(), lr=_LEARNING_RATE)
        best, least, since = router.state_dict(), float("inf"), 0
        for _ in range(_EPOCHS):
            for rows in torch.randperm(len(training.labels)).split(_BATCH):
                loss = F.cross_entropy(
                    router(training.pooled[rows], training.question[rows]), training.labels[rows]
                )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                logits = router(validation.pooled, validation.question)
                reached = F.cross_entropy(logits, validation.labels).item()
            since += 1
            if reached < least:
                best, least, since = {k: v.clone() for k, v in router.state_dict().items()}, reached, 0
            if since == _PATIENCE:
                break
    router.load_state_dict(best)
    return router


def _measure(trials: Trials, choose: Callable[[AskedPicture, int], Sides]) -> Measured:
    """As `vrc_evaluation.evaluate`, with sides for each question of a picture."""
    found: list[float] = []
    full: list[float] = []
    tokens = tokens_full = 0
    for done, picture in enumerate(trials.validation, 1):
        whole = (trials.spec.tile_sides[0],) * len(picture.grid.tiles)
        for question in range(len(picture.questions)):
            sides = choose(picture, question)
            found.append(trials.losses.losses(picture, sides)[question])
            full.append(trials.losses.losses(picture, whole)[question])
            tokens += sum(map(trials.spec.tokens, sides))
            tokens_full += sum(map(trials.spec.tokens, whole))
        trials.on_progress("measuring questions", done, len(trials.validation))
    return Measured(sum(found) / len(found), sum(full) / len(full), tokens / tokens_full, len(found))
