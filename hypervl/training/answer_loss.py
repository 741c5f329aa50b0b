"""How well a frozen model answers: the cross-entropy of known answers, given a picture at chosen tile sides.

It cuts and lays out with the runtime's own code, as `hypervl.generate` does. What makes thousands of passes
over one picture affordable:
- a tile is encoded once per side, however many passes use it;
- all questions of a picture go through the decoder in one call behind their common prefix. The mask is an
  input, so each question sees the prefix and itself, and nothing of its neighbours;
- keys and values of the prefix with every tile at the full side are kept, and a pass takes over what precedes
  the first tile that differs. The result depends on the sides alone, never on what was asked before.

Everything is float32, on a GPU too: the losses that are compared differ by a few per cent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from hypervl.decoder import MASKED, attention_mask, rope_table
from hypervl.model import HyperVL
from hypervl.specs import image_tokens, vision_spec
from rpi_runtime.images import Picture
from rpi_runtime.manifest import VisionSpec
from rpi_runtime.prompt import ImagePlan, Message, Position, Prompt, Run, TokenRun, layout, tokenise
from rpi_runtime.tiling import cut, tile_picture
from rpi_runtime.tokenizer import TextCodec
from vqa.dataset import Question

Sides = tuple[int, ...]  # px of each tile: the grid row by row, then the thumbnail if there is one
Losses = tuple[float, ...]  # nats per answer token, one per question

_PACKED_TOKENS = 512  # of questions that share a call, at most: their mask grows with the square
_DECIMALS = 6  # of a loss; as many as a file of losses keeps


@dataclass(frozen=True)
class FrozenModel:
    """A model that is asked and not trained, with one of its branches, on one device."""

    model: HyperVL
    codec: TextCodec
    branch: str  # "base" or "large"
    device: torch.device

    @property
    def spec(self) -> VisionSpec:
        return vision_spec(self.model.config)


class AnswerLosses:
    """One picture and its questions; `at(sides)` is the loss of each answer.

    Raises `ImageError` for a picture that cannot be decoded.
    """

    def __init__(self, frozen: FrozenModel, picture: Picture, questions: Sequence[Question]) -> None:
        self._frozen, self._picture, self._spec = frozen, picture, frozen.spec
        self._grid = tile_picture(picture, self._spec)
        codec = frozen.codec
        self._items = [tokenise(codec, [Message("user", q.text, images=1)]) for q in questions]
        self._answers = [codec.encode(q.answer, continues=True) for q in questions]
        self._tokens: dict[tuple[int, int], Tensor] = {}  # (tile, side) -> [1, tokens, hidden]
        self._full_prefix: tuple[list[Position], list[Tensor]] | None = None

    @torch.no_grad()
    def at(self, sides: Sides) -> Losses:
        """Mean cross-entropy of each answer's tokens and of its end, with tile i encoded at `sides[i]` px.

        The end is met by any of the tokens that end an answer. Ids that only pad the head are left out.
        """
        with _new_tensors_on(self._frozen.device):
            prompts = self._prompts(sides)
            shared = _shared_positions(prompts)
            kv = self._prefix(prompts[0], shared)
            losses: list[float] = []
            for pack in self._packs(prompts, shared):
                losses += self._pack_losses(pack, shared, kv)
        return tuple(losses)

    def _prompts(self, sides: Sides) -> list[Prompt]:
        grid, frozen = self._grid, self._frozen
        plan = ImagePlan(
            self._picture.digest,
            frozen.branch,
            grid.columns,
            grid.rows,
            sides,
            grid.tiles[-1].is_thumbnail,
        )
        spellings = image_tokens(frozen.model.config)
        return [layout(items, (plan,), frozen.codec, spellings, self._spec.tokens) for items in self._items]

    def _prefix(self, prompt: Prompt, shared: int) -> list[Tensor]:
        """Keys and values of the first `shared` positions of `prompt`."""
        positions = prompt.positions()[:shared]
        if self._full_prefix is None:
            full = self._prompts((self._spec.tile_sides[0],) * len(self._grid.tiles))
            end = _shared_positions(full)
            empty = self._frozen.model.decoder.empty_kv()
            self._full_prefix = (full[0].positions()[:end], self._extended(full[0], 0, end, empty))
        held, kv = self._full_prefix
        reused = _equal_from_start(held, positions)
        return self._extended(prompt, reused, shared, [part[:, :, :reused] for part in kv])

    def _extended(self, prompt: Prompt, start: int, end: int, kv: list[Tensor]) -> list[Tensor]:
        """`kv` of the first `start` positions, extended to the first `end`."""
        if start == end:
            return kv
        embeddings = self._embed(prompt.after(start))[:, : end - start]
        mask = attention_mask(end - start, cached=start, slots=start)
        _, new = self._decode(embeddings, torch.arange(start, end), mask, kv, want_logits=False)
        return [torch.cat(pair, dim=2) for pair in zip(kv, new, strict=True)] if start else new

    def _packs(self, prompts: Sequence[Prompt], shared: int) -> Iterator[list[tuple[Tensor, list[int]]]]:
        """What follows the prefix for each question, [1, tokens, hidden] with its answer's ids, in packs."""
        pack: list[tuple[Tensor, list[int]]] = []
        size = 0
        for prompt, answer in zip(prompts, self._answers, strict=True):
            embeddings = self._embed((*prompt.after(shared), TokenRun(tuple(answer))))
            if pack and size + embeddings.shape[1] > _PACKED_TOKENS:
                yield pack
                pack, size = [], 0
            pack.append((embeddings, answer))
            size += embeddings.shape[1]
        yield pack

    def _pack_losses(
        self, pack: Sequence[tuple[Tensor, list[int]]], shared: int, kv: list[Tensor]
    ) -> Iterator[float]:
        lengths = [embeddings.shape[1] for embeddings, _ in pack]
        positions = torch.cat([torch.arange(shared, shared + length) for length in lengths])
        embeddings = torch.cat([embeddings for embeddings, _ in pack], dim=1)
        logits, _ = self._decode(embeddings, positions, packed_mask(lengths, shared), kv, want_logits=True)
        assert logits is not None
        ends, end = list(self._frozen.codec.eos_token_ids), 0
        for length, (_, answer) in zip(lengths, pack, strict=True):
            end += length
            # The last token of the prompt predicts the answer's first, the answer's last one its end.
            rows = logits[0, end - len(answer) - 1 : end, : self._frozen.codec.vocab_size]
            log_p = torch.log_softmax(rows.float(), dim=-1)
            terms = [log_p[torch.arange(len(answer)), torch.tensor(answer)]]
            if ends:
                terms.append(torch.logsumexp(log_p[-1:, ends], dim=-1))
            yield round(-torch.cat(terms).mean().item(), _DECIMALS)

    def _decode(
        self, embeddings: Tensor, positions: Tensor, mask: Tensor, kv: list[Tensor], want_logits: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        decoder = self._frozen.model.decoder
        cos, sin = rope_table(positions, decoder.config.head_dim, decoder.config.rope_theta)
        result: tuple[Tensor | None, list[Tensor]] = decoder(embeddings, cos, sin, mask, kv, want_logits)
        return result

    def _embed(self, runs: Sequence[Run]) -> Tensor:
        embed = self._frozen.model.decoder.embed_tokens
        pieces = [
            embed(torch.tensor([run.ids]))
            if isinstance(run, TokenRun)
            else self._encoded(run.tile, run.side)[:, run.start : run.start + run.tokens]
            for run in runs
        ]
        return torch.cat(pieces, dim=1)

    def _encoded(self, tile: int, side: int) -> Tensor:
        if (tile, side) not in self._tokens:
            encoder = self._frozen.model.vision(self._frozen.branch)
            view = torch.from_numpy(cut(self._picture, self._grid.tiles[tile], side))
            self._tokens[tile, side] = encoder(view.to(self._frozen.device))
        return self._tokens[tile, side]


def _new_tensors_on(device: torch.device) -> AbstractContextManager[object]:
    """The CPU needs no telling, and would be asked at every operation."""
    return nullcontext() if device.type == "cpu" else device


def packed_mask(lengths: Sequence[int], shared: int) -> Tensor:
    """Additive mask [1, 1, T, shared + T] of sequences side by side behind one prefix of `shared` positions.

    T is the sum of `lengths`. A token sees the prefix and its own sequence up to itself.
    """
    total, start = sum(lengths), 0
    mask = torch.full((1, 1, total, shared + total), MASKED)
    mask[..., :shared] = 0.0
    for length in lengths:
        columns = slice(shared + start, shared + start + length)
        mask[..., start : start + length, columns] = attention_mask(length)
        start += length
    return mask


def _shared_positions(prompts: Sequence[Prompt]) -> int:
    """How many leading positions all prompts share; never the last of one, whose logits begin the answer."""
    first, *others = (prompt.positions() for prompt in prompts)
    shared = len(first) - 1
    for positions in others:
        shared = min(shared, _equal_from_start(first, positions[:-1]))
    return shared


def _equal_from_start(one: Sequence[Position], other: Sequence[Position]) -> int:
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
