"""Convolution, BatchNorm and ReLU6: what the VRC and the stem of a vision branch are made of."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

_BATCH_NORM_EPS, _BATCH_NORM_MOMENTUM = 1e-3, 0.01  # EfficientNet's; TensorFlow calls the latter 0.99


class ConvNorm(nn.Module):
    """Convolution without bias, SAME padding, BatchNorm, and ReLU6 unless told otherwise."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        activation: bool = True,
    ) -> None:
        super().__init__()
        self.reach, self.stride, self.activation = dilation * (kernel - 1) + 1, stride, activation
        self.conv = nn.Conv2d(
            channels, out_channels, kernel, stride, dilation=dilation, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(out_channels, _BATCH_NORM_EPS, _BATCH_NORM_MOMENTUM)

    def forward(self, x: Tensor) -> Tensor:
        rows = same_padding(x.shape[2], self.reach, self.stride)
        columns = same_padding(x.shape[3], self.reach, self.stride)
        x = self.norm(self.conv(F.pad(x, (*columns, *rows))))
        return F.relu6(x) if self.activation else x


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME, before and behind: `ceil(size / stride)` results; the odd zero goes behind."""
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2
