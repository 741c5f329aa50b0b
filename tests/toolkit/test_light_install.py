"""On a board, without the libraries that make bundles, commands say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from converters import pipeline
from rpi_runtime.errors import UsageError
from toolkit.commands.assemble import assemble
from toolkit.commands.convert import convert


@pytest.fixture(autouse=True)
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "find_spec", lambda name: None)


def test_assemble_and_convert_name_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not installed: torch") as raised:
        assemble(tmp_path / "checkpoint", preset="nano")
    assert "pip install '.[convert]'" in raised.value.remedy
    with pytest.raises(UsageError, match="not installed: torch"):
        convert(tmp_path / "checkpoint", tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
