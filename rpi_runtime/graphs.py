"""The open graphs of a session: which may be open together, and which only one after another.

An open graph holds all of its arenas, whichever of its signatures is used, and closing it gives them back.
What the answer needs later, visual tokens, keys and values, lies outside the graphs.
"""

from __future__ import annotations

from collections.abc import Callable

from rpi_runtime.backends.base import Graph
from rpi_runtime.kernel import give_back
from rpi_runtime.manifest import COMPONENTS

# Groups of components. A graph that is needed closes those of other groups.
Residency = tuple[frozenset[str], ...]
TOGETHER: Residency = (frozenset(COMPONENTS),)
ONE_BY_ONE: Residency = tuple(frozenset({component}) for component in COMPONENTS)


class Graphs:
    """`open_graph` opens the graph of a component; `before_close` hears which one is about to be closed."""

    def __init__(
        self,
        open_graph: Callable[[str], Graph],
        residency: Residency,
        before_close: Callable[[str], None] = lambda component: None,
    ) -> None:
        self.weight_caches: dict[str, str] = {}  # what became of that of each graph opened so far
        self._open_graph = open_graph
        self._residency = residency
        self._before_close = before_close
        self._open: dict[str, Graph] = {}

    def get(self, component: str) -> Graph:
        """The graph of `component`, opened when it is not. Raises `BundleError`."""
        if component not in self._open:
            self.leave(component)
            graph = self._open_graph(component)
            self._open[component] = graph
            self.weight_caches[component] = graph.weight_cache
        return self._open[component]

    @property
    def names(self) -> frozenset[str]:
        """Of the graphs that are open now."""
        return frozenset(self._open)

    def leave(self, component: str) -> None:
        """Closes the graphs that may not be open together with that of `component`."""
        group = next(group for group in self._residency if component in group)
        self._close([name for name in self._open if name not in group])

    def together(self, *components: str) -> bool:
        """Whether these may be open at the same time."""
        return any({*components} <= group for group in self._residency)

    def close(self) -> None:
        """Closes all."""
        self._close(list(self._open))

    def _close(self, names: list[str]) -> None:
        for name in names:
            self._before_close(name)
            self._open.pop(name).close()
        if names:
            give_back()
