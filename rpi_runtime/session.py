"""A bundle at work: graphs are opened when they are first needed, answers stream, one at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType

from rpi_runtime.backends.base import BackendChoice, Graph
from rpi_runtime.backends.select import choose, default_threads, open_graph
from rpi_runtime.backends.weight_cache import default_folder
from rpi_runtime.bundle import Bundle
from rpi_runtime.clock import Clock
from rpi_runtime.conversation import Conversation
from rpi_runtime.decoder import Decoder
from rpi_runtime.embedding import EmbeddingTable
from rpi_runtime.encoder import Encoder
from rpi_runtime.errors import UsageError
from rpi_runtime.generation import Generation, Options, Progress, Turn
from rpi_runtime.images import Source
from rpi_runtime.manifest import DECODER, DecoderSpec, Embedding, Manifest
from rpi_runtime.prompt import ImageSlot, Item, Part
from rpi_runtime.routing import Routing
from rpi_runtime.sampling import Sampling
from rpi_runtime.tokenizer import TextCodec

_MOST_THREADS = 256  # the native thread pool crashes on some tens of thousands


class Session:
    """Answers questions with one bundle. Not safe for several threads, but for `Generation.cancel`.

    There is one KV cache. Every answer compares its prompt with what the cache holds, position by position,
    and computes only what differs: the earlier turns of a conversation, or the same picture asked about
    twice, cost nothing. Starting an answer ends one that is still running.
    """

    @classmethod
    def open(
        cls,
        bundle: str | os.PathLike[str] | Bundle,
        *,
        backend: str = "auto",
        threads: int | None = None,
        weight_cache: bool | Path = True,
        verbose: bool = False,
    ) -> Session:
        """Checks the bundle and chooses a backend; opens no graph yet.

        `threads` None takes the cores there are, at most 4. `weight_cache` True keeps packed weights in the
        user's cache folder, a path keeps them there, False keeps none. `verbose` shows the native logs.
        Raises `BundleError`, `ResourceError` (no runtime fits), `UsageError` (an unknown backend).
        """
        if threads is not None and not 1 <= threads <= _MOST_THREADS:
            raise UsageError(f"threads is {threads}", f"It must be from 1 to {_MOST_THREADS}.")
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        folder = default_folder() if weight_cache is True else weight_cache or None
        return cls(opened, choose(backend), backend, threads or default_threads(), folder, verbose)

    def __init__(
        self,
        bundle: Bundle,
        choice: BackendChoice,
        backend: str,
        threads: int,
        cache_folder: Path | None,
        verbose: bool,
    ) -> None:
        self.bundle = bundle
        self.choice = choice
        self.threads = threads
        self._backend = backend
        self._cache_folder = cache_folder
        self._verbose = verbose
        self._graphs: dict[str, Graph] = {}
        self._clock = Clock()
        self._running: Generation | None = None
        self._closed = False

    def generate(
        self,
        prompt: str | tuple[Part, ...],
        images: Sequence[Source] = (),
        *,
        system: str | None = None,
        routing: str | Routing = "tile",
        branch: str = "base",
        sampling: Sampling | None = None,
        max_new_tokens: int = 256,
        stop: Sequence[str] = (),
        raw: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Generation:
        """The answer to one question, as an iterator of pieces of text.

        `prompt` may be a tuple of texts and `prompt.IMAGE` marks; otherwise the pictures come first.
        `routing` is "tile", "image" or "fixed:<scale>"; `branch` "base", "large" or "auto". `raw` feeds the
        prompt as it stands, without the chat template. Raises `UsageError` for what cannot be combined; the
        pictures are only opened when the first piece is asked for.
        """
        if raw:
            if system is not None or not isinstance(prompt, str):
                raise UsageError(
                    "raw takes a plain prompt, without a system message", "Leave out one of the two."
                )
            slots: list[Item] = [ImageSlot(i) for i in range(len(images))]
            items = (*slots, *self.codec.encode(prompt))
            if not items:
                raise UsageError("the prompt is empty", "Give a prompt.")
            self.need_vision(images)
            options = _options(routing, branch, sampling, max_new_tokens, stop)
            return Generation(self, Turn(items, (), tuple(images)), options, on_progress)
        conversation = self.conversation(
            system=system,
            routing=routing,
            branch=branch,
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            stop=stop,
        )
        return conversation.ask(prompt, images, on_progress=on_progress)

    def conversation(
        self,
        *,
        system: str | None = None,
        routing: str | Routing = "tile",
        branch: str = "base",
        sampling: Sampling | None = None,
        max_new_tokens: int = 256,
        stop: Sequence[str] = (),
    ) -> Conversation:
        """A conversation of several turns; parameters as in `generate`, for each of its answers."""
        return Conversation(self, system, _options(routing, branch, sampling, max_new_tokens, stop))

    # What a generation asks of its session.

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @cached_property
    def codec(self) -> TextCodec:
        return TextCodec.from_bundle(self.bundle.folder, self.manifest.text)

    @cached_property
    def embedding(self) -> EmbeddingTable:
        _, table = self._decoder_parts()
        return EmbeddingTable(self.bundle.file(table.file), table)

    @cached_property
    def decoder(self) -> Decoder:
        spec, _ = self._decoder_parts()
        return Decoder(self.graph(DECODER), spec, self.embedding)

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.manifest, self.graph)

    @property
    def context_tokens(self) -> int:
        return self._decoder_parts()[0].context_tokens

    @property
    def weight_caches(self) -> dict[str, str]:
        """What became of the weight cache of each graph that is open."""
        return {name: graph.weight_cache for name, graph in self._graphs.items()}

    def graph(self, component: str) -> Graph:
        """The graph of `component`, opened when it is first asked for. Raises `BundleError`."""
        if self._closed:
            raise RuntimeError("the session is closed")
        if component not in self._graphs:
            with self._clock.phase("load"):
                path = self.bundle.path(component)
                entry = self.manifest.component(component)
                self._graphs[component] = open_graph(
                    path,
                    backend=self._backend,
                    threads=self.threads,
                    weight_cache=self._cache_folder,
                    verbose=self._verbose,
                    sha256=entry.file.sha256 if entry else "",
                )
        return self._graphs[component]

    def need_vision(self, images: Sequence[Source]) -> None:
        """Raises `UsageError` for pictures that this bundle cannot look at."""
        if images:
            _ = self.encoder

    def begin(self, generation: Generation, clock: Clock) -> None:
        """`generation` starts to use the session; the one before ends."""
        if self._running is not None:
            self._running.close()
        self._running, self._clock = generation, clock

    def end(self, generation: Generation) -> None:
        if self._running is generation:
            self._running = None

    def close(self) -> None:
        """Ends a running answer and gives back the memory of all graphs."""
        if self._running is not None:
            self._running.close()
        self.__dict__.pop("decoder", None)
        self.__dict__.pop("embedding", None)
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        self._closed = True

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decoder_parts(self) -> tuple[DecoderSpec, Embedding]:
        spec, table = self.manifest.decoder, self.manifest.embedding
        if spec is None or table is None:
            raise UsageError(
                f"the bundle of {self.manifest.model!r} has no decoder, so it cannot answer",
                "Convert with the component decoder.",
            )
        return spec, table


def _options(
    routing: str | Routing, branch: str, sampling: Sampling | None, max_new_tokens: int, stop: Sequence[str]
) -> Options:
    return Options(
        routing if isinstance(routing, Routing) else Routing.parse(routing),
        branch,
        sampling or Sampling(),
        max_new_tokens,
        tuple(stop),
    )
