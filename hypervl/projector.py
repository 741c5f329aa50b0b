"""From patch features to visual tokens: 2x2 pixel shuffle, then a two-layer MLP into the decoder's width."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from hypervl.norms import LayerNorm


def pixel_shuffle(patches: Tensor, side: int = 2) -> Tensor:
    """Space to depth: every `side` x `side` square of patches becomes one row.

    `patches` [N, g, g, d] -> [N, (g/side)^2, side^2 * d], squares in row-major order, and inside a row the
    patches of the square in row-major order (as Idefics3 and SmolVLM lay them out). No step exceeds rank 4:
    the column inside the square and the channels are neighbours in memory and travel as one axis.
    """
    count, grid, _, channels = patches.shape
    squares = grid // side
    x = patches.reshape(count * squares, side, squares, side * channels)
    return x.permute(0, 2, 1, 3).reshape(count, squares * squares, side * side * channels)


class Projector(nn.Module):
    """LayerNorm -> linear -> GELU -> linear; [N, tokens, shuffled width] -> [N, tokens, decoder hidden]."""

    def __init__(self, input_size: int, decoder_hidden: int, eps: float) -> None:
        super().__init__()
        self.norm = LayerNorm(input_size, eps)
        self.linear_1 = nn.Linear(input_size, decoder_hidden)
        self.linear_2 = nn.Linear(decoder_hidden, decoder_hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.linear_1(self.norm(x)), approximate="tanh")
        x = self.linear_2(x)
        return x
