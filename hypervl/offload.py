"""Weights on disk: resident only while something reads them.

A model whose float32 weights are larger than the memory of the machine can be traced, run and written this
way, one layer at a time.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Offload:
    """Float32 tensors in a temporary file without a name, which the system removes with this process.

    Pages that were read or written count as memory of this process until the next `drop`.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._mappings: list[mmap.mmap] = []

    def empty(self, shape: Sequence[int]) -> Tensor:
        """A new tensor of zeros; raises OSError when the disk is full."""
        size = 4 * torch.Size(shape).numel()
        if not size:
            return torch.empty(shape)
        start = os.fstat(self._file.fileno()).st_size
        start += -start % mmap.ALLOCATIONGRANULARITY
        if hasattr(os, "posix_fallocate"):  # not on macOS
            # Room is taken now: on a full disk, writing to the mapping would end the process.
            os.posix_fallocate(self._file.fileno(), start, size)
        else:
            os.truncate(self._file.fileno(), start + size)
        self._mappings.append(mmap.mmap(self._file.fileno(), size, offset=start))
        return torch.frombuffer(self._mappings[-1], dtype=torch.float32).reshape(tuple(shape))

    def keep(self, tensor: Tensor) -> Tensor:
        """A copy of `tensor`, of any floating dtype, in the file."""
        kept = self.empty(tensor.shape).copy_(tensor)
        self.drop()
        return kept

    def drop(self) -> None:
        """Gives the memory back; what was written stays in the file."""
        for mapping in self._mappings:
            mapping.madvise(mmap.MADV_DONTNEED)

    @contextmanager
    def dropping(self, module: nn.Module) -> Iterator[None]:
        """Has `module` run with the weights of one layer in memory at a time."""
        layers = [part for part in module.modules() if next(part.parameters(recurse=False), None) is not None]
        hooks = [layer.register_forward_hook(lambda *_: self.drop()) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
