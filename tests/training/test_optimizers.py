"""Muon, held against PyTorch's own and against singular values."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hypervl.training.optimizers import Muon, make_optimizers, orthogonalised


@pytest.mark.parametrize("shape", [(24, 24), (12, 40), (40, 12)])
def test_orthogonalised_keeps_directions_and_evens_their_lengths(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ orthogonalised(matrix) @ v.T
    lengths = inner.diagonal()
    assert (inner - torch.diag(lengths)).abs().max() < 1e-3
    # The quintic does not settle at 1; the smallest of a square matrix may need a step more.
    assert lengths.quantile(0.1) > 0.6
    assert lengths.max() < 1.3


def test_moves_as_pytorchs_muon() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(16, 48)), nn.Parameter(torch.zeros(16, 48))
    theirs.data.copy_(ours.data)
    target = torch.randn(16, 48)
    start = ours.detach().clone()
    mine = Muon([ours], lr=0.05, weight_decay=0.1)
    oracle = torch.optim.Muon([theirs], lr=0.05, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(10):
        for parameter, optimizer in ((ours, mine), (theirs, oracle)):
            parameter.grad = parameter.detach() - target
            optimizer.step()
    # Theirs iterates in bfloat16: 8 bits.
    assert (ours - theirs).norm() < 0.03 * (ours - start).norm()


def test_a_kernel_moves_as_the_matrix_of_its_outputs() -> None:
    kernel, matrix = nn.Parameter(torch.ones(8, 3, 3, 3)), nn.Parameter(torch.ones(8, 27))
    gradient = torch.randn(8, 27, generator=torch.Generator().manual_seed(1))
    for parameter in (kernel, matrix):
        parameter.grad = gradient.reshape(parameter.shape)
        Muon([parameter], lr=0.1, weight_decay=0.0).step()
    assert torch.equal(kernel.flatten(1), matrix)


def test_embeddings_vectors_and_classifiers_stay_with_adamw() -> None:
    network = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Conv2d(4, 4, 3))
    classifier = nn.Linear(4, 7)
    adamw, muon = make_optimizers([network], [classifier], rate=1e-3, matrix_rate=1e-2, weight_decay=0.1)
    (matrices,) = muon.param_groups
    assert [p.shape for p in matrices["params"]] == [(4, 4), (4, 4, 3, 3)]
    decaying, still = adamw.param_groups
    assert [p.shape for p in decaying["params"]] == [(5, 4), (7, 4)]
    assert len(still["params"]) == 5
    assert still["weight_decay"] == 0.0


def test_without_a_matrix_rate_there_is_adamw_alone() -> None:
    network = nn.Linear(4, 4)
    (adamw,) = make_optimizers([network], [], rate=1e-3, matrix_rate=0.0, weight_decay=0.1)
    assert isinstance(adamw, torch.optim.AdamW)
    assert sum(len(group["params"]) for group in adamw.param_groups) == 2
