"""What a training runs on: the device, its work folder, and the versions that its numbers depend on."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

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


def check_work(folder: Path, mark: str) -> None:
    """Raises `UsageError` for a work folder that is something else: it holds files, and no `mark`."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", "Choose another one with --work.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / mark).exists():
        raise UsageError(
            f"{folder} holds other files, and no {mark}: it is not the work of such a training",
            "Choose another one with --work.",
        )


def code_versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    packages = ("hypervl-edge", "torch", "numpy", "pillow", "tokenizers")
    return {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}}
