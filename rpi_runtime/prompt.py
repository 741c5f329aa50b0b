"""From messages to what the decoder is fed: token ids, and visual tokens in their places.

Two steps, because the second needs to know how each picture was cut and routed:

1. `tokenise`: messages -> items, each a token id or an `ImageSlot`. Only the chat template writes control
   tokens: a control token that a message merely spells stays text.
2. `layout`: every slot becomes its tiles' visual tokens between their separators. The resulting `Prompt`
   counts positions before anything is encoded, names each position so that a later turn can reuse the KV
   cache, and lists the runs to feed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from rpi_runtime.disguise import Disguise
from rpi_runtime.errors import BundleError, UsageError, nearest
from rpi_runtime.manifest import ImageTokens

if TYPE_CHECKING:
    from rpi_runtime.tokenizer import TextCodec

ROLES = ("system", "user", "assistant", "tool")


class Mark(Enum):
    """`IMAGE` in a message's content: the next picture goes here."""

    IMAGE = "image"


IMAGE = Mark.IMAGE


@dataclass(frozen=True)
class Control:
    """A control token in a message's content that the model itself produced, such as Qwen3's `</think>`.

    `answer_parts` makes these from generated ids. Text that only spells the token is a `str`.
    """

    spelling: str


Part = str | Mark | Control


@dataclass(frozen=True)
class Message:
    """One turn. `images` pictures come before the content, unless the content places them with `IMAGE`.

    `Message("user", "What is this?", images=1)` equals `Message("user", (IMAGE, "What is this?"))`.
    """

    role: str  # one of ROLES
    content: str | tuple[Part, ...]
    images: int = 0

    @property
    def parts(self) -> tuple[Part, ...]:
        content = (self.content,) if isinstance(self.content, str) else self.content
        return (IMAGE,) * self.images + content


@dataclass(frozen=True)
class ImageSlot:
    """The place of one picture; `index` counts the pictures of the whole conversation from 0."""

    index: int


Item = int | ImageSlot


@dataclass(frozen=True)
class ImagePlan:
    """How one picture was cut and routed."""

    digest: str  # of the picture's content, see `images.Picture.digest`
    branch: str  # "base" or "large"
    columns: int
    rows: int
    sides: tuple[
        int, ...
    ]  # px each tile is encoded at: the grid row by row, then the thumbnail if there is one
    thumbnail: bool


@dataclass(frozen=True)
class VisualKey:
    """What one tile's visual tokens are a function of, within one bundle."""

    digest: str
    branch: str
    columns: int
    rows: int
    tile: int
    side: int  # px


Position = int | tuple[VisualKey, int]  # a token id, or one visual token of a tile


@dataclass(frozen=True)
class TokenRun:
    ids: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return len(self.ids)

    def positions(self) -> list[Position]:
        return list(self.ids)

    def after(self, count: int) -> TokenRun:
        return TokenRun(self.ids[count:])


@dataclass(frozen=True)
class VisualRun:
    """Visual tokens `start` to `start + tokens` of one tile (rows of the `visual_tokens` output)."""

    image: int  # index of the slot
    tile: int  # row by row from 0; the thumbnail is last
    side: int  # px
    start: int
    tokens: int
    key: VisualKey

    def positions(self) -> list[Position]:
        return [(self.key, i) for i in range(self.start, self.start + self.tokens)]

    def after(self, count: int) -> VisualRun:
        return replace(self, start=self.start + count, tokens=self.tokens - count)


Run = TokenRun | VisualRun


@dataclass(frozen=True)
class Prompt:
    """A whole prompt, position by position, in runs of one kind. Runs are never empty."""

    runs: tuple[Run, ...]

    @property
    def tokens(self) -> int:
        """Positions in the context, text and visual."""
        return sum(run.tokens for run in self.runs)

    @property
    def visual_tokens(self) -> int:
        return sum(run.tokens for run in self.runs if isinstance(run, VisualRun))

    def positions(self) -> list[Position]:
        """One identity per position: equal identities after equal prefixes have equal keys and values."""
        return [position for run in self.runs for position in run.positions()]

    def reusable(self, held: Sequence[Position]) -> int:
        """How many leading positions a KV cache that holds `held` already has.

        Never all of them: the last position must be fed, because its logits begin the answer.
        """
        wanted = self.positions()
        count = 0
        for have, want in zip(held, wanted[:-1], strict=False):
            if have != want:
                break
            count += 1
        return count

    def after(self, count: int) -> tuple[Run, ...]:
        """The runs that remain to be fed behind the first `count` positions; a run may be cut in two."""
        remaining: list[Run] = []
        for run in self.runs:
            if count < run.tokens:
                remaining.append(run.after(count) if count else run)
            count = max(0, count - run.tokens)
        return tuple(remaining)


