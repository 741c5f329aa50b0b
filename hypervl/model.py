"""HyperVL whole: the four components, and a random model of any shape.

The components never call one another: between them stand the tiling and routing of the runtime, which the
reference `hypervl.generate` and the device share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hypervl.config import HyperVLConfig
from hypervl.decoder import Decoder
from hypervl.vision import VisionBranch
from hypervl.vrc import VRC
from rpi_runtime.errors import nearest
from rpi_runtime.manifest import COMPONENTS


class HyperVL(nn.Module):
    vrc: VRC
    vision_base: VisionBranch
    vision_large: VisionBranch
    decoder: Decoder

    def __init__(self, config: HyperVLConfig) -> None:
        super().__init__()
        self.config = config
        for name in COMPONENTS:
            setattr(self, name, component(config, name))

    def vision(self, branch: str) -> VisionBranch:
        """The branch "base" or "large"."""
        return self.vision_large if branch == "large" else self.vision_base


def component(config: HyperVLConfig, name: str) -> nn.Module:
    """A fresh component, "vrc", "vision_base", "vision_large" or "decoder", with whatever weights PyTorch
    gives it.

    Under `torch.device("meta")` it takes no memory: every persistent tensor is then still to be loaded, and
    there are no others.
    """
    if name == "vrc":
        return VRC(config.vrc)
    if name == "decoder":
        return Decoder(config.decoder)
    if name in ("vision_base", "vision_large"):
        vision = config.vision(name.removeprefix("vision_"))
        return VisionBranch(
            vision, config.decoder.hidden_size, config.tiling.image_mean, config.tiling.image_std
        )
    raise nearest(name, COMPONENTS, "component")


def build(config: HyperVLConfig, seed: int = 0) -> HyperVL:
    """An untrained model in evaluation mode. The same config and seed give the same tensors."""
    with torch.device("meta"):
        model = HyperVL(config)
    tensors = {name: initial_tensor(name, meta, seed) for name, meta in named_tensors(model)}
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a checkpoint of `module`, in its order."""
    yield from module.state_dict().items()


def initial_tensor(name: str, like: Tensor, seed: int = 0) -> Tensor:
    """The untrained value of tensor `name` (its full name in a checkpoint) with the shape and dtype of
    `like`.

    It depends on name, shape and seed alone, so that a part initialised on its own equals the same part of a
    whole model. Norms begin as the identity and biases at 0. Matrices and kernels keep the variance of what
    they read (LeCun, 1 / fan-in): with a norm before every residual branch the stream grows only with the
    root of the depth. VRC kernels in front of a ReLU6 double it (He), because the ReLU halves it again.
    """
    kind = name.rsplit(".", 1)[-1]
    if kind in ("bias", "running_mean", "num_batches_tracked"):
        return torch.zeros(like.shape, dtype=like.dtype)
    if kind == "running_var" or like.dim() == 1:
        return torch.ones(like.shape, dtype=like.dtype)
    fan_in = like[0].numel()
    gain = 2.0 if name.startswith("vrc.") and like.dim() == 4 and ".project." not in name else 1.0
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return torch.empty(like.shape, dtype=like.dtype).normal_(std=(gain / fan_in) ** 0.5, generator=generator)
