"""What a training runs on: the device, and the versions that its numbers depend on."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from rpi_runtime.errors import UsageError, nearest

DEVICES = ("auto", "cpu", "cuda")


def choose_device(name: str) -> torch.device:
    """`auto` takes a GPU when there is one. Raises `UsageError`."""
    if name not in DEVICES:
        raise nearest(name, DEVICES, "device")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("this PyTorch sees no CUDA device", "Use --device cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def code_versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    packages = ("hypervl-edge", "torch", "numpy", "pillow", "tokenizers")
    return {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}}
