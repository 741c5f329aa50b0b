"""Bundles and checkpoints as what `toolkit eval` can ask, checked before the first question."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from delegates import AUTO
from rpi_runtime.errors import BundleError, UsageError
from rpi_runtime.manifest import MANIFEST_FILE, VisionSpec
from toolkit import report
from toolkit.memory_view import memory_options

if TYPE_CHECKING:
    from hypervl.model import HyperVL
    from rpi_runtime.bundle import Bundle
    from vqa.evaluate import Answerer, Arm

CONFIG_FILE = "config.json"  # what a checkpoint has and a bundle has not


@dataclass(frozen=True)
class AskedModel:
    name: str  # unique among those that are asked
    fingerprint: str  # another one, other answers
    is_checkpoint: bool
    check: Callable[[Sequence[Arm]], None]  # raises `UsageError` for an arm that it cannot answer
    answerer: Callable[[Arm], Answerer]


def open_models(
    paths: Sequence[Path],
    threads: int,
    max_new_tokens: int,
    memory: str | None = None,
    delegate: str = AUTO,
) -> list[AskedModel]:
    """The models at `paths`, in their order, each once. No weights are loaded yet. `memory` is the budget of
    bundles, as `--memory` takes it, and `delegate` what their graphs run on.

    Raises `UsageError` for a checkpoint where PyTorch is not installed, `BundleError` and `CheckpointError`
    for folders that are neither or are damaged.
    """
    from rpi_runtime.bundle import Bundle

    for path in paths:
        if not path.exists():
            raise BundleError(f"{path}: no such folder", "Name bundles or checkpoints.")
    paths = list({path.resolve(): path for path in paths}.values())
    same_name = Counter(path.absolute().name for path in paths)
    names = {p: p.absolute().name if same_name[p.absolute().name] == 1 else str(p) for p in paths}
    checkpoints = [path for path in paths if _is_checkpoint(path)]
    if checkpoints and find_spec("torch") is None:
        raise UsageError(
            f"{checkpoints[0]} is a checkpoint, and torch is not installed",
            "Ask a bundle, or, in the project's folder, pip install '.[convert]'.",
        )
    bundles = {path: Bundle.open(path) for path in paths if path not in checkpoints}
    return [
        _bundle(names[path], bundles[path], threads, max_new_tokens, memory, delegate)
        if path in bundles
        else _checkpoint(names[path], path, list(bundles.values()), threads, max_new_tokens)
        for path in paths
    ]


def _is_checkpoint(path: Path) -> bool:
    return (path / CONFIG_FILE).is_file() and not (path / MANIFEST_FILE).exists()


def _bundle(
    name: str, bundle: Bundle, threads: int, max_new_tokens: int, memory: str | None, delegate: str
) -> AskedModel:
    from rpi_runtime.session import Session
    from vqa.evaluate import BundleAnswerer, check_bundle

    def answerer(arm: Arm) -> Answerer:
        budget = memory_options(memory, arm.branch)
        session = Session.open(bundle, threads=threads, delegate=delegate, **budget)
        return BundleAnswerer(session, arm.routing, arm.branch, max_new_tokens)

    # The manifest has the sha256 of every other file.
    told = (bundle.folder / MANIFEST_FILE).read_bytes() + (b"" if delegate == AUTO else delegate.encode())
    fingerprint = hashlib.sha256(told).hexdigest()
    return AskedModel(name, fingerprint, False, lambda arms: check_bundle(bundle.manifest, arms), answerer)


def _checkpoint(
    name: str, path: Path, bundles: Sequence[Bundle], threads: int, max_new_tokens: int
) -> AskedModel:
    import torch

    from hypervl.answering import ReferenceAnswerer
    from hypervl.checkpoint import Checkpoint
    from hypervl.specs import vision_spec
    from rpi_runtime.routing import choose_branch
    from rpi_runtime.tokenizer import TextCodec

    checkpoint = Checkpoint.open(path)
    source = checkpoint.fingerprint()
    spec = _spec_of_its_bundle(source, bundles)
    if spec is not None and spec != vision_spec(checkpoint.config):
        report.note(f"{name} cuts pictures as its bundle does: tiles of {_listed(spec.tile_sides)} px.")
    spec = spec or vision_spec(checkpoint.config)
    loaded: list[HyperVL] = []  # once for all arms

    def answerer(arm: Arm) -> Answerer:
        torch.set_num_threads(threads)
        if not loaded:
            loaded.append(checkpoint.load_model())
        codec = TextCodec.from_checkpoint(path)
        return ReferenceAnswerer(loaded[0], codec, spec, arm.routing, arm.branch, max_new_tokens)

    def check(arms: Sequence[Arm]) -> None:
        for arm in arms:
            choose_branch(arm.branch, (), spec, ("base", "large"))

    fingerprint = hashlib.sha256(f"{source} {spec}".encode()).hexdigest()
    return AskedModel(name, fingerprint, True, check, answerer)


def _spec_of_its_bundle(source_sha256: str, bundles: Sequence[Bundle]) -> VisionSpec | None:
    """How the first of `bundles` that was made of this checkpoint cuts pictures.

    Two that cut differently cannot be compared answer by answer.
    """
    return next((b.manifest.vision for b in bundles if b.manifest.source_sha256 == source_sha256), None)


def _listed(sides: Sequence[int]) -> str:
    return ", ".join(map(str, sides))
