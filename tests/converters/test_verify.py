"""Verify reads every byte again, and with the checkpoint at hand measures again."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from converters.verify import verify
from rpi_runtime.bundle import Bundle
from rpi_runtime.errors import BundleError, CheckpointError
from rpi_runtime.manifest import COMPONENTS, MANIFEST_FILE, to_json
from tests.converters.conftest import Converted

ROOT = Path(__file__).resolve().parents[2]
FILES = (
    "vrc.tflite",
    "vision_base.tflite",
    "vision_large.tflite",
    "decoder.tflite",
    *(f"{name}.sample.npz" for name in COMPONENTS),
    "embedding.scales",
    "tokenizer.json",
    "chat_template.jinja",
)


@pytest.fixture
def bundle(converted: Converted, tmp_path: Path) -> Path:
    return shutil.copytree(converted.bundle, tmp_path / "bundle")


def toolkit(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "toolkit.cli", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)


def test_a_fresh_bundle_is_in_order(converted: Converted) -> None:
    report = verify(converted.bundle)
    assert report.passed
    assert report.files == len(FILES) + 1
    assert report.bytes == converted.report.bundle_bytes
    assert {row.component for row in report.parity} == {"vrc", "vision_base", "vision_large", "decoder"}


@pytest.mark.parametrize("name", FILES)
def test_one_changed_byte_in_any_file_is_found(bundle: Path, name: str) -> None:
    path = bundle / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    (problem,) = verify(bundle).problems
    assert f"{name}: its bytes were changed" in problem


def test_all_that_is_wrong_is_listed(bundle: Path) -> None:
    (bundle / "vrc.tflite").write_bytes((bundle / "vrc.tflite").read_bytes()[:-4])
    (bundle / "embedding.scales").unlink()
    problems = verify(bundle).problems
    assert len(problems) == 2
    assert "vrc.tflite: is cut" in problems[0]
    assert "embedding.scales: is missing" in problems[1]


def test_a_recorded_miss_is_a_finding(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    vrc = manifest.components[0]
    missed = dataclasses.replace(vrc.parity[0], passed=False, cosine=0.5)
    changed = dataclasses.replace(vrc, parity=(missed,))
    text = to_json(dataclasses.replace(manifest, components=(changed, *manifest.components[1:])))
    (bundle / MANIFEST_FILE).write_text(text)
    (problem,) = verify(bundle).problems
    assert problem.startswith("vrc route: cosine 0.5")
    assert missed.threshold in problem


def test_parity_is_repeated_against_the_checkpoint(converted: Converted) -> None:
    report = verify(converted.bundle, converted.options.checkpoint)
    assert report.passed
    assert len(report.parity) == 9
    for row in report.parity:
        assert row.repeated == row.recorded


def test_a_checkpoint_that_is_not_the_source_is_refused(
    converted: Converted, nano_checkpoint: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(nano_checkpoint, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["decoder.norm.weight"] = tensors["decoder.norm.weight"] * 2
    save_file(tensors, other / "model.safetensors")
    source = Bundle.open(converted.bundle).manifest.source_sha256
    with pytest.raises(
        CheckpointError, match=r"is not the checkpoint that this bundle was made from"
    ) as caught:
        verify(converted.bundle, other)
    assert source[:12] in caught.value.message


def test_a_damaged_graph_is_not_run(bundle: Path, converted: Converted) -> None:
    path = bundle / "decoder.tflite"
    path.write_bytes(path.read_bytes()[:-4])
    report = verify(bundle, converted.options.checkpoint)
    assert len(report.problems) == 1
    assert all(row.repeated is None for row in report.parity)


def test_what_is_no_bundle_cannot_be_checked(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        verify(tmp_path / "nothing")


def test_the_command_line_leaves_with_0_1_or_3(converted: Converted, bundle: Path) -> None:
    fine = toolkit("verify", converted.bundle)
    assert fine.returncode == 0, fine.stderr
    assert "tile_384" in fine.stdout
    assert "prefill_16" in fine.stdout
    (bundle / "tokenizer.json").write_text("{}")
    found = toolkit("verify", bundle, "--json")
    assert found.returncode == 1
    assert json.loads(found.stdout)["passed"] is False
    assert "tokenizer.json: is cut" in found.stderr
    (bundle / MANIFEST_FILE).unlink()
    assert toolkit("verify", bundle).returncode == 3


def test_it_needs_no_heavy_library(converted: Converted) -> None:
    code = (
        "import sys; from pathlib import Path; from converters.verify import verify\n"
        f"assert verify(Path({str(converted.bundle)!r})).passed\n"
        "print(*sorted(m for m in sys.modules if '.' not in m))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "litert_torch", "transformers", "ai_edge_litert", "typer"}
