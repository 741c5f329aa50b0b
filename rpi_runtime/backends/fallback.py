"""A graph on a delegate, and what becomes of it when the delegate fails: the CPU goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rpi_runtime.backends.base import Array, BackendChoice, Delegated, Graph, Runner, SharedInputs
from rpi_runtime.errors import DelegateFailed
from rpi_runtime.manifest import Signature


class FallbackGraph:
    """`graph` until a runner of it raises `DelegateFailed`; from then on what `on_cpu` opens, which has the
    same signatures. The call that failed is made again, and shared inputs keep what they hold.

    `on_failure` hears of it, once.
    """

    def __init__(
        self, graph: Graph, on_cpu: Callable[[], Graph], on_failure: Callable[[DelegateFailed], None]
    ) -> None:
        self._graph = graph
        self._on_cpu = on_cpu
        self._on_failure = on_failure
        self._shared: list[SharedInputs] = []
        self._opened = 1

    @property
    def choice(self) -> BackendChoice:
        return self._graph.choice

    @property
    def weight_cache(self) -> str:
        return self._graph.weight_cache

    @property
    def signatures(self) -> dict[str, Signature]:
        return self._graph.signatures

    @property
    def copies_shared_inputs(self) -> bool:
        return self._graph.copies_shared_inputs

    @property
    def delegated(self) -> Mapping[str, Delegated]:
        return self._graph.delegated

    def shared(self, shapes: Mapping[str, tuple[int, ...]]) -> SharedInputs:
        made = self._graph.shared(shapes)
        self._shared.append(made)
        return made

    def runner(self, signature: str, shared: SharedInputs | None = None) -> FallbackRunner:
        return FallbackRunner(self, signature, shared)

    def forget(self, shared: SharedInputs) -> None:
        self._shared = [one for one in self._shared if one is not shared]
        self._graph.forget(shared)

    def close(self) -> None:
        self._graph.close()

    # For its runners.

    def resolve(self, signature: str, shared: SharedInputs | None) -> tuple[int, Runner]:
        """The runner that is right now, and a number that changes when it is not any more."""
        return self._opened, self._graph.runner(signature, shared)

    def is_current(self, opened: int) -> bool:
        return opened == self._opened

    def fall_back(self, error: DelegateFailed) -> None:
        """Raises `error` when the CPU has the graph already."""
        if self._opened != 1:
            raise error
        self._on_failure(error)
        for shared in self._shared:
            shared.detach()
        self._graph.close()
        self._graph = self._on_cpu()
        self._opened += 1


class FallbackRunner:
    """Of one signature; stays good when the graph under it changes."""

    def __init__(self, graph: FallbackGraph, signature: str, shared: SharedInputs | None) -> None:
        self.signature = graph.signatures[signature]
        self._graph = graph
        self._shared = shared
        try:
            self._opened, self._runner = graph.resolve(signature, shared)
        except DelegateFailed as error:  # it cannot prepare this one
            graph.fall_back(error)
            self._opened, self._runner = graph.resolve(signature, shared)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if not self._graph.is_current(self._opened):
            self._resolve()
        try:
            return self._runner.run(inputs)
        except DelegateFailed as error:
            self._graph.fall_back(error)
        self._resolve()
        return self._runner.run(inputs)

    def _resolve(self) -> None:
        self._opened, self._runner = self._graph.resolve(self.signature.name, self._shared)
