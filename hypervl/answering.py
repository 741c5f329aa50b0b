"""The reference, asked many questions about one picture: what `generate` answers, in a fraction of the time.

The picture is encoded once, and everything up to its last visual token is fed once; each question then goes
on from a copy of that cache. `generate` stays the definition: tests compare the two.
"""

from __future__ import annotations

import copy
import time
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from hypervl.generate import Cache, answer_tokens, embed_prompt, encode_picture
from hypervl.model import HyperVL
from hypervl.specs import image_tokens
from rpi_runtime.images import open_image
from rpi_runtime.manifest import VisionSpec
from rpi_runtime.prompt import ImagePlan, Message, Position, Prompt, VisualRun, layout, tokenise
from rpi_runtime.routing import Routing
from rpi_runtime.tokenizer import TextCodec
from vqa.evaluate import Reply


class ReferenceAnswerer:
    """An `Answerer` (see `vqa.evaluate`) in plain PyTorch: greedy, with the pictures before the question."""

    def __init__(
        self,
        model: HyperVL,
        codec: TextCodec,
        spec: VisionSpec,
        routing: Routing,
        branch: str,
        max_new_tokens: int,
    ) -> None:
        self._model = model
        self._codec = codec
        self._spec = spec
        self._routing = routing
        self._branch = branch
        self._max_new_tokens = max_new_tokens
        self._image = Path()
        self._seen: tuple[ImagePlan, list[Tensor]] | None = None  # the picture and its visual tokens
        self._held: list[Position] = []  # what `_prefix` was fed
        self._prefix = Cache(model.decoder)

    def look_at(self, image: Path) -> None:
        self._image, self._seen, self._held = image, None, []

    @torch.no_grad()
    def ask(self, question: str) -> Reply:
        started = time.perf_counter()
        if self._seen is None:
            picture = open_image(self._image)
            self._seen = encode_picture(self._model, picture, self._spec, self._routing, self._branch)
        plan, _ = self._seen
        spellings = image_tokens(self._model.config)
        items = tokenise(self._codec, [Message("user", question, 1)])
        prompt = layout(items, (plan,), self._codec, spellings, self._spec.tokens)
        cache = self._behind_picture(prompt)
        logits = cache.feed(self._embedded(Prompt(prompt.after(cache.tokens))))
        tokens = answer_tokens(cache, logits, self._codec, self._max_new_tokens)
        answer = list(islice(tokens, 1))
        first_token_ms = _ms_since(started)
        answer += tokens
        return Reply(
            text=self._codec.decode(answer),
            visual_tokens=prompt.visual_tokens,
            visual_tokens_unrouted=len(plan.sides) * self._spec.tokens(self._spec.tile_sides[0]),
            new_tokens=len(answer),
            first_token_ms=first_token_ms,
            answer_ms=_ms_since(started),
        )

    def close(self) -> None:
        """Nothing is held open."""

    def _behind_picture(self, prompt: Prompt) -> Cache:
        """A cache that holds `prompt` up to its last visual token."""
        runs = prompt.runs
        last = max(i for i, run in enumerate(runs) if isinstance(run, VisualRun))
        prefix = Prompt(runs[: last + 1])
        if prefix.positions() != self._held:
            self._prefix = Cache(self._model.decoder)
            self._prefix.feed(self._embedded(prefix))
            self._held = prefix.positions()
        # Feeding makes new tensors and leaves the old ones as they are, so the two may share what they hold.
        return copy.copy(self._prefix)

    def _embedded(self, prompt: Prompt) -> Tensor:
        assert self._seen is not None
        return embed_prompt(self._model.decoder, prompt, [self._seen[1]])


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1e3
