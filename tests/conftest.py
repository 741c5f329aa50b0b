"""Checkpoints that several tests read. They are made once per run, and nobody writes into them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from hypervl.assemble import Sources, assemble
from rpi_runtime.errors import ResourceError

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(2)


@pytest.fixture(scope="session")
def nano_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The preset nano with random weights."""
    folder = tmp_path_factory.mktemp("checkpoints") / "nano"
    assemble(folder, Sources(preset="nano"))
    return folder


@pytest.fixture(scope="session")
def fetch_weights() -> ModuleType:
    """The module `scripts/fetch_weights.py`; scripts are no package."""
    name = "fetch_weights"
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def smollm2_folder(fetch_weights: ModuleType) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder."""
    return _fetched(fetch_weights, "smollm2")


@pytest.fixture(scope="session")
def smollm2_checkpoint(smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 behind nano's random vision."""
    folder = tmp_path_factory.mktemp("checkpoints") / "smollm2"
    assemble(folder, Sources(decoder=smollm2_folder))
    return folder


@pytest.fixture(scope="session")
def qwen3_tokenizer_folder(fetch_weights: ModuleType) -> Path:
    """Qwen3's tokenizer.json, tokenizer_config.json and generation_config.json."""
    return _fetched(fetch_weights, "qwen3-tokenizer")


def _fetched(fetch_weights: ModuleType, name: str) -> Path:
    try:
        folder: Path = fetch_weights.fetch(name)
    except ResourceError as error:
        pytest.skip(f"{name} cannot be fetched here: {error.message}")
    return folder
