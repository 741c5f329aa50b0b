"""A whole convert of the nano preset, made once for all tests that look at its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from converters.convert import ConvertReport, Event, convert
from converters.options import ConvertOptions


@dataclass(frozen=True)
class Converted:
    options: ConvertOptions
    report: ConvertReport
    events: tuple[Event, ...]

    @property
    def bundle(self) -> Path:
        return self.report.bundle


@pytest.fixture(scope="session")
def nano_options(nano_checkpoint: Path) -> ConvertOptions:
    """Everything, in shapes that convert quickly. Tests replace `bundle`."""
    return ConvertOptions(
        nano_checkpoint,
        Path("nowhere"),
        recipe="int8,vrc=fp16",
        tile_sides=(192, 64),
        prefill_tokens=(16,),
        context_tokens=128,
    )


@pytest.fixture(scope="session")
def converted(nano_options: ConvertOptions, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    from dataclasses import replace

    options = replace(nano_options, bundle=tmp_path_factory.mktemp("converted") / "nano")
    events: list[Event] = []
    report = convert(options, events.append)
    return Converted(options, report, tuple(events))
