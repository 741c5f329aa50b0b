"""Visual Resolution Compressor: one look at a small picture, one logit per encoding scale.

An EfficientNet-Lite (Tan and Le 2019, in the Lite variant of TensorFlow's `efficientnet/lite`: no
squeeze-excite, ReLU6), mean pooling and a two-layer MLP. Every op has an integer kernel in TFLite. Padding is
TensorFlow's SAME, so that the published EfficientNet-Lite0 weights fit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from hypervl.config import VRCConfig
from hypervl.conv_norm import ConvNorm
from rpi_runtime.errors import CheckpointError


class VRC(nn.Module):
    """`images` [N, S, S, 3] float in [0, 1] -> logits [N, scales], one per entry of `config.scales`."""

    def __init__(self, config: VRCConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = ConvNorm(3, config.stem_channels, kernel=3, stride=2)
        blocks: list[nn.Module] = []
        channels = config.stem_channels
        for expand, out_channels, repeats, stride, kernel in config.stages:
            for repeat in range(repeats):
                blocks.append(MBConv(channels, out_channels, expand, kernel, stride if repeat == 0 else 1))
                channels = out_channels
        self.blocks = nn.ModuleList(blocks)
        self.head = ConvNorm(channels, config.head_channels, kernel=1)
        self.linear_1 = nn.Linear(config.head_channels, config.hidden_size)
        self.linear_2 = nn.Linear(config.hidden_size, len(config.scales))

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.features(images).mean((2, 3))
        logits: Tensor = self.linear_2(F.relu6(self.linear_1(pooled)))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """The backbone's feature map [N, head_channels, S/32, S/32] (Lite0's strides)."""
        # (x * 255 - 127) / 128 is EfficientNet-Lite's own normalisation. It is not folded into the stem: the
        # convolution pads with zeros behind it, and a folded one would pad with another grey.
        x = images.permute(0, 3, 1, 2) * (255 / 128) - 127 / 128
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.head(x)
        return features


class MBConv(nn.Module):
    """Inverted bottleneck: 1x1 expand, depthwise, 1x1 project; added to its input where the shapes agree."""

    def __init__(self, channels: int, out_channels: int, expand: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = channels * expand
        self.expand = ConvNorm(channels, wide, kernel=1) if expand != 1 else None
        self.depthwise = ConvNorm(wide, wide, kernel, stride, groups=wide)
        self.project = ConvNorm(wide, out_channels, kernel=1, activation=False)
        self.skip = stride == 1 and channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self.skip else y


_LITE_NAMES = (
    (r"^_conv_stem\.", "stem.conv."),
    (r"^_bn0\.", "stem.norm."),
    (r"^_conv_head\.", "head.conv."),
    (r"^_bn1\.", "head.norm."),
    (r"^_blocks\.(\d+)\._expand_conv\.", r"blocks.\1.expand.conv."),
    (r"^_blocks\.(\d+)\._bn0\.", r"blocks.\1.expand.norm."),
    (r"^_blocks\.(\d+)\._depthwise_conv\.", r"blocks.\1.depthwise.conv."),
    (r"^_blocks\.(\d+)\._bn1\.", r"blocks.\1.depthwise.norm."),
    (r"^_blocks\.(\d+)\._project_conv\.", r"blocks.\1.project.conv."),
    (r"^_blocks\.(\d+)\._bn2\.", r"blocks.\1.project.norm."),
)


def load_efficientnet_lite0(vrc: VRC, state: Mapping[str, Tensor]) -> None:
    """Copies the backbone of `efficientnet-lite-pytorch`'s Lite0 weights into `vrc`; its MLP stays as it is.

    Raises `CheckpointError` when a tensor is missing, unknown or of another shape.
    """
    renamed = {}
    for name, tensor in state.items():
        if name.startswith("_fc."):  # the ImageNet classifier
            continue
        ours = next((re.sub(old, new, name) for old, new in _LITE_NAMES if re.match(old, name)), name)
        renamed[ours] = tensor
    wanted = {k: v for k, v in vrc.state_dict().items() if not k.startswith(("linear_1.", "linear_2."))}
    remedy = "Use the weights of EfficientNet-Lite0 and a VRC config with its stages."
    if absent := wanted.keys() - renamed.keys():
        raise CheckpointError(f"the EfficientNet-Lite0 weights lack tensor {min(absent)!r}", remedy)
    if unknown := renamed.keys() - wanted.keys():
        raise CheckpointError(f"the EfficientNet-Lite0 weights have unknown tensor {min(unknown)!r}", remedy)
    for name, tensor in renamed.items():
        if tensor.shape != wanted[name].shape:
            raise CheckpointError(
                f"EfficientNet-Lite0 tensor {name!r} is {list(tensor.shape)}, not {list(wanted[name].shape)}",
                remedy,
            )
    vrc.load_state_dict(renamed, strict=False)
