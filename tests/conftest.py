"""Checkpoints, photos and the bundle that several tests read. Made once per run; nobody writes into them."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import skimage.data
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings
from PIL import Image

from converters.convert import convert
from converters.options import ConvertOptions
from hypervl.assemble import Sources, assemble
from hypervl.checkpoint import Checkpoint, save
from hypervl.config import HyperVLConfig
from hypervl.model import HyperVL, build
from hypervl.specs import vision_spec
from rpi_runtime.backends import weight_cache
from rpi_runtime.errors import ResourceError
from rpi_runtime.images import open_image
from rpi_runtime.session import Session
from rpi_runtime.tiling import cut, tile_picture
from tests.converters import tiny

ROOT = Path(__file__).resolve().parent.parent
TILE_SIDES = (192, 64)  # px, of `nano_bundle`
# How long a test takes depends on who else uses the machine.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
torch.set_num_threads(1)  # for models this small a second thread costs more than the work


def small_tiles(config: HyperVLConfig) -> HyperVLConfig:
    """A photo of 512 px is then cut into nine, and a tile is quickly encoded."""
    return replace(
        config,
        vrc=replace(config.vrc, scales=(0.25, 0.5, 0.75, 1.0)),
        vision_base=replace(config.vision_base, image_size=192),
        vision_large=replace(config.vision_large, image_size=192),
        tiling=replace(config.tiling, tile_side=192, tile_sides=(192, 128, 64), max_tiles=12),
    )


def shallow(config: HyperVLConfig) -> HyperVLConfig:
    """Half of the layers, which export in half of the time."""
    return replace(
        config,
        vision_base=replace(config.vision_base, num_hidden_layers=1),
        vision_large=replace(config.vision_large, num_hidden_layers=2),
        decoder=replace(config.decoder, num_hidden_layers=2),
    )


MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """`make_once(name, make)` gives the folder that `make(folder)` fills, once for all of pytest's
    processes."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = root / "shared" / name, root / "shared" / f"{name}.done"
        folder.parent.mkdir(exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def nano_checkpoint(make_once: MakeOnce) -> Path:
    """The preset nano with random weights."""
    return make_once("nano", lambda folder: assemble(folder / "nano", Sources(preset="nano"))) / "nano"


@pytest.fixture(scope="session")
def shallow_checkpoint(nano_checkpoint: Path, make_once: MakeOnce) -> Path:
    """The preset nano with half of its layers."""

    def make(folder: Path) -> None:
        checkpoint = Checkpoint.open(nano_checkpoint)
        save(build(shallow(checkpoint.config)), folder / "nano", checkpoint.text_files)

    return make_once("shallow", make) / "nano"


def script(name: str) -> ModuleType:
    """The module `scripts/<name>.py`, which imports its neighbours; scripts are no package."""
    folder = str(ROOT / "scripts")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


@pytest.fixture(scope="session")
def fetch_weights() -> ModuleType:
    return script("fetch_weights")


@pytest.fixture(scope="session")
def smollm2_folder(fetch_weights: ModuleType) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder."""
    return _fetched(fetch_weights, "smollm2")


@pytest.fixture(scope="session")
def smollm2_checkpoint(smollm2_folder: Path, make_once: MakeOnce) -> Path:
    """SmolLM2 behind nano's random vision."""
    sources = Sources(decoder=smollm2_folder)
    return make_once("smollm2", lambda folder: assemble(folder / "smollm2", sources)) / "smollm2"


@pytest.fixture(scope="session")
def qwen3_tokenizer_folder(fetch_weights: ModuleType) -> Path:
    """Qwen3's tokenizer.json, tokenizer_config.json and generation_config.json."""
    return _fetched(fetch_weights, "qwen3-tokenizer")


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real photograph, 512 x 512 px."""
    path = tmp_path_factory.mktemp("photos") / "astronaut.png"
    Image.fromarray(skimage.data.astronaut()).save(path)
    return path


@pytest.fixture(scope="session")
def wide_photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one, 600 x 400 px."""
    path = tmp_path_factory.mktemp("photos") / "coffee.jpg"
    Image.fromarray(skimage.data.coffee()).save(path, quality=95)
    return path


@pytest.fixture(scope="session")
def routing_checkpoint(nano_checkpoint: Path, photo: Path, make_once: MakeOnce) -> Path:
    """A shallow nano with small tiles, ten of the photo, and a VRC that is undecided on average over them,
    so that it treats them differently.

    Random weights give nearly the same logits for every tile.
    """

    def make(folder: Path) -> None:
        checkpoint = Checkpoint.open(nano_checkpoint)
        model = build(small_tiles(shallow(checkpoint.config)))
        spec = vision_spec(model.config, TILE_SIDES)
        picture = open_image(photo)
        grid = tile_picture(picture, spec)
        views = np.concatenate([cut(picture, tile, spec.vrc_side) for tile in grid.tiles])
        with torch.no_grad():
            logits = model.vrc(torch.from_numpy(views))
            model.vrc.linear_2.bias -= logits.mean(dim=0)
        save(model, folder / "routing", checkpoint.text_files)

    return make_once("routing", make) / "routing"


@pytest.fixture(scope="session")
def routing_model(routing_checkpoint: Path) -> HyperVL:
    return Checkpoint.open(routing_checkpoint).load_model()


@pytest.fixture(scope="session")
def variants_bundle(make_once: MakeOnce) -> Path:
    """A tiny model's bundle with graphs for several delegates: the VRC for NNAPI, a branch for CPU, GPU and
    NNAPI, the decoder for CPU and GPU."""

    def make(folder: Path) -> None:
        tiny.write_checkpoint(folder / "checkpoint")
        convert(
            ConvertOptions(
                folder / "checkpoint",
                folder / "bundle",
                components=("vrc", "vision_base", "decoder"),
                tile_sides=(96, 64),
                prefill_tokens=(8,),
                contexts=(160,),
                delegate="vrc=nnapi,vision=cpu+gpu+nnapi,decoder=cpu+gpu",
            )
        )

    return make_once("variants", make) / "bundle"


@pytest.fixture(scope="session")
def nano_bundle(routing_checkpoint: Path, make_once: MakeOnce) -> Path:
    """The bundle of `routing_checkpoint`: fp32, a context of 512 and a short one of 128,
    prefill in chunks of 8 and 32."""

    def make(folder: Path) -> None:
        convert(
            ConvertOptions(
                routing_checkpoint,
                folder / "nano",
                recipe="fp32",
                tile_sides=TILE_SIDES,
                prefill_tokens=(8, 32),
                contexts=(128, 512),
                embedding="fp16",
                measure=False,
            )
        )

    return make_once("nano-bundle", make) / "nano"


@pytest.fixture
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty XDG_CACHE_HOME; gives the folder where packed weights will lie."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return weight_cache.default_folder()


@pytest.fixture
def session(nano_bundle: Path, cache_home: Path) -> Iterator[Session]:
    with Session.open(nano_bundle, threads=1) as opened:
        yield opened


def _fetched(fetch_weights: ModuleType, name: str) -> Path:
    try:
        folder: Path = fetch_weights.fetch(name)
    except ResourceError as error:
        pytest.skip(f"{name} cannot be fetched here: {error.message}")
    return folder
