"""Weights on disk compute what weights in memory do, and are in memory only while they are used."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from hypervl.checkpoint import Checkpoint
from hypervl.offload import Offload
from rpi_runtime import kernel
from tests.converters import small_hosts

MB = 1_000_000


def layers(count: int = 8, width: int = 1000) -> nn.Sequential:
    """4 MB a layer."""
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(count))).requires_grad_(False)


def offloaded(module: nn.Sequential, weights: Offload) -> nn.Sequential:
    for layer in module:
        assert isinstance(layer, nn.Linear)
        layer.weight = nn.Parameter(weights.keep(layer.weight), requires_grad=False)
    return module


def mapped() -> int:
    return kernel.memory().mapped_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_tensor_comes_back_as_it_was(dtype: torch.dtype) -> None:
    tensor = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    weights = Offload()
    kept = weights.keep(tensor)
    weights.drop()
    assert kept.dtype == torch.float32
    assert torch.equal(kept, tensor.float())


def test_what_is_written_stays_when_memory_is_given_back() -> None:
    weights = Offload()
    first, second = weights.empty((1000, 1000)), weights.empty((2, 3))
    assert not first.any()
    first.fill_(3)
    second.fill_(4)
    weights.drop()
    assert (first == 3).all()
    assert (second == 4).all()


def test_tensors_without_numbers_are_none_of_its_business() -> None:
    assert Offload().empty((0, 3)).shape == (0, 3)


def test_a_module_runs_with_one_layer_in_memory_at_a_time() -> None:
    module, x = layers(), torch.ones(1, 1000)
    expected = module(x)
    weights = Offload()
    offloaded(module, weights)
    before, seen = mapped(), []
    for layer in module:
        layer.register_forward_hook(lambda *_: seen.append(mapped() - before))
    with weights.dropping(module):
        assert torch.equal(module(x), expected)
    assert len(seen) == 8
    assert 3 * MB < max(seen) < 6 * MB, "its own hook comes before the one that drops"
    assert mapped() - before < MB
    module(x)
    assert mapped() - before > 30 * MB, "outside, nothing is dropped"


def test_a_component_on_disk_is_the_component(nano_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(nano_checkpoint)
    in_memory = checkpoint.load_component("decoder").state_dict()
    on_disk = checkpoint.load_component("decoder", Offload()).state_dict()
    assert list(on_disk) == list(in_memory)
    for name, tensor in on_disk.items():
        assert torch.equal(tensor, in_memory[name]), name


def test_a_full_disk_is_an_error_and_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_hosts.disk(tmp_path, megabytes=2) as place:
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        weights = Offload()
        with pytest.raises(OSError) as caught:  # noqa: PT011
            weights.keep(torch.ones(1000, 1000))
        assert caught.value.errno == errno.ENOSPC
        del weights, caught  # its traceback holds the file, too
