"""A bundle at work: graphs are opened when they are first needed, answers stream, one at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from delegates import AUTO, CPU, EXTERNAL
from rpi_runtime.backends.base import BackendChoice, DelegateUse, Graph
from rpi_runtime.backends.select import INTERPRETER, choose, default_threads, open_graph
from rpi_runtime.backends.weight_cache import default_folder
from rpi_runtime.bundle import Bundle
from rpi_runtime.clock import Clock
from rpi_runtime.conversation import Conversation
from rpi_runtime.decoder import Decoder
from rpi_runtime.embedding import EmbeddingTable
from rpi_runtime.encoder import BRANCHES, Encoder
from rpi_runtime.errors import UsageError
from rpi_runtime.generation import Generation, Options, Progress, Turn
from rpi_runtime.graphs import TOGETHER, Graphs, Residency
from rpi_runtime.images import Source
from rpi_runtime.kernel import limit_data, map_large_blocks, memory
from rpi_runtime.manifest import DECODER, DecoderSpec, Embedding, Manifest
from rpi_runtime.picture_room import PictureRoom
from rpi_runtime.prompt import ImageSlot, Item, Part, Position
from rpi_runtime.routing import Routing
from rpi_runtime.sampling import Sampling
from rpi_runtime.tokenizer import TextCodec

if TYPE_CHECKING:
    from rpi_runtime.delegate_choice import DelegateChoice
    from rpi_runtime.memory_plan import MemoryPlan

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
        residency: Residency = TOGETHER,
        memory_budget: int | None = None,
        branches: Sequence[str] = tuple(BRANCHES),
        context_tokens: int | None = None,
        stream_weights: bool = False,
        strict: bool = False,
        on_measure: Callable[[], None] = lambda: None,
        delegate: str = AUTO,
        require_full_delegation: bool = False,
        on_trial: Callable[[str], None] = lambda what: None,
    ) -> Session:
        """Checks the bundle and chooses a backend; opens no graph yet.

        `threads` None takes the cores there are, at most 4. `weight_cache` True keeps packed weights in the
        user's cache folder, a path keeps them there, False keeps none. `verbose` shows the native logs.
        `residency` says which graphs may be open together (`graphs.TOGETHER`, `graphs.ONE_BY_ONE`): with
        fewer an answer takes less memory, and longer. `memory_budget` is what this process may hold at most,
        resident bytes as the kernel counts them; what it holds already counts. It decides about `residency`,
        the context and the largest picture. The first time on a machine, graphs are measured for seconds;
        `on_measure` hears of that before. glibc is told, for the whole process, to map large blocks on their
        own (`kernel.map_large_blocks`).
        Only `branches` may then be asked for: a budget need not hold what is never used; nor a longer
        conversation than `context_tokens`, which otherwise is the longest of the bundle's that fits.
        `stream_weights` accepts a budget that leaves the weights of a graph no room, so that each of its runs
        reads them from storage; the kernel drops their pages where it must, so the budget should be that of a
        container or of the whole machine. `strict` puts a limit of the kernel under this process while the
        session is open (RLIMIT_DATA): what would exceed the budget ends in a `ResourceError` or MemoryError.
        `delegate` is what graphs run on (`delegate_choice`): "auto" is what the bundle was converted for,
        "cpu", "gpu", "external:PATH"; `on_trial` hears of a delegate that is tried, which takes seconds, once
        on a machine. With `require_full_delegation` the CPU may run nothing of any graph. A memory budget is
        kept on the CPU alone.
        Raises `BundleError`, `ResourceError` (no runtime fits, or the budget is too small), `UsageError` (an
        unknown backend or delegate), `CheckFailed` (a graph that falls back, and may not).
        """
        if threads is not None and not 1 <= threads <= _MOST_THREADS:
            raise UsageError(f"threads is {threads}", f"It must be from 1 to {_MOST_THREADS}.")
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        folder = default_folder() if weight_cache is True else weight_cache or None
        session = cls(
            opened,
            choose(backend),
            backend,
            threads or default_threads(),
            folder,
            verbose,
            residency,
            tuple(branches),
        )
        session._choose_delegates(delegate, require_full_delegation, memory_budget, on_trial)
        if memory_budget is None and (stream_weights or strict):
            raise UsageError("stream_weights and strict need a memory budget", "Give one.")
        if memory_budget is not None:
            session._keep_to(memory_budget, context_tokens, stream_weights, strict, on_measure)
        return session

    def __init__(
        self,
        bundle: Bundle,
        choice: BackendChoice,
        backend: str,
        threads: int,
        cache_folder: Path | None,
        verbose: bool,
        residency: Residency,
        branches: tuple[str, ...],
    ) -> None:
        self.bundle = bundle
        self.choice = choice
        self.threads = threads
        self._backend = backend
        self._cache_folder = cache_folder
        self._verbose = verbose
        self._branches = branches
        self._graphs = Graphs(self._open_graph, residency, self._before_close)
        self._decoder: Decoder | None = None
        self._clock = Clock()
        self._running: Generation | None = None
        self._closed = False
        self.plan: MemoryPlan | None = None  # of the memory, with a budget
        self._delegates: DelegateChoice | None = None
        self._lift_limit: Callable[[], None] = lambda: None

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
        scales = self.bundle.file(table.scales) if table.scales else None
        return EmbeddingTable(self.bundle.file(table.file), table, scales)

    @property
    def decoder(self) -> Decoder:
        """With its graph open. Its KV cache outlives the graph."""
        spec, _ = self._decoder_parts()
        graph = self.graph(DECODER)
        if self._decoder is None:
            contexts, sizes = spec.contexts, spec.prefill_tokens
            if self.plan:
                contexts, sizes = self.plan.contexts, self.plan.chosen.prefill_tokens
            self._decoder = Decoder(graph, spec, self.embedding, contexts=contexts, sizes=sizes)
        self._decoder.use(graph)
        return self._decoder

    @property
    def held(self) -> Sequence[Position]:
        """What the KV cache holds."""
        return self._decoder.kv.held if self._decoder else ()

    def forget(self) -> None:
        """The next answer finds nothing in the KV cache, and takes what a first one takes."""
        if self._decoder is not None:
            self._decoder.kv.keep(0)

    @cached_property
    def encoder(self) -> Encoder:
        room = PictureRoom(self.plan, self._graphs, self._cache_folder or default_folder())
        return Encoder(self.manifest, self.graph, room, self._branches)

    @property
    def context_tokens(self) -> int:
        """The most that a prompt and its answer may take; a memory budget may leave less than there is."""
        most = self._decoder_parts()[0].context_tokens
        return self.plan.chosen.context_tokens if self.plan else most

    @property
    def is_shortened(self) -> bool:
        """Whether a memory budget leaves less context than the bundle has."""
        return self.context_tokens < self._decoder_parts()[0].context_tokens

    @property
    def weight_caches(self) -> dict[str, str]:
        """What became of the weight cache of each graph that was opened."""
        return self._graphs.weight_caches

    @property
    def delegates(self) -> tuple[DelegateUse, ...]:
        """What the graphs that were opened run on."""
        return tuple(self._delegates.uses.values()) if self._delegates else ()

    @property
    def open_graphs(self) -> frozenset[str]:
        return self._graphs.names

    def open_together(self, *components: str) -> bool:
        """Whether the graphs of these may be open at the same time."""
        return self._graphs.together(*components)

    def graph(self, component: str) -> Graph:
        """The graph of `component`, opened when it is first asked for. Raises `BundleError`."""
        if self._closed:
            raise RuntimeError("the session is closed")
        with self._clock.phase("load"):
            return self._graphs.get(component)

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
        self._closed = True
        self._decoder = None
        self.__dict__.pop("embedding", None)
        self._graphs.close()
        if self._delegates is not None:
            self._delegates.close()
        self._lift_limit()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _choose_delegates(
        self, asked: str, require_whole: bool, budget: int | None, on_trial: Callable[[str], None]
    ) -> None:
        if asked == AUTO and (budget is not None or not (require_whole or self._has_graphs_for_delegates)):
            return
        if budget is not None and asked != CPU:
            raise UsageError(
                f"a memory budget cannot be kept with the delegate {asked}: its memory is not counted",
                "Leave the budget or the delegate out.",
            )
        if asked == CPU:
            if require_whole:
                raise UsageError("full delegation is required, and the delegate is the CPU", "Name another.")
            return
        # Most runs need none of it, and it brings subprocess and tempfile.
        from rpi_runtime.delegate_choice import DelegateChoice

        if asked.startswith(EXTERNAL) and self._backend == "auto":
            self._backend = INTERPRETER  # the CPU's graph takes over its inputs
        self._delegates = DelegateChoice(
            self.bundle,
            asked,
            require_whole=require_whole,
            threads=self.threads,
            backend=self._backend,
            folder=self._cache_folder or default_folder(),
            verbose=self._verbose,
            on_trial=on_trial,
        )

    @property
    def _has_graphs_for_delegates(self) -> bool:
        return any(graph.delegate != CPU for c in self.manifest.components for graph in c.graphs)

    def _keep_to(
        self,
        budget: int,
        context_tokens: int | None,
        stream_weights: bool,
        strict: bool,
        on_measure: Callable[[], None],
    ) -> None:
        """Plans for `budget`. What every answer needs is loaded first, so that it counts."""
        # Only a budget needs them, and they bring subprocess, argparse and tempfile.
        from rpi_runtime.footprint import known
        from rpi_runtime.memory_plan import make_plan, needs

        map_large_blocks()
        _ = self.codec
        folder = self._cache_folder or default_folder()
        footprint = known(self.bundle, self.choice, self.threads, folder, on_measure)
        need = needs(self.manifest, footprint, memory().resident_bytes, self._branches, context_tokens)
        self.plan = make_plan(budget, need, stream_weights)
        self._graphs = Graphs(self._open_graph, self.plan.residency, self._before_close)
        if strict:
            # The kernel counts address space that may be written, so what graphs only reserve comes on top.
            now, reserved = memory(), sum(footprint.reserved().values())
            self._lift_limit = limit_data(now.data_bytes + budget - now.resident_bytes + reserved)

    def _open_graph(self, component: str) -> Graph:
        entry = self.manifest.component(component)

        def on_cpu() -> Graph:
            return open_graph(
                self.bundle.path(component),
                backend=self._backend,
                threads=self.threads,
                weight_cache=self._cache_folder,
                verbose=self._verbose,
                sha256=entry.file.sha256 if entry else "",
            )

        if self._delegates is None or entry is None:
            return on_cpu()
        return self._delegates.open(component, on_cpu, self._cache_folder)

    def _before_close(self, component: str) -> None:
        if component == DECODER and self._decoder is not None:
            self._decoder.let_go()

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
