"""A whole convert of the nano preset, and float32 graphs of a smaller model: made once for all tests."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from converters.convert import ConvertReport, Event, convert
from converters.export import export_component
from converters.options import ConvertOptions
from hypervl.checkpoint import Checkpoint
from rpi_runtime.manifest import DECODER, VISION_BASE, VRC
from tests.conftest import MakeOnce
from tests.converters import tiny


@dataclass(frozen=True)
class Converted:
    options: ConvertOptions
    report: ConvertReport
    events: tuple[Event, ...]

    @property
    def bundle(self) -> Path:
        return self.report.bundle


@pytest.fixture(scope="session")
def nano_options(shallow_checkpoint: Path) -> ConvertOptions:
    """Everything, in shapes that convert quickly. Tests replace `bundle`."""
    return ConvertOptions(
        shallow_checkpoint,
        Path("nowhere"),
        recipe="int8,vrc=fp16",
        tile_sides=(384, 128),
        prefill_tokens=(16,),
        contexts=(64, 128),
        measure=False,
    )


@pytest.fixture(scope="session")
def converted(nano_options: ConvertOptions, make_once: MakeOnce) -> Converted:
    def make(folder: Path) -> None:
        (folder / "bundles").mkdir()
        options = replace(nano_options, bundle=folder / "bundles" / "nano", measure=True)
        events: list[Event] = []
        report = convert(options, events.append)
        (folder / "converted").write_bytes(pickle.dumps(Converted(options, report, tuple(events))))

    made: Converted = pickle.loads((make_once("converted", make) / "converted").read_bytes())
    return made


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def tiny_graphs(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The float32 graph of each kind of component, by its name."""
    folder = tmp_path_factory.mktemp("graphs")
    graphs = {name: folder / f"{name}.tflite" for name in (VRC, VISION_BASE, DECODER)}
    for name, path in graphs.items():
        export_component(name, tiny_checkpoint, tiny.OPTIONS, path)
    return graphs
