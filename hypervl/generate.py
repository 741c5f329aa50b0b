"""The reference: picture and prompt to an answer, in plain PyTorch.

It cuts, routes and lays out with the runtime's own code, and asks the model's own components: what a bundle
answers differently from this is the graphs' doing. Nothing is clever here: the prompt runs in one call, the
cache grows by concatenation, the most likely token is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hypervl.decoder import Decoder, attention_mask, rope_table
from hypervl.model import HyperVL
from hypervl.specs import image_tokens, vision_spec
from rpi_runtime.images import Picture, Source, open_image
from rpi_runtime.manifest import VisionSpec
from rpi_runtime.prompt import ImagePlan, Message, Prompt, TokenRun, layout, tokenise
from rpi_runtime.routing import Routing, choose_branch, route
from rpi_runtime.tiling import Grid, cut, tile_picture
from rpi_runtime.tokenizer import TextCodec


@dataclass(frozen=True)
class Reference:
    """What the model answers, and what it was fed."""

    text: str
    token_ids: tuple[int, ...]  # of the answer, without the token that ended it
    ended: bool  # the model ended the answer itself, before the limit
    plans: tuple[ImagePlan, ...]  # one per picture
    prompt: Prompt


@torch.no_grad()
def generate(
    model: HyperVL,
    codec: TextCodec,
    images: Sequence[Source],
    prompt: str | Sequence[Message],
    *,
    routing: str = "tile",
    branch: str = "base",
    max_new_tokens: int = 64,
    tile_sides: Sequence[int] = (),
) -> Reference:
    """Answers `prompt` about `images`, greedily.

    `prompt` is a question of the user, with all pictures before it, or whole messages with their places.
    `routing` is "tile", "image" or "fixed:<scale>"; `branch` "base", "large" or "auto". `tile_sides` (px,
    descending) are the sides that a bundle was exported for; empty takes the config's.

    Raises `UsageError` for an unknown routing or branch, `ImageError` for a picture that cannot be read.
    """
    messages = [Message("user", prompt, len(images))] if isinstance(prompt, str) else prompt
    spec = vision_spec(model.config, tile_sides)
    encoded = [
        encode_picture(model, open_image(image), spec, Routing.parse(routing), branch) for image in images
    ]
    plans = tuple(plan for plan, _ in encoded)
    spellings = image_tokens(model.config)
    laid_out = layout(tokenise(codec, messages), plans, codec, spellings, spec.tokens)
    embeddings = embed_prompt(model.decoder, laid_out, [tokens for _, tokens in encoded])

    cache = Cache(model.decoder)
    answer = tuple(answer_tokens(cache, cache.feed(embeddings), codec, max_new_tokens))
    return Reference(codec.decode(answer), answer, len(answer) < max_new_tokens, plans, laid_out)


def answer_tokens(cache: Cache, logits: Tensor, codec: TextCodec, most: int) -> Iterator[int]:
    """The most likely tokens behind what `cache` holds, whose last `logits` these are, up to the token
    that ends the answer, and at most `most`."""
    for number in range(1, most + 1):
        # Ids behind the tokenizer's last one only pad the head.
        token = int(np.argmax(logits[: codec.vocab_size].numpy()))
        if token in codec.eos_token_ids:
            return
        yield token
        if number < most:
            logits = cache.feed(cache.decoder.embed_tokens(torch.tensor([[token]])))


def encode_picture(
    model: HyperVL, picture: Picture, spec: VisionSpec, routing: Routing, policy: str
) -> tuple[ImagePlan, list[Tensor]]:
    """How `picture` is cut and routed, and the visual tokens [1, tokens, hidden] of each of its tiles."""
    grid: Grid = tile_picture(picture, spec)
    routed = route(picture, grid, spec, routing, lambda view: model.vrc(torch.from_numpy(view)).numpy())
    branch = choose_branch(policy, routed.grid_sides, spec, ("base", "large"))
    thumbnail = grid.tiles[-1].is_thumbnail
    plan = ImagePlan(picture.digest, branch, grid.columns, grid.rows, routed.sides, thumbnail)
    encoder = model.vision(branch)
    tiles = zip(grid.tiles, routed.sides, strict=True)
    return plan, [encoder(torch.from_numpy(cut(picture, tile, side))) for tile, side in tiles]


def embed_prompt(decoder: Decoder, prompt: Prompt, visual_tokens: Sequence[Sequence[Tensor]]) -> Tensor:
    """The prompt as the decoder reads it: [1, tokens, hidden]."""
    pieces = [
        decoder.embed_tokens(torch.tensor([run.ids]))
        if isinstance(run, TokenRun)
        else visual_tokens[run.image][run.tile][:, run.start : run.start + run.tokens]
        for run in prompt.runs
    ]
    return torch.cat(pieces, dim=1)


class Cache:
    """Keys and values of everything fed so far."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._kv: list[Tensor] = []  # k0, v0, k1, ..., each [1, kv_heads, tokens, head_dim]
        self.tokens = 0

    def feed(self, embeddings: Tensor) -> Tensor:
        """Runs `embeddings` [1, T, hidden] behind what was fed before; logits [vocab] of the last of them."""
        # Logits are wanted for the last token only: for a long prompt, all of them would be gigabytes.
        if embeddings.shape[1] > 1:
            self._run(embeddings[:, :-1], want_logits=False)
        logits = self._run(embeddings[:, -1:], want_logits=True)
        assert logits is not None
        return logits[0, -1]

    def _run(self, embeddings: Tensor, want_logits: bool) -> Tensor | None:
        count, config = embeddings.shape[1], self.decoder.config
        positions = torch.arange(self.tokens, self.tokens + count)
        logits, new = self.decoder(
            embeddings,
            *rope_table(positions, config.head_dim, config.rope_theta),
            attention_mask(count, cached=self.tokens, slots=self.tokens),
            self._kv or self.decoder.empty_kv(),
            want_logits,
        )
        self._kv = [torch.cat(pair, dim=2) for pair in zip(self._kv, new, strict=True)] if self._kv else new
        self.tokens += count
        return logits
