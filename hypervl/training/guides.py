"""What shows a decoder early where to look, and what it sees there.

To answer, a decoder must find the visual tokens that show what is asked for among hundreds, and take from
them what they say. From answers alone a small one learns that last of all: after 5,700 batches of pictures
its heads laid a quarter of their attention on the right tokens. The generator knows which they are, so some
heads of one layer are told, and what leaves that layer must tell the facts of the element.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hypervl.config import DecoderConfig
from hypervl.training.answer_data import AnswerBatch
from hypervl.training.answers import sees
from hypervl.training.targets import FIELDS, IGNORE, VALUE_CHARACTERS

POINTING_WEIGHT, FACTS_WEIGHT = 0.5, 0.3
_FAR = -1e4  # a score that counts for nothing
# What holds for an element as a whole, and how much of the loss each field is.
_WEIGHTS = {
    field: 1 / VALUE_CHARACTERS if field.startswith("value_") else 0.25
    for field in FIELDS
    if not field.startswith("read_") and field not in ("middle", "place")
}


class Guide(nn.Module):
    """Reads the facts of an element off the decoder; thrown away after training."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.layer = config.num_hidden_layers // 2  # before it the question is read, after it the answer told
        self.facts = nn.Linear(config.hidden_size, sum(FIELDS.values()))


class Overheard:
    """What the guided layer does with one batch; pass `hear` to `read_answers`."""

    def __init__(self, guide: Guide, batch: AnswerBatch) -> None:
        self._guide, self._batch = guide, batch
        self._queries = self._keys = self._after = torch.empty(0)

    def hear(self, layer: int, queries: Tensor, keys: Tensor, after: Tensor) -> None:
        if layer == self._guide.layer:
            group = queries.shape[1] // keys.shape[1]
            self._queries, self._keys, self._after = queries[:, :group], keys[:, 0], after

    def losses(self) -> dict[str, Tensor]:
        """ "pointing", and "facts": cross-entropy of what the element shows; weighted. Means over tokens of
        answers."""
        return {"pointing": self.pointing(), "facts": FACTS_WEIGHT * self._facts()}

    def pointing(self) -> Tensor:
        """-log of the attention that the first group of heads lays on the tokens to be found; weighted."""
        batch, device = self._batch, self._queries.device
        visible = sees(torch.from_numpy(batch.segment).to(device))
        found: list[Tensor] = []
        for row in np.unique(batch.points[:, 0]):
            _, segments, columns = batch.points[batch.points[:, 0] == row].T
            wanted = np.zeros((batch.segment.max() + 1, batch.segment.shape[1]), bool)
            wanted[segments, columns] = True
            answers = np.flatnonzero((batch.target[row] != IGNORE) & np.isin(batch.segment[row], segments))
            right = torch.from_numpy(wanted[batch.segment[row, answers]]).to(device)
            rows = torch.from_numpy(answers).to(device)
            scores = self._queries[row][:, rows] @ self._keys[row].T * self._keys.shape[-1] ** -0.5
            log_p = scores.float().masked_fill(~visible[row, rows], _FAR).log_softmax(-1)
            found.append(torch.logsumexp(log_p.masked_fill(~right, _FAR), -1).flatten())
        return -POINTING_WEIGHT * torch.cat(found).mean() if found else self._after.new_zeros(())

    def _facts(self) -> Tensor:
        batch = self._batch
        # The first of the tokens that show a question's subject; two subjects have no facts in common.
        _, first = np.unique(batch.points[:, :2], axis=0, return_index=True)
        known = {
            (int(row), int(segment)): fact
            for (row, segment, _), fact in zip(batch.points[first], batch.facts[first], strict=True)
            if len(batch.questions[row][segment - 1].subjects) == 1
        }
        at = [
            (row, column)
            for row, column in np.argwhere(batch.target != IGNORE).tolist()
            if (row, int(batch.segment[row, column])) in known
        ]
        loss = self._after.new_zeros(())
        if not at:
            return loss
        rows, columns = (torch.tensor(index) for index in zip(*at, strict=True))
        wanted = np.stack([known[row, int(batch.segment[row, column])] for row, column in at])
        targets = torch.from_numpy(wanted).to(loss.device).long()
        states = self._after[rows, columns]
        states = F.rms_norm(states, states.shape[-1:])
        for i, (field, scores) in enumerate(
            zip(FIELDS, self._guide.facts(states).split(tuple(FIELDS.values()), -1), strict=True)
        ):
            if field in _WEIGHTS and bool((targets[:, i] != IGNORE).any()):
                one = F.cross_entropy(scores.float(), targets[:, i], ignore_index=IGNORE)
                loss = loss + 2 * _WEIGHTS[field] * one
        return loss