def tokenise(
    codec: TextCodec, messages: Sequence[Message], add_generation_prompt: bool = True
) -> tuple[Item, ...]:
    """Renders `messages` with the model's own chat template and encodes the result.

    With ordinary text the ids are those of transformers' `apply_chat_template(..., tokenize=True)`. Without a
    chat template the contents are simply joined, in order, with nothing between them.

    Raises `UsageError` for an unknown role, no message, or messages that the template refuses (for instance
    two user turns in a row), and `BundleError` for a template that fails otherwise.
    """
    if not messages:
        raise UsageError("there is no message to answer", "Give a prompt.")
    for message in messages:
        if message.role not in ROLES:
            raise nearest(message.role, ROLES, "role")
    parts = [part for message in messages for part in message.parts]
    disguise = Disguise(codec, [part for part in parts if isinstance(part, str)], parts.count(IMAGE))
    places = iter(disguise.places)

    def shown(part: Part) -> str:
        if isinstance(part, Control):
            return part.spelling
        return disguise.hide(part) if isinstance(part, str) else next(places)

    turns = [{"role": m.role, "content": "".join(shown(part) for part in m.parts)} for m in messages]
    if codec.template is None:
        rendered = "".join(turn["content"] for turn in turns)
    else:
        rendered = codec.template.render(turns, add_generation_prompt)
    slots = {place: ImageSlot(index) for index, place in enumerate(disguise.places)}
    items = tuple(slots[item] if isinstance(item, str) else item for item in disguise.encode(rendered))
    if [item for item in items if isinstance(item, ImageSlot)] != list(slots.values()):
        raise BundleError(
            f"the chat template does not keep the {len(slots)} pictures of the messages, each once, in order",
            "Convert the checkpoint again with a template that shows every message's content once.",
        )
    return items


def answer_parts(codec: TextCodec, ids: Sequence[int]) -> tuple[Part, ...]:
    """Generated `ids` as the content of an assistant's message, for the next turn's prompt.

    Special tokens are left out, other control tokens stay `Control`, so that the template can act on them.
    """
    parts: list[Part] = []
    text: list[int] = []
    for token_id in ids:
        spelling = codec.control(token_id)
        if spelling is None:
            text.append(token_id)
        else:
            parts += [codec.decode(text), Control(spelling)]
            text = []
    return tuple(part for part in [*parts, codec.decode(text)] if part)


def layout(
    items: Sequence[Item],
    plans: Sequence[ImagePlan],
    codec: TextCodec,
    spellings: ImageTokens,
    tokens_of_side: Callable[[int], int],
) -> Prompt:
    """Puts each picture's visual tokens into its slot.

    A picture becomes: image_start, then for each row of the grid tile_start + visual tokens for each tile and
    row_end, then thumbnail_start + visual tokens if there is a thumbnail, then image_end; a separator whose
    spelling is "" is left out. `tokens_of_side` gives a tile's visual tokens for its side in px
    (`VisionSpec.tokens`). `plans[i]` belongs to `ImageSlot(i)`.

    Raises `UsageError` when there are more or fewer plans than slots, `BundleError` for a separator that the
    tokenizer does not have.
    """
    slots = sum(isinstance(item, ImageSlot) for item in items)
    if slots != len(plans):
        raise UsageError(
            f"the messages have a place for {slots} pictures, and {len(plans)} are given",
            "Give one picture for each place.",
        )

    def separator(spelling: str) -> list[int]:
        return [codec.token(spelling)] if spelling else []

    def tile(plan: ImagePlan, slot: ImageSlot, number: int) -> VisualRun:
        side = plan.sides[number]
        key = VisualKey(plan.digest, plan.branch, plan.columns, plan.rows, number, side)
        return VisualRun(slot.index, number, side, 0, tokens_of_side(side), key)

    def picture(slot: ImageSlot) -> Iterator[list[int] | VisualRun]:
        plan = plans[slot.index]
        yield separator(spellings.image_start)
        for row in range(plan.rows):
            for column in range(plan.columns):
                yield separator(spellings.tile_start)
                yield tile(plan, slot, row * plan.columns + column)
            yield separator(spellings.row_end)
        if plan.thumbnail:
            yield separator(spellings.thumbnail_start)
            yield tile(plan, slot, plan.rows * plan.columns)
        yield separator(spellings.image_end)

    runs: list[Run] = []
    ids: list[int] = []
    for item in items:
        for piece in picture(item) if isinstance(item, ImageSlot) else ([item],):
            if isinstance(piece, list):
                ids += piece
                continue
            runs += [TokenRun(tuple(ids)), piece]
            ids = []
    runs.append(TokenRun(tuple(ids)))
    return Prompt(tuple(run for run in runs if run.tokens))
