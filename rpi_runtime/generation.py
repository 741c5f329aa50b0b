"""One answer, from pictures and messages to text: an iterator of pieces that can be cancelled."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from rpi_runtime.backends.base import Array
from rpi_runtime.clock import Clock
from rpi_runtime.embedding import PromptRows
from rpi_runtime.encoder import BRANCHES, RoutedPicture
from rpi_runtime.errors import BundleError, UsageError
from rpi_runtime.images import Picture, Source
from rpi_runtime.kernel import memory
from rpi_runtime.manifest import DECODER
from rpi_runtime.prompt import Item, Prompt, TokenRun, VisualRun, layout
from rpi_runtime.routing import Routing
from rpi_runtime.run_report import RunReport, Times, describe
from rpi_runtime.sampling import Sampler, Sampling
from rpi_runtime.stopping import TextStream

if TYPE_CHECKING:
    from rpi_runtime.session import Session

ENDED, STOP, LENGTH, CONTEXT, CANCELLED = "ended", "stop", "length", "context", "cancelled"
# The model ended its answer; a stop string came; max_new_tokens were made; the context is full; cancelled.
STOP_REASONS = (ENDED, STOP, LENGTH, CONTEXT, CANCELLED)


@dataclass(frozen=True)
class Progress:
    phase: str  # "route" and "encode" count tiles of one picture, "prefill" tokens
    done: int
    total: int
    image: int = 0  # index of the picture in the conversation


@dataclass(frozen=True)
class Options:
    """How to answer. Raises `UsageError` for values out of range."""

    routing: Routing = field(default_factory=Routing)
    branch: str = "base"
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}", "It must be 1 or more.")


@dataclass(frozen=True)
class Turn:
    """What is asked: the items of the whole conversation; pictures known from earlier turns, then new
    ones.
    """

    items: tuple[Item, ...]
    known: tuple[RoutedPicture, ...]
    new: tuple[Source, ...]


class _Cancelled(Exception):
    pass


class Generation(Iterator[str]):
    """Pieces of the answer's text, computed as they are asked for.

    `cancel` may be called from any thread; everything else from one thread only. Raises, when iterated, the
    `EdgeError`s of its parts: a picture that cannot be read, a prompt longer than the context.
    """

    def __init__(
        self,
        session: Session,
        turn: Turn,
        options: Options,
        on_progress: Callable[[Progress], None] | None = None,
        on_end: Callable[[Generation], None] | None = None,
    ) -> None:
        self.token_ids: list[int] = []  # without the token that ended the answer
        self.text = ""  # so far
        self.stop_reason = ""  # one of STOP_REASONS, once it has ended
        self.pictures: tuple[RoutedPicture, ...] = turn.known
        self._session = session
        self._turn = turn
        self._options = options
        self._on_progress = on_progress
        self._on_end = on_end
        self._cancel = threading.Event()
        self._report: RunReport | None = None
        self._clock = Clock()
        self._prompt = Prompt(())
        self._reused = 0
        self._first_token_ms = 0.0
        self._encoded: Counter[int] = Counter()  # tiles per picture
        self._pieces = self._run()

    def __next__(self) -> str:
        return next(self._pieces)

    def cancel(self) -> None:
        """Ends the answer before the next tile, chunk or token; the iterator stops, and the report says
        so.
        """
        self._cancel.set()

    def close(self) -> None:
        """Ends the answer now, as `cancel` does, for a caller that will not ask for more pieces."""
        self._pieces.close()

    @property
    def report(self) -> RunReport:
        """What the answer took. Raises RuntimeError before the end, and after an error."""
        if self._report is None:
            raise RuntimeError("there is no report before the answer has ended")
        return self._report

    def _run(self) -> Generator[str, None, None]:
        self._session.begin(self, self._clock)
        reason, failed = CANCELLED, False
        try:
            reason = yield from self._answer(self._read_prompt())
        except _Cancelled:
            pass
        except Exception:
            failed = True
            raise
        finally:  # also when the caller stops asking, or presses Ctrl-C
            self._session.end(self)
            if not failed:
                self._finish(reason)

    def _read_prompt(self) -> Array:
        """Everything up to the logits of the first token."""
        pixels = self._route()
        session = self._session
        plans = [picture.plan for picture in self.pictures]
        tokens_of_side = session.manifest.vision.tokens if session.manifest.vision else _no_side
        self._prompt = layout(
            self._turn.items, plans, session.codec, session.manifest.text.image_tokens, tokens_of_side
        )
        _need_room(self._prompt, session)
        self._reused = self._prompt.reusable(session.held)
        left = self._prompt.after(self._reused)
        visual = self._visual([run for run in left if isinstance(run, VisualRun)], pixels)
        decoder = session.decoder  # now: it may close the branch
        decoder.kv.keep(self._reused)
        rows = PromptRows(left, session.embedding, visual)
        with self._clock.phase("prefill"):
            return decoder.prefill(
                rows, lambda fed: self._step(Progress("prefill", fed, len(rows.positions)))
            )

    def _route(self) -> dict[int, Picture]:
        """Routes the new pictures; gives their pixels by index."""
        pixels: dict[int, Picture] = {}
        for source in self._turn.new:
            self._make_room(pixels)
            index = len(self.pictures)
            on_tile = partial(self._routed, index)
            routed, pixels[index] = self._session.encoder.route(
                source, self._options.routing, self._options.branch, self._clock, on_tile
            )
            self.pictures += (routed,)
        return pixels

    def _routed(self, image: int, done: int, total: int) -> None:
        self._step(Progress("route", done, total, image))

    def _visual(self, runs: Sequence[VisualRun], pixels: dict[int, Picture]) -> Callable[[VisualRun], Array]:
        """Gives the visual tokens of the tiles in `runs`, whose keys and values are not there.

        Where decoder and branch are open together each tile is encoded when the prompt comes to it, and its
        tokens are dropped behind it. Otherwise all of them are encoded now, and wait.
        """
        wanted = Counter(run.image for run in runs)

        def reopen(image: int) -> None:  # of an earlier turn, and the cache has lost it; or there was no room
            self._make_room(pixels)
            pixels[image] = self._session.encoder.reopen(self.pictures[image], self._clock)

        def encode(run: VisualRun) -> Array:
            picture = self.pictures[run.image]
            if run.image not in pixels:
                reopen(run.image)
            tokens = self._session.encoder.encode(picture, pixels[run.image], run.tile, self._clock)
            self._encoded[run.image] += 1
            if self._encoded[run.image] == wanted[run.image]:
                del pixels[run.image]
            self._step(Progress("encode", self._encoded[run.image], wanted[run.image], run.image))
            return tokens

        branches = {BRANCHES[self.pictures[run.image].plan.branch] for run in runs}
        if self._session.open_together(DECODER, *branches):
            for image in wanted:  # now: while the decoder reads, no graph can be closed for a picture
                if self.pictures[image].is_spooled and image not in pixels:
                    reopen(image)
            latest: dict[tuple[int, int], Array] = {}

            def as_it_comes(run: VisualRun) -> Array:
                at = (run.image, run.tile)
                if at not in latest:
                    latest.clear()
                    latest[at] = encode(run)
                return latest[at]

            return as_it_comes
        features = {(run.image, run.tile): encode(run) for run in runs}
        pixels.clear()
        return lambda run: features[run.image, run.tile]

    def _make_room(self, pixels: dict[int, Picture]) -> None:
        """Before a picture is opened: a memory budget counts one that is in memory."""
        if self._session.plan is not None:
            for image in [image for image, picture in pixels.items() if not picture.is_spooled]:
                del pixels[image]

    def _answer(self, logits: Array) -> Generator[str, None, str]:
        """Yields the text and returns why it ended."""
        codec, decoder, options = self._session.codec, self._session.decoder, self._options
        stream = TextStream(codec, options.stop)
        sampler = Sampler(options.sampling, codec.vocab_size)
        history = [i for run in self._prompt.runs if isinstance(run, TokenRun) for i in run.ids]
        # The last token need not be fed, so it needs no slot.
        room = self._session.context_tokens - self._prompt.tokens + 1
        while True:
            with self._clock.phase("decode"):
                token = self._pick(sampler, logits, history)
            if not self.token_ids:
                self._first_token_ms = self._clock.total_ms
            if token in codec.eos_token_ids:
                reason = ENDED
                break
            self.token_ids.append(token)
            history.append(token)
            yield from self._show(stream.push(token))
            if stream.stopped_at is not None:
                return STOP
            if len(self.token_ids) >= min(options.max_new_tokens, room):
                reason = LENGTH if len(self.token_ids) == options.max_new_tokens else CONTEXT
                break
            if self._cancel.is_set():
                reason = CANCELLED
                break
            with self._clock.phase("decode"):
                logits = decoder.step(token)
        yield from self._show(stream.finish())
        return reason

    def _pick(self, sampler: Sampler, logits: Array, history: Sequence[int]) -> int:
        try:
            return sampler.pick(logits, history)
        except BundleError:  # they are no numbers, and what was computed with them lies in the cache
            self._session.decoder.kv.wipe()
            raise

    def _show(self, piece: str) -> Iterator[str]:
        if piece:
            self.text += piece
            yield piece

    def _step(self, progress: Progress) -> None:
        if self._on_progress is not None:
            self._on_progress(progress)
        if self._cancel.is_set():
            raise _Cancelled

    def _finish(self, reason: str) -> None:
        self.stop_reason = reason
        clock, session = self._clock, self._session
        fed, more = self._prompt.tokens - self._reused, len(self.token_ids) - 1
        prefill_s, decode_s = clock.ms("prefill") / 1e3, clock.ms("decode") / 1e3
        images = tuple(describe(p, self._encoded[i]) for i, p in enumerate(self.pictures))
        self._report = RunReport(
            model=session.manifest.model,
            images=images,
            routing=str(self._options.routing),
            branch=", ".join(sorted({image.branch for image in images})),
            prompt_tokens=self._prompt.tokens,
            visual_tokens=self._prompt.visual_tokens,
            visual_tokens_unrouted=sum(image.tokens_unrouted for image in images),
            reused_tokens=self._reused,
            new_tokens=len(self.token_ids),
            context_tokens=session.context_tokens,
            stop_reason=reason,
            times=Times(
                load_ms=clock.ms("load"),
                open_image_ms=clock.ms("open_image"),
                route_ms=clock.ms("route"),
                encode_ms=clock.ms("encode"),
                prefill_ms=clock.ms("prefill"),
                decode_ms=clock.ms("decode"),
                first_token_ms=self._first_token_ms,
                total_ms=clock.total_ms,
            ),
            prefill_tokens_per_s=fed / prefill_s if fed and self.token_ids else 0.0,
            decode_tokens_per_s=more / decode_s if more > 0 else 0.0,
            memory=memory(),
            backend=session.choice,
            delegates=session.delegates,
            weight_cache=session.weight_caches,
            threads=session.threads,
        )
        if self._on_end is not None:
            self._on_end(self)


def _need_room(prompt: Prompt, session: Session) -> None:
    slots = session.context_tokens
    if prompt.tokens <= slots:
        return
    text = prompt.tokens - prompt.visual_tokens
    remedy = "Shorten it, or start a new conversation, or convert with a larger --context."
    if prompt.visual_tokens and text < slots:
        remedy = (
            "Use fewer pictures or a smaller scale (routing fixed:0.5 or less), or convert with fewer tiles "
            "or a larger --context."
        )
    if session.is_shortened:
        remedy = f"Give more memory: the budget left no room for a longer context. {remedy}"
    raise UsageError(
        f"the prompt takes {prompt.tokens} tokens ({prompt.visual_tokens} visual, {text} text), and the "
        f"context holds {slots}: no room for an answer",
        remedy,
    )


def _no_side(side: int) -> int:
    raise AssertionError(f"a text-only bundle has no tile of {side} px")
