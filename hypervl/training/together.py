"""Several batches at once: one thread for each, and one gradient of them all.

PyTorch's own threads share one batch, and wait for one another at the end of each operation. A small model on
a few cores takes less time when each core has a batch of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Modules = Mapping[str, nn.Module]
Loss = Callable[[Modules, Any], tuple[Tensor, dict[str, Tensor]]]


class Together:
    """`modules`, and copies of them for the second batch and each further one: their weights are the same
    memory, their gradients and BatchNorm statistics their own until the end of a step."""

    def __init__(
        self, modules: Modules, batches: int, device: torch.device, pool: ThreadPoolExecutor
    ) -> None:
        self._device, self._pool = device, pool
        self._all = [modules, *(_sharing(modules) for _ in range(batches - 1))]
        self._trained = [
            [p for m in one.values() for p in m.parameters() if p.requires_grad] for one in self._all
        ]
        self._norms = [
            [n for m in one.values() for n in m.modules() if isinstance(n, nn.BatchNorm2d) and n.training]
            for one in self._all
        ]

    def gradient(self, loss: Loss, batches: Sequence[Any]) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """Leaves the gradient of the mean loss of `batches` in the modules; gives that loss, and what each
        batch says beside it."""
        done = [
            self._pool.submit(self._one, loss, modules, batch)
            for modules, batch in zip(self._all, batches, strict=True)
        ]
        results = [future.result() for future in done]
        self._gather()
        return torch.stack([value for value, _ in results]).mean(), [metrics for _, metrics in results]

    def _one(self, loss: Loss, modules: Modules, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        for module in modules.values():
            module.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=self._device.type == "cuda"):
            value, metrics = loss(modules, batch)
        value.backward()
        return value.detach(), metrics

    @torch.no_grad()
    def _gather(self) -> None:
        count = len(self._all)
        if count == 1:
            return
        for same in zip(*self._trained, strict=True):
            found = [p.grad for p in same if p.grad is not None]
            if found:
                same[0].grad = torch.stack(found).sum(0) / count
        for norms in zip(*self._norms, strict=True):
            for name in ("running_mean", "running_var"):
                mean = torch.stack([getattr(norm, name) for norm in norms]).mean(0)
                for norm in norms:
                    getattr(norm, name).copy_(mean)


@contextmanager
def threads(batches: int, device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """One thread per batch, which share the cores that PyTorch would use, or one for all on a GPU."""
    before = torch.get_num_threads()
    count = 1 if device.type == "cuda" else min(batches, before)
    each = max(1, before // count)
    torch.set_num_threads(each)
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(each,))
    try:
        with pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def _sharing(modules: Modules) -> Modules:
    """Copies whose parameters lie in the memory of the originals'."""
    copies = {}
    for name, module in modules.items():
        # Modules of this project keep nothing but weights and sizes, so that a deep copy is cheap.
        copied = copies[name] = copy.deepcopy(module)
        for own, original in zip(copied.parameters(), module.parameters(), strict=True):
            own.data, own.grad = original.data, None
    return copies
