"""What the stages learn with: Muon for the matrices of a network, AdamW for everything else.

docs/training.md has what it was measured to gain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_MOMENTUM = 0.95
# Five steps of this quintic turn singular values into about 1: Jordan et al. 2024, "Muon".
_QUINTIC, _ITERATIONS = (3.4445, -4.7750, 2.0315), 5
_RMS = 0.2  # of an update at rate 1, as AdamW's (Liu et al. 2025, arXiv 2502.16982)

Each = Callable[[Callable[[nn.Parameter], None], list[nn.Parameter]], Iterable[None]]  # as `map`


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: every direction of a matrix moves equally far.

    `torch.optim.Muon` iterates in bfloat16, which takes thirty times as long on a CPU without bfloat16
    arithmetic, and takes no kernels of convolutions; here [out, in, k, k] is the matrix [out, in * k * k].
    Matrices move one by one, or as `each` maps them to threads.
    """

    def __init__(
        self, parameters: list[nn.Parameter], lr: float, weight_decay: float, each: Each = map
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        self._each = each

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            found = [parameter for parameter in group["params"] if parameter.grad is not None]
            for _ in self._each(partial(self._move, group["lr"], group["weight_decay"]), found):
                pass

    @torch.no_grad()
    def _move(self, rate: float, decay: float, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"].lerp_(parameter.grad, 1 - _MOMENTUM)
        update = parameter.grad.lerp(momentum, _MOMENTUM).flatten(1)  # Nesterov's
        parameter.mul_(1 - rate * decay)
        direction = orthogonalised(update).reshape(parameter.shape)
        parameter.add_(direction, alpha=-rate * _RMS * max(update.shape) ** 0.5)


def orthogonalised(matrix: Tensor) -> Tensor:
    """`U V^T` of `matrix` [m, n] = `U S V^T`, about: singular values come to lie between 0.7 and 1.2."""
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / (x.norm() + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(_ITERATIONS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T


def make_optimizers(
    networks: list[nn.Module],
    classifiers: list[nn.Module],
    rate: float,
    matrix_rate: float,
    weight_decay: float,
    each: Each = map,
) -> list[torch.optim.Optimizer]:
    """AdamW at `rate`; Muon at `matrix_rate`, where that is above 0, for the `networks`' linear layers and
    convolutions. Embeddings and `classifiers` stay with AdamW, as Muon's authors advise.

    Matrices and kernels decay; norms, biases and other vectors do not.
    """
    matrices = [] if matrix_rate == 0 else [p for network in networks for p in _matrices(network)]
    taken = {id(p) for p in matrices}
    others = [p for module in (*networks, *classifiers) for p in module.parameters() if id(p) not in taken]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in others if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in others if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))]
    if matrices:
        optimizers.append(Muon(matrices, matrix_rate, weight_decay, each))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["highest_lr"] = group["lr"]
    return optimizers


def _matrices(network: nn.Module) -> list[nn.Parameter]:
    layers = (m for m in network.modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
    return [layer.get_parameter("weight") for layer in layers]
